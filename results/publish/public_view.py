"""What is said in public of one trial: figures, parameters, and names without local paths."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from results.formatting import plain
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.locations import is_hub_id

Part = Literal["model", "dataset", "judge"]


@dataclass(frozen=True)
class Candidate:
    """The trial that is published, and what is known of it."""

    number: int
    params: dict[str, Any]
    split: str  # `test` where it was verified, else `validation`
    measures: dict[str, Any]
    reference: dict[str, Any]
    passing: bool  # whether the verdict stands behind this very trial


def candidate(run: Run, trial: int | None = None) -> Candidate:
    """Return the winner of the verdict, or the given trial.

    Raises:
        UserError: the verdict names no winner and no trial was given.
    """
    verdict = run.verdict() or {}
    winner = verdict.get("winner")
    number = winner if trial is None else trial
    if number is None:
        raise UserError(
            f"Run {run.name} has no winner to publish: name a trial that kept its weights with "
            "`--trial`, and `--force` to publish it without a verdict."
        )
    found = run.trial(int(number))
    finalist = next((f for f in verdict.get("finalists") or [] if f.get("number") == number), None)
    beats = bool(finalist and finalist.get("beats_reference"))
    return Candidate(
        number=int(number),
        params=found.params,
        split="test" if finalist else "validation",
        measures=(finalist.get("test") or {}) if finalist else found.measures,
        reference=(verdict.get("reference") or {}) if finalist else run.reference,
        passing=bool(verdict.get("passing")) and (number == winner or beats),
    )


def path_of(run: Run, part: Part) -> str | None:
    """What the search names as its model, data set or judge; None where it has none."""
    if part == "dataset":
        return (run.spec.get("dataset") or {}).get("path")
    recorded = (run.info.get("model") or {}).get("path") if part == "model" else None
    return recorded or run.spec.get(part)


def hub_id(run: Run, part: Part) -> str | None:
    """The Hub id of a run's model, data set or judge; None for a local one and the quickstart's.

    A folder can be spelt like an id. Of what a run takes from the Hub, it records the commit.
    """
    path = path_of(run, part)
    local = (run.info.get("revisions") or {}).get(part, "not said") is None
    return path if not local and is_hub_id(str(path)) else None


def name_of(run: Run, part: Part) -> str:
    """The Hub id of a run's model, data set or judge, or the last part of a local path."""
    return hub_id(run, part) or last_part(path_of(run, part))


def last_part(path: object) -> str:
    """A name fit to publish: the last part of a path, on one line."""
    return Path(" ".join(plain(path or "unknown").split())).name
