"""What may be the objective, what may bound it, and why nothing else may."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from search_spaces.errors import Problem, nearest

# Either objective can be had cheaply far from the reference. Calibrated in docs/evidence.md: `kl`
# does nearly all of it, and the others are as tight as they can be without costing anything there;
# but `ended`, which where answers are as long as max_new_tokens says nothing of a model's health.
LIMITS: dict[str, dict[str, dict[str, float]]] = {
    "win_rate": {"kl": {"max": 20.0}},
    "pair_loss": {
        "kl": {"max": 20.0},  # nats per answer
        "chosen_drift": {"min": -0.2},  # nats per token
        "repetition": {"max": 0.2},  # share of 4-grams
        "ended": {"min": 0.1},  # share of answers
    },
}
CONSTRAINTS = (
    *("kl", "chosen_drift", "repetition", "ended", "length_ratio"),
    *("accuracy", "margin", "pair_loss", "judge_score", "win_rate"),
)
_FROM_JUDGE = {"judge_score", "win_rate"}

_COLLAPSE = "it shows collapse and nothing else; bound it under objective.constraints"
_REASONS = {
    "accuracy": (
        "it stays above 0.9 while a model falls apart, and TRL's own starts at 0 because ties "
        "count as wrong; it is shown beside every trial"
    ),
    "margin": (
        "it grows as a model falls apart, and TRL's own carries the factor beta; it is shown "
        "beside every trial"
    ),
    "loss": (
        "it cannot be compared across beta or loss type: one policy with a gap of 5 nats has "
        "0.669 at beta 0.01 and 0.201 at 0.3; pair_loss has one scale for all"
    ),
    "kl": "a model that is not trained has the best; bound it under objective.constraints",
    "judge_score": (
        "it is in the judge's own unit; win_rate compares with the reference's answer to the same "
        "prompt"
    ),
    "chosen_drift": _COLLAPSE,
    "length_ratio": _COLLAPSE,
    "repetition": _COLLAPSE,
    "ended": _COLLAPSE,
}
# What TRL calls the same things.
_ALIASES = {
    "eval_loss": "loss",
    "rewards/accuracies": "accuracy",
    "eval_rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "eval_rewards/margins": "margin",
}


# The violation of a measure that is not known, NaN or infinite, and the most that any other may be.
# Optuna stores finite numbers and adds up those of a trial: all the others together stay below.
WORST, MOST = 1e9, 1e6


class Bound(BaseModel):
    """The range in which a measure must stay; without either end it does not limit anything."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    min: float | None = None
    max: float | None = None

    def holds(self, value: float) -> bool:
        """Tell whether a measured value is inside; NaN never is, unless there is no limit."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def violation(self, value: float | None) -> float:
        """Return how far a measure is outside: 0 inside, 2.0 for a kl of 60 over a max of 20.

        It is relative to the end that is broken, so that nats do not outvote shares. An end of zero
        has no scale of its own; the distance itself counts there.
        """
        if self.min is None and self.max is None:
            return 0.0
        if value is None or not math.isfinite(value):
            return WORST
        over = 0.0 if self.max is None else (value - self.max) / (abs(self.max) or 1.0)
        under = 0.0 if self.min is None else (self.min - value) / (abs(self.min) or 1.0)
        return min(MOST, max(0.0, over, under))


class Objective(BaseModel):
    """The measure that the search improves, and the bounds that a feasible trial keeps."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    metric: Literal["win_rate", "pair_loss"]
    constraints: dict[str, Bound]

    @field_validator("metric", mode="before")
    @classmethod
    def _only_two(cls, metric: Any) -> Any:
        if isinstance(metric, str) and metric not in LIMITS:
            why = _REASONS.get(_ALIASES.get(metric, metric), nearest(metric, LIMITS))
            reason = f"cannot be the objective: {why}; use win_rate with a judge, or pair_loss"
            raise PydanticCustomError("metric", "{reason}", {"reason": reason})
        return metric

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Optuna's word for which way is better."""
        return "maximize" if self.metric == "win_rate" else "minimize"


def with_defaults(objective: object, judge: object) -> object:
    """Fill a raw objective: the metric by whether there is a judge, then that metric's limits.

    A default limit applies unless the spec gives one of that name. A limit given as null becomes an
    empty bound: it was lifted on purpose.
    """
    if objective is None:
        objective = {}
    if not isinstance(objective, Mapping):
        return objective
    filled = dict(objective)
    if filled.get("metric") is None:
        filled["metric"] = "win_rate" if judge is not None else "pair_loss"
    given = filled.get("constraints")
    if given is None or isinstance(given, Mapping):
        metric = filled["metric"]
        limits = LIMITS.get(metric, {}) if isinstance(metric, str) else {}
        given = {name: {} if bound is None else bound for name, bound in (given or {}).items()}
        filled["constraints"] = {name: dict(bound) for name, bound in limits.items()} | given
    return filled


def problems(objective: Objective, judge: str | None) -> Iterator[Problem]:
    """Yield what does not fit between metric, constraints and judge."""
    if objective.metric == "win_rate" and judge is None:
        reason = "only a judge can say who wins; set `judge`, or use pair_loss"
        yield Problem("objective.metric", "win_rate", reason)
    for name, bound in objective.constraints.items():
        key, value = f"objective.constraints.{name}", bound.model_dump(exclude_none=True)
        if name not in CONSTRAINTS:
            yield Problem(key, value, f"no measure has this name; {nearest(name, CONSTRAINTS)}")
        elif name in _FROM_JUDGE and judge is None:
            yield Problem(key, value, "only a judge can measure it; set `judge`, or leave it out")
        elif bound.min is not None and bound.max is not None and bound.min > bound.max:
            yield Problem(key, value, "nothing lies in it; put min below max")
        elif objective.metric == "pair_loss" and name in LIMITS["pair_loss"] and not value:
            reason = (
                "without this limit pair_loss calls spoilt models excellent; give it a min or max"
            )
            yield Problem(key, None, reason)
