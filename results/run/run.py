"""Open a run folder: its trials, measures, decisions and verdict, as far as they are there."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from results.run import layout, schema_checks
from results.run.commands import command_line
from results.run.files import damaged_lines, read_json, read_lines, read_records, read_yaml
from results.run.lock import driven
from results.run.schema_checks import Decision, Record, RungMeasures, Sample
from results.run.trial import Trial, read_trial
from search_spaces.errors import UserError


@dataclass(frozen=True)
class Run:
    """A run folder; nothing here writes to it.

    Attributes:
        folder: the folder.
        info: its `run.json`.
        unwritten_verdict: one that is not on the disk yet: `best/`, with its card, comes first.
    """

    folder: Path
    info: dict[str, Any]
    unwritten_verdict: Mapping[str, Any] | None = None

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
        """The state in `run.json`, or `crashed` where it says active and no process drives it."""
        state = str(self.info.get("state") or "crashed")
        return "crashed" if state in layout.ACTIVE and not driven(self.folder) else state

    @property
    def active(self) -> bool:
        """Whether the search still moves."""
        return self.state in layout.ACTIVE

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The resolved search; empty where it was never written."""
        path = self.folder / layout.SPEC
        spec = read_yaml(path) or {}
        schema_checks.check(path, spec, schema_checks.Spec)
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
    def limits(self) -> dict[str, dict[str, Any]]:
        """The search's limits by measure, each a mapping with `min` or `max`."""
        constraints = (self.spec.get("objective") or {}).get("constraints") or {}
        return {name: bound or {} for name, bound in constraints.items()}

    @property
    def unit(self) -> str:
        """The unit of the budget and of the rungs in the journal: `pairs` or `steps`."""
        return "steps" if (self.spec.get("budget") or {}).get("steps") else "pairs"

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
        from results.run.journal import open_study

        study, damaged = open_study(self.folder / layout.JOURNAL)
        return (study.get_trials(deepcopy=False) if study else []), damaged

    def trials(self) -> list[Trial]:
        """Every trial of the journal by number, with the last line of its measures."""
        return self._trials

    @cached_property
    def _trials(self) -> list[Trial]:
        in_steps = self.unit == "steps"
        return [
            read_trial(frozen, self.measures(frozen.number), in_steps) for frozen in self._study[0]
        ]

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
        return self.folder / layout.TRIALS / str(number)

    def measures(self, number: int) -> list[dict[str, Any]]:
        """A trial's measures, a record for each rung."""
        return read_records(self.trial_folder(number) / layout.MEASURES, RungMeasures)[0]

    def samples(self, number: int) -> list[dict[str, Any]]:
        """A trial's sampled answers."""
        return read_lines(self.trial_folder(number) / layout.SAMPLES, Sample)[0]

    def decisions(self) -> list[dict[str, Any]]:
        """Every rung decision with the values it was made from, in the order they were made."""
        return read_records(self.folder / layout.DECISIONS, Decision)[0]

    def verdict(self) -> dict[str, Any] | None:
        """The verdict, or None before there is one."""
        if self.unwritten_verdict is not None:
            return dict(self.unwritten_verdict)
        path = self.folder / layout.VERDICT
        if verdict := read_json(path):
            passing = verdict.get("passing") is True
            model = schema_checks.PassingVerdict if passing else schema_checks.Verdict
            schema_checks.check(path, verdict, model)
        return verdict

    def full(self) -> dict[str, Any] | None:
        """What training the winner on all pairs came to.

        None before it, and where more trials have made another one the winner since.
        """
        path = self.folder / layout.FULL_VERDICT
        if full := read_json(path):
            schema_checks.check(path, full, schema_checks.Full)
        winner = (self.verdict() or {}).get("winner")
        return full if full and full.get("trial") == winner else None

    def data_report(self) -> dict[str, Any] | None:
        """What was loaded, dropped and truncated, or None before the data are prepared."""
        path = self.folder / layout.DATA_REPORT
        if report := read_json(path):
            schema_checks.check(path, report, schema_checks.DataReport)
        return report

    @property
    def best(self) -> Path | None:
        """The folder of the winner's model, where there is one."""
        folder = self.folder / layout.BEST
        return folder if (folder / "config.json").is_file() else None

    def reference_model(self) -> str:
        """Folder or Hub id of the model that the search started from.

        After an SFT pass that is the pass's output; else the spec's model, as a local folder where
        the run recorded one that this machine has.
        """
        sft = (self.info.get("prepared") or {}).get("sft")
        if sft and (folder := self.storage / layout.PREPARED / str(sft) / "model").is_dir():
            return str(folder)
        model = self.info.get("model") or {}
        recorded = model.get("folder")
        if recorded and Path(recorded).is_dir():
            return str(recorded)
        path = str(model.get("path") or self.spec.get("model") or "")
        if path == "quickstart":
            return str(Path(__file__).resolve().parents[2] / "trainables" / "quickstart" / "base")
        if not path:
            raise UserError(f"Run {self.name} does not say which model it started from.")
        return path

    def reference_tokenizer(self) -> Path | None:
        """The prepared tokenizer with the run's chat template, where it is still there."""
        data = (self.info.get("prepared") or {}).get("data")
        folder = self.storage / layout.PREPARED / str(data) / "tokenizer"
        return folder if data and folder.is_dir() else None

    def missing(self) -> list[str]:
        """Say what a crashed, stopped or damaged run lacks, a sentence each."""
        return list(_missing(self))


