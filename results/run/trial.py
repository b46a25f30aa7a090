"""One trial, as the journal and its measures tell it."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One trial as the journal and its last line of measures tell it."""

    number: int
    state: str  # one of STATES
    ended_by: str | None  # budget, asha, constraint, nan, stop, time, error
    cause: str | None
    params: dict[str, Any]
    value: float | None  # the objective at the last rung reached
    pairs: int  # that rung; 0 before the first
    rungs: dict[int, float] = field(default_factory=dict)  # pairs -> objective
    constraints: dict[str, float] = field(default_factory=dict)  # positive: broken
    attrs: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)  # at the last rung


def read_trial(frozen: Any, measures: list[dict[str, Any]]) -> Trial:
    """Translate Optuna's trial; `frozen` is an `optuna.trial.FrozenTrial`."""
    attrs = dict(frozen.user_attrs)
    constraints = dict(frozen.constraints)
    ended_by = attrs.get("ended_by")
    rungs = {int(step): float(value) for step, value in frozen.intermediate_values.items()}
    last = max(rungs, default=0)
    value = frozen.values[0] if frozen.values else rungs.get(last)
    latest = measures[-1] if measures else {}
    seen = latest.get("pairs")
    broken = any(not value <= 0 for value in constraints.values())
    state = {
        "COMPLETE": "complete",
        "PRUNED": "stopped",
        "FAIL": "failed",
        "RUNNING": "running",
        "WAITING": "waiting",
    }[frozen.state.name]
    if state in ("complete", "stopped") and (broken or ended_by in ("nan", "constraint")):
        state = "infeasible"
    if state == "running" and attrs.get("paused"):
        state = "paused"
    return Trial(
        number=frozen.number,
        state=state,
        ended_by=ended_by,
        cause=attrs.get("cause"),
        params={name: _decoded(value) for name, value in frozen.params.items()},
        value=value,
        # A trial that broke a limit may tell no objective there; its measures say how far it got.
        pairs=max(last, seen if isinstance(seen, int) else 0),
        rungs=rungs,
        constraints=constraints,
        attrs=attrs,
        measures=latest,
    )


def _decoded(value: Any) -> Any:
    """Undo the JSON text in which Optuna keeps a choice that is a list: `["sigmoid", "sft"]`."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
