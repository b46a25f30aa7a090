"""Open a run folder: its trials, measures, decisions and verdict, as far as they are there."""

import json
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from results import shapes
from results.errors import UserError
from results.files import read_json, read_lines, read_yaml

FORMAT = 1
ACTIVE = ("preparing", "searching", "verifying")
# Best first, as the leaderboard shows them.
STATES = ("complete", "stopped", "running", "infeasible", "failed", "waiting")


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


@dataclass(frozen=True)
class RunSummary:
    """What a list of runs shows, from `run.json` and `verdict.json` alone."""

    name: str
    folder: Path
    state: str
    created: str | None
    model: str | None
    outcome: str | None
    winner: int | None
    sentence: str | None  # the verdict, or why there is none


@dataclass(frozen=True)
class Run:
    """A run folder; `info` is its `run.json`. Nothing here writes to the folder."""

    folder: Path
    info: dict[str, Any]

    @property
    def name(self) -> str:
        """The run's name: its folder's."""
        return self.folder.name

    @property
    def storage(self) -> Path:
        """The folder that holds this run, the other runs and `prepared/`."""
        return self.folder.parent

    @property
    def state(self) -> str:
        """The state in `run.json`, or `crashed` where it says active and the process is gone."""
        return _state(self.info)

    @property
    def active(self) -> bool:
        """Whether the search still moves."""
        return self.state in ACTIVE

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The resolved search; empty where it was never written."""
        path = self.folder / "spec.yaml"
        spec = read_yaml(path) or {}
        shapes.check(path, spec, shapes.SPEC)
        return spec

    @property
    def metric(self) -> str:
        """Name of the objective."""
        objective = self.spec.get("objective") or {}
        return str(objective.get("metric") or "win_rate")

    @property
    def maximize(self) -> bool:
        """Whether more of the objective is better (`pair_loss` is the one where less is)."""
        return self.metric != "pair_loss"

    @property
    def reference(self) -> dict[str, Any]:
        """Measures of the untrained reference on the validation split."""
        return dict((self.info.get("reference") or {}).get("validation") or {})

    @property
    def searched(self) -> list[str]:
        """Names of the searched hyperparameters, in the order of the spec."""
        space = self.spec.get("space") or {}
        seen = [name for trial in self.trials() for name in trial.params]
        return list(dict.fromkeys([*space, *seen]))

    @property
    def damaged_journal_line(self) -> int | None:
        """First line of the journal that is not a record; trials after it are not shown."""
        return self._study[1]

    @cached_property
    def _study(self) -> tuple[list[Any], int | None]:
        # Optuna takes most of a second to import; a list of runs does without it.
        from results.journal import open_study

        study, damaged = open_study(self.folder / "study.journal")
        return (study.get_trials(deepcopy=False) if study else []), damaged

    def trials(self) -> list[Trial]:
        """Every trial of the journal by number, with the last line of its measures."""
        return self._trials

    @cached_property
    def _trials(self) -> list[Trial]:
        return [_trial(frozen, self.measures(frozen.number)) for frozen in self._study[0]]

    def trial(self, number: int) -> Trial:
        """Return one trial.

        Raises:
            UserError: there is no such trial.
        """
        trials = self.trials()
        if not 0 <= number < len(trials):
            have = f"0 to {len(trials) - 1}" if trials else "none yet"
            raise UserError(f"Run {self.name} has no trial {number}; its trials are {have}.")
        return trials[number]

    def trial_folder(self, number: int) -> Path:
        """The folder of one trial, whether it exists or not."""
        return self.folder / "trials" / str(number)

    def measures(self, number: int) -> list[dict[str, Any]]:
        """A trial's measures, a record for each rung."""
        return read_lines(self.trial_folder(number) / "measures.jsonl")[0]

    def samples(self, number: int) -> list[dict[str, Any]]:
        """A trial's sampled answers."""
        return read_lines(self.trial_folder(number) / "samples.jsonl")[0]

    def decisions(self) -> list[dict[str, Any]]:
        """Every rung decision with the values it was made from, in the order they were made."""
        return read_lines(self.folder / "decisions.jsonl")[0]

    def verdict(self) -> dict[str, Any] | None:
        """The verdict, or None before there is one."""
        path = self.folder / "verdict.json"
        if verdict := read_json(path):
            needed = shapes.OF_A_WINNER if verdict.get("passing") else ()
            shapes.check(path, verdict, shapes.VERDICT, needed)
        return verdict

    def full(self) -> dict[str, Any] | None:
        """What training the winner on all pairs came to.

        None before it, and where more trials have made another one the winner since.
        """
        path = self.folder / "full.json"
        if full := read_json(path):
            shapes.check(path, full, shapes.FULL, ("trial", "sentence"))
        winner = (self.verdict() or {}).get("winner")
        return full if full and full.get("trial") == winner else None

    def data_report(self) -> dict[str, Any] | None:
        """What was loaded, dropped and truncated, or None before the data are prepared."""
        path = self.folder / "data_report.json"
        if report := read_json(path):
            shapes.check(path, report, shapes.DATA_REPORT)
        return report

    @property
    def best(self) -> Path | None:
        """The folder of the winner's model, where there is one."""
        folder = self.folder / "best"
        return folder if (folder / "config.json").is_file() else None

    def reference_model(self) -> str:
        """Folder or Hub id of the model that the search started from.

        After an SFT pass that is the pass's output; else the spec's model, as a local folder where
        the run recorded one that this machine has.
        """
        sft = (self.info.get("prepared") or {}).get("sft")
        if sft and (folder := self.storage / "prepared" / str(sft) / "model").is_dir():
            return str(folder)
        model = self.info.get("model") or {}
        recorded = model.get("folder")
        if recorded and Path(recorded).is_dir():
            return str(recorded)
        path = str(model.get("path") or self.spec.get("model") or "")
        if path == "quickstart":
            return str(
                Path(__file__).resolve().parent.parent / "trainables" / "quickstart" / "base"
            )
        if not path:
            raise UserError(f"Run {self.name} does not say which model it started from.")
        return path

    def reference_tokenizer(self) -> Path | None:
        """The prepared tokenizer with the run's chat template, where it is still there."""
        data = (self.info.get("prepared") or {}).get("data")
        folder = self.storage / "prepared" / str(data) / "tokenizer"
        return folder if data and folder.is_dir() else None

    def missing(self) -> list[str]:
        """Say in words what a crashed, stopped or damaged run lacks."""
        return list(_missing(self))


