"""What a diagnosis is made of: a finding, and the figures of a run folder that it rests on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from results.run.run import Run

# Share of pairs whose chosen answer is known from its length alone. UltraFeedback has 0.67, and
# DPO on such data writes longer and longer answers (Park et al. 2024, arXiv:2403.19159).
LENGTH_RULE = 0.6


@dataclass(frozen=True)
class Finding:
    """A warning about a trial or about the data.

    Attributes:
        title: two to four words, the same for the same thing in every trial.
        sentence: what was measured, what it means, and what to do about it.
    """

    title: str
    sentence: str


def figure(record: Mapping[str, Any], name: str) -> float | None:
    """A number of a record; None where it is missing, NaN or not a number."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def prompts_of(run: Run) -> float | None:
    """On how many prompts the answers of a trial are sampled, as far as the run says."""
    asked = figure(run.spec.get("evaluation") or {}, "prompts")
    there = figure(splits_of(run).get("validation") or {}, "distinct_prompts")
    return min((n for n in (asked, there) if n), default=None)


def percent(share: float) -> str:
    """A share in per cent, in three digits."""
    return f"{100 * share:.3g} %"


def splits_of(run: Run) -> dict[str, dict[str, Any]]:
    """What the data report says of each split; empty where there is none."""
    splits = (run.data_report() or {}).get("splits") or {}
    return {name: split or {} for name, split in splits.items()}


def longer_is_chosen(run: Run, split: str) -> float | None:
    """Accuracy of preferring the longer answer on a split, if it was counted."""
    return figure(splits_of(run).get(split) or {}, "longer_is_chosen")


def length_rule(longer: float) -> tuple[str, float]:
    """The better of the two rules that look at length alone, and the share it ranks right."""
    return ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
