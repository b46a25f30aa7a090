"""The ASHA rule: which trials are promoted at a rung, and what is recorded of each decision.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the form that
stops trials where the paper pauses them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

REDUCTION_FACTOR = 3  # the paper's eta; the default rungs are budget / 9, / 3 and / 1

Action = Literal["continue", "pause", "stop", "complete", "infeasible"]


@dataclass(frozen=True)
class Decision:
    """One rung decision with the values it was made from, so that anybody can make it again."""

    time: str
    trial: int
    rung: int
    pairs: int
    value: float | None
    others: list[float]
    reduction_factor: int
    direction: str
    decision: Action
    ended_by: str | None
    reason: str


def promoted(value: float, others: Sequence[float], direction: str) -> bool:
    """Say whether a value is in the top 1 / `REDUCTION_FACTOR` at its rung, itself included.

    At least one value is: the first trial of a rung is always promoted, and so is every new best.
    A tie with the last promoted value is promoted too.
    """
    sign = -1.0 if direction == "maximize" else 1.0
    ranked = sorted(sign * other for other in (*others, value))
    top = max(1, len(ranked) // REDUCTION_FACTOR)
    return sign * value <= ranked[top - 1]
