"""The driver writes every measure and decision to the run folder before anything acts on it."""

import json
import os
import platform
import re
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from results.run import layout
from results.run.commands import command_line
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import json_text, write_bytes, write_json, write_text
from trainables.trial_report import Report
from tune.asha import Decision

NAME = re.compile(r"[^\W_][\w.-]{0,99}")  # of a run: a word to type, wherever commands name it
TAKEN_NAMES = (
    layout.PREPARED,
    "latest",
)  # a folder beside the runs; the newest run
REPORTED_VERSIONS = (
    "preftune torch transformers trl peft accelerate datasets ray optuna huggingface_hub numpy"
).split()


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON-lines file; a last line that a crash cut does not count.

    Raises:
        UserError: another line is not a JSON object.
    """
    if not path.exists():
        return []
    # Not `splitlines`: what a model writes may hold U+2028, at which that would split it.
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        try:
            value = json.loads(line) if line.strip() else {}
        except ValueError as error:
            raise damaged_line(path, number) from error
        if not isinstance(value, dict):
            raise damaged_line(path, number)
        lines += [value] if value else []
    return lines


def damaged_line(path: Path, number: int) -> UserError:
    """Return the error about a line from which the run cannot resume."""
    return UserError(f"{path} is damaged at line {number}: restore it from a copy")


def read_decisions(folder: Path) -> list[Decision]:
    """Return a run's rung decisions, in order.

    Raises:
        UserError: a line is damaged.
    """
    path = folder / layout.DECISIONS
    decisions = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            decisions.append(Decision(**line))
        except TypeError as error:  # a key too many or too few
            raise damaged_line(path, number) from error
    return decisions


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line of JSON and wait until it is on the disk."""
    with path.open("ab") as file:
        file.write((json_text(value) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def drop_partial_line(path: Path) -> None:
    """Cut off a last line that a crash left incomplete, so that the next one starts on its own."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def create(spec: Spec, label: str, exact: bool, command: str) -> "Record":
    """Make a run folder under the search's storage.

    Args:
        spec: the resolved search.
        label: name of the folder.
        exact: the label is the user's own; else the time is added, and a number where that is not
            enough.
        command: what the user typed.

    Raises:
        UserError: there is a run of that name, or the storage cannot be written.
    """
    storage = Path(spec.storage)
    if not NAME.fullmatch(label) or (exact and label in TAKEN_NAMES):
        raise UserError(
            f"--name {label!r}: a run's name is one plain folder name of at most 100 letters, "
            f"digits, `-`, `_` and `.`, begins with none of the signs, and is not "
            f"{' or '.join(TAKEN_NAMES)}"
            if exact
            else f"{label!r} cannot be a run's name, which is letters, digits, `-`, `_` and `.`: "
            "give one with --name"
        )
    candidates = [label]
    if not exact:
        stem = f"{label}-{datetime.now():%m%d-%H%M%S}"
        candidates = [stem, *(f"{stem}-{i}" for i in range(2, 100))]
    folder = storage
    try:
        storage.mkdir(parents=True, exist_ok=True)
        for name in candidates:
            folder = storage / name
            with suppress(FileExistsError):
                folder.mkdir()
                break
        else:
            raise UserError(
                f"there is a run called {label!r} in {storage} already: choose another --name, or "
                f"resume it with `{resume_command(folder)}`"
            )
        record = Record(folder, claim(folder))
        (folder / layout.TRIALS).mkdir()
        write_text(folder / layout.SPEC, spec.to_yaml())
        record.update(
            format=layout.FORMAT,
            name=folder.name,
            state="preparing",
            error=None,
            command=command,
            pid=os.getpid(),
            host=socket.gethostname(),
            created=now(),
            ended=None,
            seconds={},
            versions={"python": platform.python_version()}
            | {package: version(package) for package in REPORTED_VERSIONS},
            commit=_commit(),
            seeds={"search": spec.search.seed, "split": spec.dataset.seed},
        )
    except OSError as error:
        raise UserError(
            f"cannot write to the storage {str(storage)!r} ({error.strerror}): set storage to a "
            "folder you own, with room in it"
        ) from error
    return record


def place_of(folder: Path, name: str) -> str:
    """Return the absolute path or the URI of a checkpoint that a run's journal names."""
    return name if "://" in name else str(folder.absolute() / name)


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run."""
    return command_line("resume", folder)


def claim(folder: Path) -> FileLock:
    """Take a run folder for this process, until it ends or lets go.

    Raises:
        UserError: another process has it.
        OSError: the folder cannot be written.
    """
    lock = FileLock(folder / layout.LOCK)
    try:
        # A reader that asks who drives the run holds the lock for microseconds.
        lock.acquire(timeout=1, poll_interval=0.02)
    except Timeout:
        info = _info(folder)
        process = f"process {info.get('pid')} on {info.get('host')}"
        # No stop ends `preftune train`, the other command that takes a run.
        way = (
            f"being trained by {process}: wait until it has ended"
            if info.get("state") in layout.ENDED
            else f"running ({process}): end it with `{command_line('stop', folder)}` first"
        )
        raise UserError(f"run {folder.name} is {way}") from None
    return lock


def _info(folder: Path) -> dict[str, Any]:
    path = folder / layout.INFO
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _commit() -> str | None:
    """Return the commit of this checkout of preftune, or None where it is not one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


class Record:
    """Writes one run folder; the only process that does.

    Attributes:
        folder: the run folder.
        decisions: all rung decisions so far, in order.
    """

    def __init__(self, folder: Path, lock: FileLock | None = None) -> None:
        """Open the record of a run.

        Args:
            folder: the run folder.
            lock: of `claim`, held for as long as the record is.
        """
        self.folder = folder
        self.lock = lock
        drop_partial_line(folder / layout.DECISIONS)
        self.decisions = read_decisions(folder)

    @property
    def info(self) -> dict[str, Any]:
        """What `run.json` says now."""
        return _info(self.folder)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each stage has taken so far."""
        return dict(self.info.get("seconds") or {})

    def update(self, **facts: Any) -> None:
        """Change keys of `run.json`."""
        write_json(self.folder / layout.INFO, {**self.info, **facts})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to a stage; a resumed stage counts all its parts."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - started, 1)
            self.update(seconds=seconds)

    def trial_folder(self, number: int) -> Path:
        """Return `trials/<n>/`, made if need be."""
        folder = self.folder / layout.TRIALS / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def measured(self, number: int, report: Report, broken: Iterable[str]) -> None:
        """Write what a trial measured at a rung.

        A rung measured again after a crash replaces itself.
        """
        assert report.rung is not None and report.deltas is not None
        folder = self.trial_folder(number)
        broken = list(broken)
        line = {
            "rung": report.rung,
            "pairs": report.pairs,
            "step": report.step,
            "feasible": not broken,
            "broken": broken,
            **report.measures,
        }
        lines = [old for old in read_lines(folder / layout.MEASURES) if old["rung"] < report.rung]
        deltas = self.deltas(number)
        samples = [
            old for old in read_lines(folder / layout.SAMPLES) if old["pairs"] < report.pairs
        ]
        deltas[f"rung{report.rung}"] = report.deltas
        samples += [{**sample, "pairs": report.pairs} for sample in report.samples]
        buffer = BytesIO()
        np.savez_compressed(buffer, **deltas)  # type: ignore[arg-type]  # its stub has no **arrays
        write_bytes(folder / layout.DELTAS, buffer.getvalue())
        _write_lines(folder / layout.SAMPLES, samples)
        _write_lines(folder / layout.MEASURES, [*lines, line])

    def deltas(self, number: int) -> dict[str, np.ndarray]:
        """Return the per-pair Δ of each rung of a trial."""
        path = self.folder / layout.TRIALS / str(number) / layout.DELTAS
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def measures(self, number: int) -> list[dict[str, Any]]:
        """Return a trial's measures, one dict for each rung."""
        return read_lines(self.folder / layout.TRIALS / str(number) / layout.MEASURES)

    def log(self, number: int, text: str) -> None:
        """Append to a trial's log."""
        if text:
            with (self.trial_folder(number) / layout.LOG).open("a", encoding="utf-8") as file:
                file.write(text)

    def decided(self, decision: Decision) -> None:
        """Append a rung decision."""
        append_line(self.folder / layout.DECISIONS, asdict(decision))
        self.decisions.append(decision)

    def take_over(self, decisions: Sequence[Decision]) -> None:
        """Begin with an earlier run's decisions; none of this one's has been made yet."""
        _write_lines(self.folder / layout.DECISIONS, [asdict(decision) for decision in decisions])
        self.decisions = list(decisions)

    def last_decision(self, number: int) -> Decision | None:
        """Return the newest decision about a trial."""
        return next((d for d in reversed(self.decisions) if d.trial == number), None)


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json_text(line) + "\n" for line in lines))
