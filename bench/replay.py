"""Replay searches on recorded curves, without training, and count the pairs they use.

    python -m bench.replay [--seeds 20]

A search asks for a configuration of the continuous space and is told what the nearest recorded one
measured (half a decade of learning rate and a decade of beta apart). Searcher and scheduler are the
ones of a real search; so are the study and the decisions that they write.
"""

import argparse
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from bench.curves import CURVES
from search_spaces.optuna_space import distributions
from search_spaces.spec import Spec, load
from trainables.trial_report import Report
from tune.asha import promoted
from tune.record import Record, read_lines
from tune.rungs import Rungs
from tune.study import Study

CLOSE = 0.02  # of the best one's judged score: what counts as having reached it
MOST = 400  # trials of one replayed search
SPACE = [
    "space={learning_rate: {loguniform: [1.0e-6, 1.0e-2]}, beta: {loguniform: [0.01, 1.0]}, "
    "loss_type: {choice: [[sigmoid], [ipo], [sigmoid, sft]]}}",
    f"search.trials={MOST}",
]


@dataclass(frozen=True)
class Found:
    """What a search holds best at some moment.

    Attributes:
        pairs: trained by then, in all trials.
        truth: judged score of the configuration that it would name.
    """

    pairs: int
    truth: float


class Curves:
    """The recorded grid.

    Attributes:
        lines: one for each configuration, as `bench.curves` writes them.
        best: judged score of the best of them.
        reference: judged score of the model that they start from.
        pairs: what training all of them to the end takes.
    """

    def __init__(self, path: Path = CURVES) -> None:
        lines = read_lines(path)
        self.reference: float = next(line["truth"] for line in lines if line["params"] is None)
        found = [line for line in lines if line["params"]]
        self.seed = found[0]["seed"]
        self.lines = [line for line in found if line["seed"] == self.seed]
        self.rungs = [rung["pairs"] for rung in max(self.lines, key=_length)["rungs"]]
        self.best = max(line["truth"] for line in self.lines)
        self.pairs = len(self.lines) * self.rungs[-1]

    def nearest(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the recorded line of the configuration nearest to `params`."""

        def apart(line: dict[str, Any]) -> tuple[float, float]:
            own = line["params"]
            return tuple(  # type: ignore[return-value]
                abs(math.log(own[name] / params[name])) for name in ("learning_rate", "beta")
            )

        same = [line for line in self.lines if line["params"]["loss_type"] == params["loss_type"]]
        return min(same, key=apart)


def _length(line: dict[str, Any]) -> int:
    return len(line["rungs"])


def our_search(curves: Curves, seed: int, sampler: str, scheduler: str) -> Iterator[Found]:
    """Replay a search of preftune; yield what it holds best after each trial."""
    overrides = [f"search.sampler={sampler}", f"search.scheduler={scheduler}"]
    spec = load("quickstart", [*SPACE, f"search.seed={seed}", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        study, record = Study(spec, Path(folder)), Record(Path(folder))
        rungs = Rungs(spec.objective, spec.rungs_pairs, scheduler == "asha", study, record)
        lines, pairs = [], 0
        for _ in range(MOST):
            number, params = study.ask()
            line = curves.nearest(params)
            lines.append(line)
            pairs += _train(curves, line, spec, lambda report, n=number: rungs.reported(n, report))
            best = study.finalists(1)
            yield Found(pairs, lines[best[0].number]["truth"] if best else curves.reference)


def _train(
    curves: Curves, line: dict[str, Any], spec: Spec, report: Callable[[Report], bool]
) -> int:
    """Report a recorded trial rung by rung until it is stopped; return the pairs it has seen."""
    recorded = {rung["pairs"]: rung for rung in line["rungs"]}
    for number, pairs in enumerate(spec.rungs_pairs):
        if pairs not in recorded:
            report(Report(pairs=pairs, diverged=line["diverged"]))
            return pairs
        measures = {k: v for k, v in recorded[pairs].items() if isinstance(v, float)}
        told = Report(rung=number, pairs=pairs, measures=measures, deltas=np.zeros(1))
        if not report(told):
            return pairs
    return spec.rungs_pairs[-1]


def ray_search(curves: Curves, seed: int) -> Iterator[Found]:
    """Replay with Ray's `OptunaSearch`, which tells a stopped trial as COMPLETE.

    Sampler, early stopping, limit and the pairs that a trial is charged with are ours. What differs
    is what Optuna is told, and which trial is named: the best within the limit by its last report,
    as `ResultGrid.get_best_result` chooses.
    """
    from ray.tune.search.optuna import OptunaSearch

    spec = load("quickstart", [*SPACE, f"search.seed={seed}"])
    limits = spec.objective.constraints
    with tempfile.TemporaryDirectory() as folder:
        ours = Study(spec, Path(folder))
        sampler = ours._sampler(seed)
    logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
    search = OptunaSearch(
        space=distributions(spec.space), metric="win_rate", mode="max", sampler=sampler
    )
    values: dict[int, list[float]] = {pairs: [] for pairs in curves.rungs}
    best, truth, pairs = -math.inf, curves.reference, 0
    for number in range(MOST):
        line = curves.nearest(ours.params(search.suggest(str(number))))
        last: dict[str, Any] = {}

        def told(report: Report, number: int = number, last: dict[str, Any] = last) -> bool:
            last.clear()
            if report.diverged:
                last.update(win_rate=math.nan, training_iteration=report.pairs)
                return False
            win_rate = report.measures["win_rate"]
            assert win_rate is not None
            last.update(win_rate=win_rate, training_iteration=report.pairs)
            search.on_trial_result(str(number), dict(last))
            last["within"] = all(
                bound.holds(report.measures[name] or 0.0) for name, bound in limits.items()
            )
            if not last["within"]:
                return False
            kept = promoted(win_rate, values[report.pairs], "maximize")
            values[report.pairs].append(win_rate)
            return kept

        pairs += _train(curves, line, spec, told)
        within = last.pop("within", False)
        search.on_trial_complete(str(number), dict(last))
        if within and last["win_rate"] > best:
            best, truth = last["win_rate"], line["truth"]
        yield Found(pairs, truth)


ARMS: dict[str, Callable[[Curves, int], Iterator[Found]]] = {
    "TPE + ASHA": lambda curves, seed: our_search(curves, seed, "tpe", "asha"),
    "random + ASHA": lambda curves, seed: our_search(curves, seed, "random", "asha"),
    "TPE, no early stopping": lambda curves, seed: our_search(curves, seed, "tpe", "none"),
    "random, no early stopping": lambda curves, seed: our_search(curves, seed, "random", "none"),
    "TPE + ASHA, Ray's bookkeeping": ray_search,
}


@dataclass(frozen=True)
class Efficiency:
    """How one search went.

    Attributes:
        reached: pairs after which it held a configuration within `CLOSE` of the best for the first
            time, as a share of the full grid's; infinite if it did not within all of them.
        kept: the same, but from then on it held such a one until it had used the grid's pairs.
        regret: at 40 % of the grid's pairs, the best one's judged score less that of what it holds.
    """

    reached: float
    kept: float
    regret: float


def efficiency(curves: Curves, found: Iterator[Found], until: float = 1.0) -> Efficiency:
    """Follow a search until it has used a share of the grid's pairs."""
    reached, kept, regret = math.inf, math.inf, curves.best - curves.reference
    for state in found:
        used = state.pairs / curves.pairs
        if used > until:
            break
        close = state.truth >= curves.best - CLOSE
        reached = min(reached, used) if close else reached
        kept = (kept if math.isfinite(kept) else used) if close else math.inf
        if used <= 0.4:
            regret = curves.best - state.truth
    return Efficiency(reached, kept, regret)


def table(curves: Curves, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the medians over seeds of each arm."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = []
    for name, search in ARMS.items():
        found = [efficiency(curves, search(curves, seed)) for seed in seeds]
        row = {"search": name}
        for measure in ("reached", "kept", "regret"):
            row[measure] = float(np.median([getattr(one, measure) for one in found]))
        rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--curves", type=Path, default=CURVES)
    options = parser.parse_args()
    for row in table(Curves(options.curves), range(options.seeds)):
        print(row, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