def open_run(path_or_name: str | Path | None = None, storage: str | Path = "runs") -> Run:
    """Open a run by its name in `storage`, by its path, or the newest one (None or `latest`).

    Raises:
        UserError: there is no such run, the folder is not a run, or a newer preftune wrote it.
    """
    storage = Path(storage)
    if path_or_name is None or str(path_or_name) == "latest":
        runs = list_runs(storage)
        if not runs:
            raise UserError(
                f"There is no run in {storage} yet; start one with `preftune run quickstart`."
            )
        folder = runs[0].folder
    else:
        named = storage / str(path_or_name)
        # `Path.expanduser` raises where `~name` names no user.
        folder = named if named.is_dir() else Path(os.path.expanduser(path_or_name))
    if not folder.is_dir():
        names = ", ".join(run.name for run in list_runs(storage)[:5]) or "none"
        raise UserError(f"There is no run {str(path_or_name)!r} in {storage}; there are: {names}.")
    info = read_json(folder / "run.json")
    if info is None and not (folder / "study.journal").is_file():
        raise UserError(
            f"{folder} is not a run of preftune: it has no run.json; see `preftune list`."
        )
    _check(folder, info or {})
    return Run(folder.resolve(), info or {})


def list_runs(storage: str | Path = "runs") -> list[RunSummary]:
    """Every run in `storage`, newest first; a run that cannot be read says so in its sentence.

    Raises:
        UserError: the storage is a file.
    """
    storage = Path(storage)
    if storage.exists() and not storage.is_dir():
        raise UserError(f"--storage {storage} is a file: name the folder that run folders live in.")
    folders = sorted(path.parent for path in storage.glob("*/run.json"))
    summaries = [_summary(folder) for folder in folders if folder.name != "prepared"]
    return sorted(summaries, key=lambda run: run.created or "", reverse=True)


