"""Write docs/evidence.md: what the verdict rests on, measured.

python -m bench.curves       # an hour or less on two cores; the repository holds its result
python -m bench.evidence     # minutes, from the recorded curves
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from bench import calibration, measures, replay, verdicts
from bench.curves import CURVES, REPEATED, SEEDS, TRUTH_PROMPTS
from bench.replay import Curves
from results.formatting import compact
from results.run.listing import open_run
from results.verdict_view import verdict_sentence
from search_spaces.objective import LIMITS
from tune.record import read_lines

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
TEMPLATE = Path(__file__).with_name("evidence.jinja")
# The three that the original project published, with a thousand times their learning rates.
WILD = [
    {"learning_rate": 0.5, "per_device_train_batch_size": 4, "beta": 0.1, "optim": "adamw_torch"},
    {"learning_rate": 1.0, "per_device_train_batch_size": 8, "beta": 0.2, "optim": "rmsprop"},
    {"learning_rate": 2.0, "per_device_train_batch_size": 8, "beta": 0.3, "optim": "adamw_torch"},
]


def percent(share: float) -> str:
    """Return a share in per cent, or that it was not reached."""
    return f"{100 * share:.1f} %" if np.isfinite(share) else "not reached"


def trained(curves: Curves, reference: float) -> dict[str, Any]:
    """Return what was trained, and what became of it."""
    truths = np.array([line["truth"] for line in curves.lines])
    best = max(curves.lines, key=lambda line: line["truth"])
    worse = [line for line in curves.lines if line["truth"] < reference]
    rates, betas = (
        sorted(line["params"][name] for line in curves.lines) for name in ("learning_rate", "beta")
    )
    return {
        "count": len(curves.lines),
        "rungs": curves.rungs,
        "prompts": TRUTH_PROMPTS,
        "rates": [compact(rates[0]), compact(rates[-1])],
        "betas": [compact(betas[0]), compact(betas[-1])],
        "losses": sorted({compact(line["params"]["loss_type"]) for line in curves.lines}),
        "reference": f"{reference:.3f}",
        "best": f"{truths.max():.3f}",
        "named": ", ".join(f"{name} {compact(value)}" for name, value in best["params"].items()),
        "median": f"{np.median(truths):.3f}",
        "worse": len(worse),
        "fooled": sum(
            line["rungs"][-1]["accuracy"] > 0.9
            for line in worse
            if len(line["rungs"]) == len(curves.rungs)
        ),
    }


def limits(metric: str) -> str:
    """Return the limits under which a metric chooses, in words."""
    sign = {"max": "≤", "min": "≥"}
    return ", ".join(
        f"`{name}` {sign[end]} {compact(at)}"
        for name, bound in LIMITS[metric].items()
        for end, at in bound.items()
    )


def which_measure(curves: Curves) -> dict[str, Any]:
    """Return the table that compares measures by what picking their best costs."""
    names = [f"rank correlation at {pairs}" for pairs in curves.rungs]
    rows = [
        [
            f"**{row['measure']}**" if row["ours"] else row["measure"],
            *(f"{row[name]:.2f}" for name in names),
            f"{row['regret']:.1f}",
        ]
        for row in measures.table(curves)
    ]
    heads = ["measure", *(f"at {pairs} pairs" for pairs in curves.rungs), "regret, points"]
    return {"heads": heads, "rows": rows}


def regrets(found: dict[str, np.ndarray]) -> list[list[str]]:
    """Return rows of mean, worst and how many are beyond eight points."""
    return [
        [name, f"{values.mean():.1f}", f"{values.max():.1f}", str((values > 8).sum())]
        for name, values in found.items()
    ]


def efficiency(curves: Curves, seeds: int) -> dict[str, Any]:
    """Return the table that compares searches by the pairs they use."""
    heads = ["search", "within 2 points after", "and from then on after", "regret at 40 %, points"]
    rows = [
        [row["search"], percent(row["reached"]), percent(row["kept"]), f"{100 * row['regret']:.1f}"]
        for row in replay.table(curves, range(seeds))
    ]
    return {"seeds": seeds, "pairs": curves.pairs, "heads": heads, "rows": rows}


def wild() -> dict[str, Any]:
    """Run the three wild configurations as a real search, and try to publish the result."""
    heads = ["learning_rate", "beta", "accuracy", "pair_loss", "kl", "win_rate", "judge_score"]
    space = {
        name: {"choice": list(dict.fromkeys(one[name] for one in WILD))}  # type: ignore[index]
        for name in WILD[0]
    }
    with tempfile.TemporaryDirectory() as folder:
        sets = [
            f"space={json.dumps(space)}",
            f"search.try_first={json.dumps(WILD)}",
            "search.trials=3",
            "search.scheduler=none",
            "objective.constraints.kl=null",
            f"storage={folder}",
        ]
        command = [sys.executable, "-m", "tune"]
        options = [word for setting in sets for word in ("--set", setting)]
        run_it = [*command, "run", "quickstart", "--name", "wild", *options]
        subprocess.run(run_it, check=True, capture_output=True)
        run = open_run("wild", folder)
        rows = []
        for trial in run.trials():
            values = {**trial.params, **trial.measures}
            row = ["-" if (v := values.get(name)) is None else compact(v) for name in heads]
            rows.append([*row, trial.cause or "with its budget used"])
        push = [*command, "push", "wild", f"{folder}/published", "--storage", folder]
        refused = subprocess.run(push, capture_output=True, text=True, check=False)
        sentence = verdict_sentence(run)
    said = " ".join(refused.stderr.split())
    return {
        "heads": [*heads, "ended"],
        "rows": rows,
        "sentence": sentence,
        "code": refused.returncode,
        "refusal": said,
    }


def seeds_alone(reference: float) -> tuple[list[list[str]], float, float]:
    """Return what seeds move the truth of repeated configurations, and two standard deviations.

    These are in win rate: the worst of configurations that are better than the reference in the
    mean, and the worst of all.
    """
    lines = [line for line in read_lines(CURVES) if line["params"] and line["seed"] in SEEDS]
    rows, spreads, better = [], [], []
    for values in REPEATED:
        params = dict(zip(("learning_rate", "beta", "loss_type"), values, strict=True))
        truths = np.array([line["truth"] for line in lines if line["params"] == params])
        # Of a score that is 0 or 1, a point more is half a point of win rate.
        spreads.append(float(truths.std(ddof=1)) / 2)
        better.append(truths.mean() > reference)
        named = ", ".join(compact(value) for value in values)
        ends = f"{truths.min():.3f} to {truths.max():.3f}"
        spread = f"{truths.std(ddof=1):.3f}"
        rows.append([named, str(len(truths)), f"{truths.mean():.3f}", spread, ends])
    worst = max(spread for spread, is_better in zip(spreads, better, strict=True) if is_better)
    return rows, worst, max(spreads)


def statistics(searches: int, reference: float) -> dict[str, Any]:
    """Return how often the simulated verdict is right."""
    seeds, typical, worst = seeds_alone(reference)
    parts = []
    for spread in (typical, 2 * typical, worst):
        rows = [
            [row["judge"], str(row["finalists"])]
            + [percent(row[name]) for name in ("false", "no better", "right", "found")]
            for row in verdicts.table(searches, spread)
        ]
        parts.append({"deviation": f"{100 * spread:.1f}", "rows": rows})
    return {
        "seeds": seeds,
        "deviations": [part["deviation"] for part in parts],
        "searches": searches,
        "trials": verdicts.TRIALS,
        "validation": verdicts.VALIDATION_PROMPTS,
        "effect": f"{100 * verdicts.EFFECT:.0f}",
        "parts": parts,
    }


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="of each replayed search")
    parser.add_argument("--searches", type=int, default=2000, help="simulated for each line")
    options = parser.parse_args()
    curves = Curves(CURVES)
    reference = curves.reference
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True)
    over_subspaces, left_out = calibration.over_subspaces(curves), calibration.left_out(curves)
    page = template.render(
        trained=trained(curves, reference),
        limits={metric: limits(metric) for metric in LIMITS},
        measures=which_measure(curves),
        subspaces=regrets(over_subspaces),
        subspaces_count=len(calibration.subspaces(curves)),
        over_kl=regrets(calibration.over_kl(curves)),
        cells=len(left_out["none"]),
        calibration=regrets(left_out),
        efficiency=efficiency(curves, options.seeds),
        wild=wild(),
        statistics=statistics(options.searches, reference),
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
