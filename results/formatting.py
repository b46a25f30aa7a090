"""How numbers, states and verdicts read, the same in the terminal, on the board and on the card."""

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
    limits = (run.spec.get("objective") or {}).get("constraints") or {}
    of_judge = OF_JUDGE if run.spec.get("judge") else ()
    return list(dict.fromkeys([run.metric, *of_judge, *OF_ALL, *limits]))


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


def judged(verdict: Mapping[str, Any], trial: int | None = None) -> str | None:
    """The judge's test scores of a finalist (default: the winner, or the first) and reference."""
    finalists = verdict.get("finalists") or []
    wanted = verdict.get("winner") if trial is None else trial
    chosen = next((f for f in finalists if f.get("number") == wanted), None)
    chosen = chosen or (finalists[0] if finalists and trial is None else None)
    score = ((chosen or {}).get("test") or {}).get("judge_score")
    before = (verdict.get("reference") or {}).get("judge_score")
    if chosen is None or score is None or before is None:
        return None
    difference = interval(chosen.get("judge_score_difference"), chosen.get("judge_score_interval"))
    return (
        f"On its {verdict.get('test_prompts', '?')} prompts the mean judge score is "
        f"{number(score)} for trial {chosen.get('number')} and {number(before)} for the "
        f"reference: {difference}."
    )


def other_budgets(verdict: Mapping[str, Any]) -> str | None:
    """What the search would have chosen under a smaller and a larger limit on `kl`."""
    choices = verdict.get("choices") or []
    if not choices:
        return None
    metric = str(verdict.get("metric"))

    def one(choice: Mapping[str, Any]) -> str:
        limit = f"kl ≤ {compact(choice.get('budget'))}"
        if choice.get("trial") is None:
            return f"{limit} no trial"
        value, kl = measure({metric: choice.get("value")}, metric), measure(choice, "kl")
        # A larger budget's choice may be one that the search ended on its way.
        at = "" if choice.get("complete") else f", ended at {choice.get('pairs')} pairs"
        return f"{limit} trial {choice['trial']} ({metric} {value}, kl {kl}{at})"

    named = [choice.get("trial") for choice in choices]
    if named[0] is not None and len({*named}) == 1:
        budgets = ", ".join(compact(choice.get("budget")) for choice in choices)
        chosen = one(choices[0]).partition(" trial ")[2]
        return (
            f"By the validation split the search would choose trial {chosen} under kl ≤ {budgets}."
        )
    told = "; under ".join(one(choice) for choice in choices)
    return f"By the validation split the search would choose, under {told}."


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


def verdict_sentence(run: Run) -> str:
    """The verdict in one sentence, or why there is none yet."""
    verdict = run.verdict()
    if verdict is not None:
        return plain(verdict.get("sentence") or f"The verdict is {verdict.get('outcome')!r}.")
    return {
        "preparing": "The data and the reference are being prepared.",
        "searching": "The search goes on; there is no verdict yet.",
        "verifying": "The finalists are being measured on the test split.",
        "crashed": "The run crashed before its verdict.",
        "failed": plain(f"The run failed: {run.info.get('error')}"),
    }.get(run.state, f"The run was {run.state} before its verdict.")
