"""What is said in public of one trial: figures, parameters, and names without local paths."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.errors import UserError
from results.run import Run
from results.words import plain

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[a-z0-9][\w.-]*")


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


def hub_id(path: object) -> str | None:
    """The Hub id of a spec's model or data set; None for a local one and for the quickstart."""
    text = str(path or "")
    if text == "quickstart" or not HUB_ID.fullmatch(text) or Path(text).exists():
        return None
    # A file name is no Hub id: `pairs.jsonl` in the folder of the run may be gone by now.
    return None if Path(text).suffix in (".parquet", ".jsonl", ".gz", ".py") else text


def base_id(run: Run) -> str | None:
    """The Hub id of the base model; None for a local one, which may be spelt like an id.

    A run that took its base from the Hub says at which commit.
    """
    model = run.info.get("model") or {}
    known = model.get("revision", "not said") is not None
    return hub_id(model.get("path") or run.spec.get("model")) if known else None


def dataset_id(run: Run) -> str | None:
    """The Hub id of the data set; None for a local one, as for `base_id`."""
    source = (run.data_report() or {}).get("source") or {}
    known = source.get("revision", "not said") is not None
    return hub_id((run.spec.get("dataset") or {}).get("path")) if known else None


def public_name(path: object) -> str:
    """A name fit to publish: of a local path only the last part, on one line."""
    text = " ".join(plain(path or "unknown").split())
    return text if hub_id(text) else Path(text).name
