"""How numbers, hyperparameters and endings are written, the same in every output."""

import json
import math
from collections.abc import Mapping
from typing import Any

from results.run.run import Run
from results.run.trial import Trial

# Measure -> how it reads in a table.
DIGITS = {
    "win_rate": 3,
    "judge_score": 2,
    "kl": 1,
    "accuracy": 2,
    "length_ratio": 2,
    "pair_loss": 3,
    "chosen_drift": 3,
}
OF_JUDGE = ("win_rate", "judge_score")
OF_ALL = ("kl", "accuracy", "length_ratio")


def columns(run: Run) -> list[str]:
    """The measures that a leaderboard shows: the objective first, none that nobody measured.

    The judge's where there is a judge; after the common ones, whatever else the search limits.
    """
    of_judge = OF_JUDGE if run.spec.get("judge") else ()
    return list(dict.fromkeys([run.metric, *of_judge, *OF_ALL, *run.limits]))


def limits(run: Run) -> list[str]:
    """The limits of the search as text: `kl ≤ 20`."""
    return [
        f"{name} {'≤' if side == 'max' else '≥'} {compact(value)}"
        for name, bound in run.limits.items()
        for side, value in bound.items()
        if value is not None
    ]


def plain(text: object) -> str:
    """Text of a model or a data set without control characters, which could drive a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )


def compact(value: object) -> str:
    """A hyperparameter in few characters: 2.1e-4, 0.3, 8, sigmoid + sft."""
    if isinstance(value, list):
        return " + ".join(compact(item) for item in value)
    if isinstance(value, dict):
        return plain(json.dumps(value))
    if isinstance(value, bool) or not isinstance(value, float):
        return plain(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-2 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def number(value: object, digits: int = 2) -> str:
    """A measure with fixed digits; a dash where there is none."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{value:.{digits}f}"


def count(value: object, missing: str = "?") -> str:
    """A number of things, in groups of three digits."""
    if value is None:
        return missing
    return f"{value:,}" if isinstance(value, int) else compact(value)


def measure(measures: Mapping[str, Any], name: str) -> str:
    """One measure of a record, in its usual number of digits."""
    return number(measures.get(name), DIGITS.get(name, 2))


def interval(difference: object, bounds: object, digits: int = 2) -> str:
    """A signed difference with its interval: +0.30 [+0.24, +0.37]."""
    if not isinstance(difference, int | float):
        return "-"
    text = f"{difference:+.{digits}f}"
    if isinstance(bounds, list | tuple) and len(bounds) == 2:
        text += f" [{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]"
    return text


def finalist_of(verdict: Mapping[str, Any], number: object) -> dict[str, Any]:
    """The record of one finalist of a verdict; empty where the trial is none of them."""
    finalists = verdict.get("finalists") or []
    return next((f for f in finalists if f.get("number") == number), {})


def ending(trial: Trial, run: Run) -> str:
    """Why a trial ended, in a word or two."""
    if trial.state == "running":
        return "running" if run.active else "unfinished"
    if trial.state == "stopped":
        return {"asha": "asha", "stop": "by user", "time": "out of time"}.get(
            trial.ended_by or "", "stopped"
        )
    if trial.state == "infeasible":
        return "nan" if trial.ended_by == "nan" else "infeasible"
    return trial.state