def check_info(folder: Path, info: Mapping[str, Any]) -> None:
    written = info.get("format", layout.FORMAT)
    if not isinstance(written, int) or written > layout.FORMAT:
        raise UserError(
            f"{folder} was written in format {written!r}, and this preftune reads up to "
            f"{layout.FORMAT}; update preftune."
        )
    schema_checks.check(folder / layout.INFO, info, schema_checks.Info)


def _missing(run: Run) -> list[str]:
    missing: list[str] = []
    if not run.info:
        missing.append("run.json is missing: state, versions and times are unknown")
    if run.state == "crashed":
        missing.append(
            f"the process ended while {run.info.get('state') or 'in an unknown state'}; "
            f"`{command_line('resume', run.folder)}` continues from there"
        )
    for name, what in (
        (layout.SPEC, "the search itself is unknown"),
        (layout.DATA_REPORT, "what was dropped from the data is unknown"),
        (layout.JOURNAL, "there are no trials"),
    ):
        if not (run.folder / name).is_file():
            missing.append(f"{name} is missing: {what}")
    if (line := run.damaged_journal_line) is not None:
        missing.append(f"study.journal is damaged at line {line}: trials after it are not shown")
    files: list[tuple[Path, type[Record]]] = [(run.folder / layout.DECISIONS, Decision)]
    for trial in run.trials():
        path = run.trial_folder(trial.number) / layout.MEASURES
        files.append((run.trial_folder(trial.number) / layout.SAMPLES, Sample))
        if path.is_file():
            files.append((path, RungMeasures))
        elif trial.state in ("complete", "stopped"):
            missing.append(
                f"trial {trial.number} has no measures.jsonl: only its objective is known"
            )
    for path, model in files:
        for number in damaged_lines(path, model):
            missing.append(f"{path.relative_to(run.folder)} cannot be read at line {number}")
    unfinished = [str(t.number) for t in run.trials() if t.state == "running"]
    if unfinished and not run.active:
        missing.append(f"trials without an end: {', '.join(unfinished)}")
    verdict = run.verdict()
    if verdict is None and not run.active:
        missing.append("verdict.json is missing: nothing was verified on the test split")
    if verdict and verdict.get("passing") and run.best is None:
        missing.append("best/ is missing although the verdict passes: there is no model to publish")
    return missing
