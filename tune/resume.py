"""Reopen a run folder:

after a crash, a Ctrl-C, a stop, or for more trials; ask a running one to stop.
"""

import os
import socket

from rich.console import Console

from results.run import layout
from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.spec import Spec, load
from trainables.artifacts import write_text
from tune.record import Record, claim

MOST_TRIALS = 1_000_000  # to add at once; more is a slip of the keyboard


def reopened(
    name: str | None, storage: str, trials: str | None, console: Console
) -> tuple[Spec, Record] | None:
    """Return the search to go on with, or None when there is nothing left to do.

    Args:
        name: the run; None takes the newest.
        storage: where run folders live.
        trials: `+N`, how many trials to add.
        console: is told when there is nothing to do.

    Raises:
        UserError: the run is going on, or lacks what it takes.
    """
    run = open_run(name, storage)
    try:
        return _reopened(run, trials, console)
    except OSError as error:
        raise UserError(
            f"run {run.name} cannot be written ({error}): mend the storage, then try again"
        ) from error


def _reopened(run: Run, trials: str | None, console: Console) -> tuple[Spec, Record] | None:
    # The lock, not the state and the process number in run.json, says whether a process drives the
    # run: numbers are used again, and host names change.
    lock = claim(run.folder)
    path = run.folder / layout.SPEC
    if not path.exists():
        raise UserError(f"run {run.name} has no spec.yaml, so it cannot go on: start a new one")
    spec = load(str(path))
    if run.state == "done" and trials is None:
        console.print(
            f"Run {run.name} is done; add trials with `preftune resume {run.name} --trials +10`.",
            highlight=False,
            markup=False,
        )
        return None
    more = 0 if trials is None else _count(trials)
    record = Record(run.folder, lock)
    _check_journal(run, record)
    if more:
        search = spec.search.model_copy(update={"trials": spec.trials + more})
        spec = spec.model_copy(update={"search": search})
        write_text(path, spec.to_yaml())
    (run.folder / layout.STOP).unlink(missing_ok=True)
    known = {
        "format": layout.FORMAT,
        "name": run.name,
        **record.info,
    }  # if run.json was lost
    record.update(**{**known, "pid": os.getpid(), "host": socket.gethostname(), "error": None})
    return spec, record


def _check_journal(run: Run, record: Record) -> None:
    """Refuse a journal that the search could not go on from, before anything is started.

    Raises:
        UserError: it is damaged, or gone although decisions have been made.
    """
    path = run.folder / layout.JOURNAL
    if run.damaged_journal_line is not None:
        raise UserError(
            f"{path} is damaged at line {run.damaged_journal_line}: restore it from a copy, or cut "
            "the file off before that line to go on from what stands above it"
        )
    if record.decisions and not run.trials():
        raise UserError(
            f"{path} holds no trials, and decisions.jsonl beside it tells of some: restore it from "
            "a copy, or start a new run"
        )


def _count(trials: str) -> int:
    try:
        more = int(trials)
    except ValueError:
        more = 0
    if not 1 <= more <= MOST_TRIALS:
        raise UserError(
            f"--trials {trials}: how many to add is a whole number up to {MOST_TRIALS:,}, such as "
            "+10"
        )
    return more


def request_stop(name: str | None, storage: str, console: Console) -> None:
    """Leave word in the run folder that the search is to end after its next rungs.

    Raises:
        UserError: the run is not going on.
    """
    run: Run = open_run(name, storage)
    if not run.active:
        raise UserError(
            f"run {run.name} is not going on, so there is nothing to stop: its state is "
            f"{run.state!r}"
        )
    write_text(run.folder / layout.STOP, "")
    console.print(
        f"Run {run.name} ends after its next rungs; the finalists so far are verified then.",
        highlight=False,
        markup=False,
    )
