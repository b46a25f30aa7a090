"""Compare what each measure chooses with the truth, on recorded curves.

python -m bench.measures
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.curves import CURVES
from bench.replay import Curves
from search_spaces.objective import LIMITS, Bound


@dataclass(frozen=True)
class Measure:
    """A way to choose a configuration.

    Attributes:
        label: as the table shows it.
        key: of a rung's record; `trl.` are the figures of `DPOTrainer.evaluate`.
        sign: 1 where more is better, -1 where less is.
        limits: under which it chooses.
        ours: preftune chooses by it.
    """

    label: str
    key: str
    sign: int
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ours: bool = False


JUDGED, UNJUDGED = LIMITS["win_rate"], LIMITS["pair_loss"]
MEASURES = (
    Measure("win_rate under its limit (ours, with a judge)", "win_rate", 1, JUDGED, True),
    Measure("win_rate without a limit", "win_rate", 1),
    Measure("win_rate, length-controlled", "win_rate_length_controlled", 1, JUDGED),
    Measure("pair_loss under its limits (ours, without)", "pair_loss", -1, UNJUDGED, True),
    Measure("pair_loss without limits", "pair_loss", -1),
    Measure("judge_score", "judge_score", 1),
    Measure("accuracy", "accuracy", 1),
    Measure("margin", "margin", 1),
    Measure("chosen_drift", "chosen_drift", 1),
    Measure("kl, less being better", "kl", -1),
    Measure("length_ratio, shorter being better", "length_ratio", -1),
    Measure("repetition, less being better", "repetition", -1),
    Measure("ended", "ended", 1),
    Measure("TRL's eval_loss", "trl.loss", -1),
    Measure("TRL's eval_loss under the limit on kl", "trl.loss", -1, JUDGED),
    Measure("TRL's rewards/accuracies", "trl.accuracy", 1),
    Measure("TRL's rewards/accuracies under the limit on kl", "trl.accuracy", 1, JUDGED),
    Measure("TRL's rewards/margins", "trl.margin", 1),
    Measure("TRL's rewards/margins under the limit on kl", "trl.margin", 1, JUDGED),
)


def value(rung: Mapping[str, Any], measure: Measure) -> float:
    """Return a rung's measure, more being better; -inf where it is not a number."""
    section, _, name = measure.key.rpartition(".")
    figure = (rung[section] if section else rung).get(name)
    return -math.inf if figure is None or not math.isfinite(figure) else measure.sign * figure


def feasible(
    line: Mapping[str, Any], limits: Mapping[str, Mapping[str, float]], rungs: int
) -> bool:
    """Return whether a configuration kept its limits at every one of the first rungs."""
    return len(line["rungs"]) >= rungs and all(
        rung[name] is not None and Bound(**bound).holds(rung[name])
        for rung in line["rungs"][:rungs]
        for name, bound in limits.items()
    )


def rank_correlation(curves: Curves, measure: Measure, rung: int) -> float:
    """Return Spearman's correlation of a measure at a rung with the truth at the end.

    A configuration that broke down before the rung ranks last.
    """
    values = [
        value(line["rungs"][rung], measure) if len(line["rungs"]) > rung else -math.inf
        for line in curves.lines
    ]
    frame = pd.DataFrame({"measure": values, "truth": [line["truth"] for line in curves.lines]})
    return float(frame.rank().corr().iloc[0, 1])


def chosen(curves: Curves, measure: Measure) -> list[dict[str, Any]]:
    """Return the configurations that are best by a measure at the last rung, under its limits.

    More than one where they tie; none where nothing keeps the limits.
    """
    rungs = len(curves.rungs)
    within = [line for line in curves.lines if feasible(line, measure.limits, rungs)]
    values = [value(line["rungs"][-1], measure) for line in within]
    return [line for line, own in zip(within, values, strict=True) if own == max(values)]


def regret(curves: Curves, measure: Measure) -> float:
    """Return what choosing by a measure loses, in points of judged score.

    The mean over what ties; where there is nothing to choose, the reference stays.
    """
    truths = [line["truth"] for line in chosen(curves, measure)] or [curves.reference]
    return 100 * (curves.best - float(np.mean(truths)))


def table(curves: Curves) -> list[dict[str, Any]]:
    """Return each measure's rank correlations and its regret in points of judged score."""
    rows = []
    for measure in MEASURES:
        row: dict[str, Any] = {"measure": measure.label, "ours": measure.ours}
        for number, pairs in enumerate(curves.rungs):
            row[f"rank correlation at {pairs}"] = rank_correlation(curves, measure, number)
        row["regret"] = regret(curves, measure)
        row["chosen"] = [line["params"] for line in chosen(curves, measure)]
        rows.append(row)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--curves", type=Path, default=CURVES)
    curves = Curves(parser.parse_args().curves)
    spread = np.percentile([line["truth"] for line in curves.lines], [0, 25, 50, 75, 100])
    print(f"{len(curves.lines)} configurations, truth {spread.round(3)}")  # noqa: T201
    for row in table(curves):
        print(row)  # noqa: T201


if __name__ == "__main__":
    main()
