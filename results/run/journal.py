"""Read a search's Optuna journal without touching it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import Study, load_study

from results.run.files import parse_once
from search_spaces.errors import UserError

STUDY_NAME = "search"


class ReadOnlyJournal(BaseJournalBackend):
    """A journal file that is only read: never created, locked or written.

    Optuna's own file backend creates a missing file and fails at a torn line in the middle. Here
    reading ends before the first line that is not a record: later ones count trials from it.
    """

    def __init__(self, path: Path) -> None:
        self.damaged_line: int | None = None
        self._records: list[dict[str, Any]] = []
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or "op_code" not in record:
                self.damaged_line = number
                break
            self._records.append(record)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the records from the given number on."""
        return self._records[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse: results only read."""
        raise RuntimeError("the journal of a run is read-only here")


@parse_once(4)
def open_study(path: Path) -> tuple[Study | None, int | None]:
    """Open the study `search` of a journal file.

    Returns:
        The study, or None where the search has not begun; and the number of the first damaged line.

    Raises:
        UserError: the file is not a journal of Optuna.
    """
    if not path.is_file():
        return None, None
    try:
        journal = ReadOnlyJournal(path)
        storage = JournalStorage(journal)
        if any(study.study_name == STUDY_NAME for study in storage.get_all_studies()):
            return load_study(study_name=STUDY_NAME, storage=storage), journal.damaged_line
    except (OSError, LookupError, TypeError, AttributeError, ValueError, OptunaError) as error:
        # What replaying records raises when they are somebody else's, or one is missing between.
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is not a journal that Optuna can read ({reason}); restore it from a copy."
        ) from error
    if journal.damaged_line is None and not journal.read_logs(0):
        return None, None  # the study has yet to be created
    if journal.damaged_line is None:
        raise UserError(
            f"{path} holds no study called {STUDY_NAME!r}, so it is not a search's journal; "
            "restore it from a copy."
        )
    raise UserError(
        f"{path} is damaged from line {journal.damaged_line}, before any trial; restore it from "
        "a copy, or start the search again."
    )
