"""One trial, from the journal and its measures."""

from dataclasses import dataclass, field
from typing import Any

from search_spaces.choices import decode
from search_spaces.errors import UserError


@dataclass(frozen=True)
class Trial:
    """One trial, from the journal and its last line of measures."""

    number: int
    state: str  # one of STATES
    ended_by: str | None  # budget, asha, constraint, nan, stop, time, error
    cause: str | None
    params: dict[str, Any]
    value: float | None  # the objective at the last rung reached
    pairs: int  # seen there, or where only the journal is left, that rung; 0 if not known
    rungs: dict[int, float] = field(default_factory=dict)  # in `Run.unit` -> objective
    constraints: dict[str, float] = field(default_factory=dict)  # positive: broken
    attrs: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)  # at the last rung


def read_trial(frozen: Any, measures: list[dict[str, Any]], in_steps: bool) -> Trial:
    """Translate a trial of Optuna.

    Args:
        frozen: an `optuna.trial.FrozenTrial`.
        measures: its lines of `measures.jsonl`.
        in_steps: its rungs are in optimizer steps, which say nothing about the pairs seen.
    """
    attrs = dict(frozen.user_attrs)
    constraints = dict(frozen.constraints)
    ended_by = attrs.get("ended_by")
    rungs = {int(step): float(value) for step, value in frozen.intermediate_values.items()}
    last = max(rungs, default=0)
    value = frozen.values[0] if frozen.values else rungs.get(last)
    latest = measures[-1] if measures else {}
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
        params=_params(frozen),
        value=value,
        # A trial that broke a limit may tell no objective there; its measures say how far it got.
        pairs=max(0 if in_steps else last, latest.get("pairs", 0)),
        rungs=rungs,
        constraints=constraints,
        attrs=attrs,
        measures=latest,
    )


def _params(frozen: Any) -> dict[str, Any]:
    """The searched fields as the trial was trained with them.

    Raises:
        UserError: the study holds a choice that no search of ours has written.
    """
    try:
        return {name: decode(name, value) for name, value in frozen.params.items()}
    except ValueError as error:
        raise UserError(
            f"Trial {frozen.number} cannot be read ({error}); restore study.journal from a copy."
        ) from error
