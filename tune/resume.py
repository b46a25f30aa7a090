"""Reopen a run folder to resume the search, with more trials or minutes; stop a running search."""

import math
import os
import socket
from typing import Any

from rich.console import Console

from results.run import layout
from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.spec import Spec, load
from trainables.artifacts import write_text
from tune.record import Record, claim, resume_command

MOST_TRIALS = 1_000_000  # to add at once; more is a slip of the keyboard
MOST_MINUTES = 1_000_000.0  # two years


def reopened(
    name: str | None, storage: str, trials: str | None, minutes: str | None, console: Console
) -> tuple[Spec, Record] | None:
    """Return the search to resume, or None when there is nothing left to do.

    Args:
        name: the run; None takes the newest.
        storage: where run folders live.
        trials: `+N`, how many trials to add.
        minutes: `+N`, how many minutes to add to `search.minutes`.
        console: says when there is nothing to do.

    Raises:
        UserError: the run is driven by another process, or lacks what is needed to resume it.
    """
    run = open_run(name, storage)
    try:
        # The lock, not the state and the process number in run.json, says whether a process drives
        # the run: numbers are used again, and host names change.
        lock = claim(run.folder)
        path = run.folder / layout.SPEC
        if not path.exists():
            raise UserError(f"run {run.name} has no spec.yaml and cannot resume: start a new run")
        spec = load(str(path))
        if run.state == "done" and trials is None:
            console.print(
                f"Run {run.name} is done; add trials with "
                f"`{resume_command(run.folder)} --trials +10`.",
                highlight=False,
                markup=False,
            )
            return None
        longer = _longer(spec, trials, minutes)
        record = Record(run.folder, lock)
        _check_journal(run, record)
        if longer != spec:
            write_text(path, longer.to_yaml())
        (run.folder / layout.STOP).unlink(missing_ok=True)
        # Format and name are missing if run.json was lost.
        known = {"format": layout.FORMAT, "name": run.name, **record.info}
        record.update(**{**known, "pid": os.getpid(), "host": socket.gethostname(), "error": None})
    except OSError as error:
        raise UserError(
            f"run {run.name} cannot be written ({error}): fix the storage, then try again"
        ) from error
    return longer, record


def _longer(spec: Spec, trials: str | None, minutes: str | None) -> Spec:
    """Return the search with the trials and minutes that the user adds."""
    more: dict[str, Any] = {}
    if trials is not None:
        more["trials"] = spec.trials + _trials(trials)
    if minutes is not None:
        if spec.search.minutes is None:
            raise UserError(
                f"--minutes {minutes}: the search has no limit in time (search.minutes is not "
                "set). Leave --minutes out"
            )
        more["minutes"] = spec.search.minutes + _minutes(minutes)
    return spec.model_copy(update={"search": spec.search.model_copy(update=more)})


def _trials(text: str) -> int:
    try:
        trials = int(text)
    except ValueError:
        trials = 0
    if not 1 <= trials <= MOST_TRIALS:
        raise UserError(
            f"--trials {text}: the number of trials to add must be a whole number from 1 to "
            f"{MOST_TRIALS:,}, such as +10"
        )
    return trials


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= MOST_MINUTES:
        raise UserError(
            f"--minutes {text}: the minutes to add must be a number above 0 and at most "
            f"{MOST_MINUTES:,.0f}, such as +60"
        )
    return minutes


def _check_journal(run: Run, record: Record) -> None:
    """Refuse a journal from which the search cannot resume, before anything is started.

    Raises:
        UserError: it is damaged, or gone although decisions have been made.
    """
    path = run.folder / layout.JOURNAL
    if run.damaged_journal_line is not None:
        raise UserError(
            f"{path} is damaged at line {run.damaged_journal_line}: restore it from a copy, or cut "
            "the file off before that line to resume from the records above it"
        )
    if record.decisions and not run.trials():
        raise UserError(
            f"{path} holds no trials, but decisions.jsonl beside it has decisions about some: "
            "restore it from a copy, or start a new run"
        )


def request_stop(name: str | None, storage: str, console: Console) -> None:
    """Ask a running search to stop: its trials pause at their next rungs.

    Raises:
        UserError: the run is not running.
    """
    run = open_run(name, storage)
    if not run.active:
        raise UserError(
            f"run {run.name} is not running, so there is nothing to stop: its state is "
            f"{run.state!r}"
        )
    write_text(run.folder / layout.STOP, "")
    console.print(
        f"Run {run.name} stops at the next rungs of its trials, which are paused then; finalists "
        f"that it has are verified. `{resume_command(run.folder)}` continues the search.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