def leaderboard(run: Run) -> list[Trial]:
    """Trials best first: complete by objective, stopped by rung and value, the rest by number."""
    sign = -1.0 if run.maximize else 1.0

    def key(trial: Trial) -> tuple[float, ...]:
        unknown = trial.value is None or math.isnan(trial.value)
        value = math.inf if trial.value is None or unknown else sign * trial.value
        rank = STATES.index(trial.state)
        # Values at different rungs are measures of different things: the rung goes first. Not the
        # pairs seen there, which a batch rounds up.
        rung = max(trial.rungs, default=0)
        return (rank, -rung, value, trial.number) if rank < 3 else (rank, trial.number)

    return sorted(run.trials(), key=key)


def _check(folder: Path, info: Mapping[str, Any]) -> None:
    written = info.get("format", FORMAT)
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(
            f"{folder} was written in format {written!r}, and this preftune reads up to {FORMAT}; "
            "update preftune."
        )
    shapes.check(folder / "run.json", info, shapes.RUN)


def _state(info: Mapping[str, Any]) -> str:
    state = str(info.get("state") or "crashed")
    if state in ACTIVE and info.get("host") == socket.gethostname():
        try:
            os.kill(int(info["pid"]), 0)  # signal 0 only asks whether the process exists
        except (ProcessLookupError, KeyError, TypeError, ValueError):
            return "crashed"
        except PermissionError:
            pass
    return state


def _summary(folder: Path) -> RunSummary:
    try:
        info = read_json(folder / "run.json") or {}
        _check(folder, info)
        verdict = Run(folder, info).verdict() or {}
    except UserError as error:
        return RunSummary(folder.name, folder, "unreadable", None, None, None, None, str(error))
    return RunSummary(
        name=folder.name,
        folder=folder,
        state=_state(info),
        created=info.get("created"),
        model=(info.get("model") or {}).get("path"),
        outcome=verdict.get("outcome"),
        winner=verdict.get("winner"),
        sentence=verdict.get("sentence") or info.get("error"),
    )


def _trial(frozen: Any, measures: list[dict[str, Any]]) -> Trial:
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


def _missing(run: Run) -> list[str]:
    words: list[str] = []
    if not run.info:
        words.append("run.json is missing: state, versions and times are unknown")
    if run.state == "crashed":
        words.append(
            f"the process ended while {run.info.get('state') or 'in an unknown state'}; "
            f"`preftune resume {run.name}` goes on from there"
        )
    for name, what in (
        ("spec.yaml", "the search itself is unknown"),
        ("data_report.json", "what was dropped from the data is unknown"),
        ("study.journal", "there are no trials"),
    ):
        if not (run.folder / name).is_file():
            words.append(f"{name} is missing: {what}")
    if (line := run.damaged_journal_line) is not None:
        words.append(f"study.journal is damaged at line {line}: trials after it are not shown")
    files = [run.folder / "decisions.jsonl"]
    for trial in run.trials():
        path = run.trial_folder(trial.number) / "measures.jsonl"
        if path.is_file():
            files.append(path)
        elif trial.state in ("complete", "stopped"):
            words.append(f"trial {trial.number} has no measures.jsonl: only its objective is known")
    for path in files:
        for number in read_lines(path)[1]:
            words.append(f"{path.relative_to(run.folder)} cannot be read at line {number}")
    unfinished = [str(t.number) for t in run.trials() if t.state == "running"]
    if unfinished and not run.active:
        words.append(f"trials without an end: {', '.join(unfinished)}")
    verdict = run.verdict()
    if verdict is None and not run.active:
        words.append("verdict.json is missing: nothing was verified on the test split")
    if verdict and verdict.get("passing") and run.best is None:
        words.append("best/ is missing although the verdict passes: there is no model to publish")
    return words
