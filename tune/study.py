"""Optuna's journal as the record of a search."""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from results.run import layout
from results.run.journal import ReadOnlyJournal
from search_spaces.choices import decode, encode
from search_spaces.errors import UserError
from search_spaces.objective import MOST, WORST, Bound, Objective
from search_spaces.optuna_space import distributions, grid
from search_spaces.spec import Spec
from tune.record import drop_partial_line, place_of

STUDY = "search"
TAKEN_FROM = "taken_from"  # marks a trial of an earlier run: `search.warm_start`
NOT_FINITE = "finite"  # the constraint that a NaN or infinite objective breaks
ABSOLUTE = "absolute_violations"  # the study's attribute: trials from before they were relative


def _first_points(spec: Spec) -> list[dict[str, Any]]:
    """Return `search.try_first`, then the points of a grid, each once and as Optuna stores it."""
    points = [*spec.search.try_first]
    if spec.search.sampler == "grid":
        points += grid(spec.space)
    unique: dict[Hashable, dict[str, Any]] = {}
    for point in points:
        stored = {name: encode(name, value) for name, value in point.items()}
        unique.setdefault(tuple(sorted(stored.items())), stored)
    return list(unique.values())


def relative(distances: Mapping[str, float], objective: Objective) -> dict[str, float]:
    """Return the violations that an older version stored as distances from their bounds."""
    violations = {}
    for name, distance in distances.items():
        bound = objective.constraints.get(name, Bound())
        ends = [abs(end) for end in (bound.min, bound.max) if end]
        known = name != NOT_FINITE and distance < WORST
        violations[name] = min(MOST, distance / max(ends, default=1.0)) if known else WORST
    return violations


class Study:
    """The journal of a search: asks for configurations, records what became of them.

    Attributes:
        study: the Optuna study.
    """

    def __init__(self, spec: Spec, folder: Path, earlier: Sequence[FrozenTrial] = ()) -> None:
        """Open the journal of a run, or begin it.

        Args:
            spec: the resolved search.
            folder: the run folder.
            earlier: finished trials of another run, which come first.
        """
        self.spec = spec
        self.folder = folder.absolute()
        drop_partial_line(folder / layout.JOURNAL)  # the next record would end up inside it
        path = str(folder / layout.JOURNAL)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            # An open-file lock: the default one leaves a dangling symbolic link behind when a
            # driver is killed.
            lock = JournalFileOpenLock(path)
            storage = JournalStorage(JournalFileBackend(path, lock_obj=lock))
            self.study = optuna.create_study(
                storage=storage,
                study_name=STUDY,
                direction=spec.objective.direction,
                load_if_exists=True,
            )
        except ValueError as error:
            line = ReadOnlyJournal(Path(path)).damaged_line
            raise UserError(
                f"{path} is damaged at line {line}: cut the file off before that line to resume "
                "from the records above it"
            ) from error
        self.distributions = distributions(spec.space)
        self._rescale()
        # Not those that a driver which was killed has added already.
        for trial in earlier[len(self.trials()) :]:
            self.study.add_trial(trial)
        self.points = _first_points(spec)

    def _rescale(self) -> None:
        """Make violations relative that an older version stored as distances, 1.0 for a NaN.

        In memory alone, since Optuna does not change trials that have ended; the study's attribute
        names them, so that every later driver does the same.
        """
        if ABSOLUTE not in self.study.user_attrs:
            older = [trial.number for trial in self.trials() if trial.constraints]
            self.study.set_user_attr(ABSOLUTE, older)
        for number in self.study.user_attrs[ABSOLUTE]:
            trial = self.trial(number)
            for name, value in relative(trial.constraints, self.spec.objective).items():
                trial.system_attrs[f"constraints:{name}"] = value

    def _sampler(self, number: int) -> BaseSampler:
        """Return a sampler whose random state depends on the seed and the trial's number alone.

        So a search that is resumed, in a new process, asks for what it would have asked for.
        """
        sequence = np.random.SeedSequence([self.spec.search.seed, number])
        seed = int(sequence.generate_state(1)[0])
        if self.spec.search.sampler != "tpe":
            return RandomSampler(seed=seed)
        startup = max(4, min(10, (self.spec.search.trials or 10) // 3))
        with warnings.catch_warnings():
            # Both options are marked experimental upstream; each is what its documentation advises
            # for correlated parameters and for workers in parallel.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup
            )

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return the number and the configuration of the next trial.

        Each of the first points is queued when its turn comes: Optuna would store a whole grid
        record by record, and look through it at every trial. An older version queued all at once,
        and a driver may be killed between the two steps: what is queued comes first.
        """
        number = self._numbered()
        own = len(self.trials()) - self.taken()
        if number == len(self.trials()) and own < len(self.points):
            self.study.enqueue_trial(self.points[own])
        self.study.sampler = self._sampler(number)
        trial = self.study.ask(self.distributions)
        return trial.number, self.params(trial.params)

    def ask_again(self, number: int) -> dict[str, Any]:
        """Return the configuration of an unfinished trial, which is paused no longer.

        What a driver that was killed while it asked had not stored yet is drawn as it would have
        been.
        """
        if self.paused(number):
            self.note(number, paused=None)
        self.study.sampler = self._sampler(number)
        trial = self._live(number)
        for name, distribution in self.distributions.items():
            trial._suggest(name, distribution)  # as `Study.ask` does; keeps what is stored
        return self.params(trial.params)

    def params(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return a stored configuration as the trial wants it: lists are stored as text."""
        return {name: decode(name, value) for name, value in stored.items()}

    def trials(self) -> list[FrozenTrial]:
        """Return every trial so far."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """Return one trial."""
        return self.trials()[number]

    def checkpoint(self, number: int) -> str | None:
        """Return the path or URI of a trial's newest checkpoint, if it has written one."""
        name: str | None = self.trial(number).user_attrs.get("checkpoint")
        return None if name is None else place_of(self.folder, name)

    def started(self) -> int:
        """Return how many trials this search has asked for."""
        return self._numbered() - self.taken()

    def taken(self) -> int:
        """Return how many trials come from an earlier run."""
        return sum(TAKEN_FROM in trial.user_attrs for trial in self.trials())

    def _numbered(self) -> int:
        return sum(trial.state != TrialState.WAITING for trial in self.trials())

    def unfinished(self) -> list[int]:
        """Return the trials that have been asked for and have not ended, paused ones included."""
        return [trial.number for trial in self.trials() if trial.state == TrialState.RUNNING]

    def paused(self, number: int) -> bool:
        """Say whether the search was over before a trial could reach its last rung."""
        return bool(self.trial(number).user_attrs.get("paused"))

    def pause(self, why: str) -> None:
        """Mark every unfinished trial as paused, by `stop` or by `time`."""
        for number in self.unfinished():
            if not self.paused(number):
                self.note(number, paused=why)

    def _live(self, number: int) -> Trial:
        return Trial(self.study, self.trial(number)._trial_id)

    def note(self, number: int, **attributes: Any) -> None:
        """Store user attributes of a trial."""
        live = self._live(number)
        for name, value in attributes.items():
            live.set_user_attr(name, value)

    def measured(self, number: int, pairs: int, measures: Mapping[str, float | None]) -> list[str]:
        """Record the objective at a rung; return a phrase for each limit that is broken there."""
        live = self._live(number)
        value = measures.get(self.spec.objective.metric)
        broken = []
        if value is None or not math.isfinite(value):
            broken.append(f"{self.spec.objective.metric} is {value}")
            live.set_constraint(NOT_FINITE, WORST)
        elif pairs not in self.trial(number).intermediate_values:
            live.report(value, step=pairs)
        for name, bound in self.spec.objective.constraints.items():
            measure = measures.get(name)
            violation = bound.violation(measure)
            if violation > 0:
                below = bound.min is not None and measure is not None and measure < bound.min
                limit = f"< {bound.min:g}" if below or bound.max is None else f"> {bound.max:g}"
                shown = "not known" if measure is None else f"{measure:.3g}"
                broken.append(f"{name} {shown} {limit}")
                live.set_constraint(name, violation)
        return broken

    def diverged(self, number: int) -> None:
        """Record that training broke down."""
        self._live(number).set_constraint(NOT_FINITE, WORST)

    def tell(self, number: int, ended_by: str, cause: str | None) -> None:
        """End a trial.

        Args:
            number: the trial.
            ended_by: `budget`, `asha`, `constraint`, `nan` or `error`.
            cause: a sentence, where there is something to explain.
        """
        self.note(number, ended_by=ended_by, **({"cause": cause} if cause else {}))
        values = self.trial(number).intermediate_values
        if ended_by == "budget":
            self.study.tell(number, values[max(values)])
        else:
            state = TrialState.FAIL if ended_by == "error" else TrialState.PRUNED
            self.study.tell(number, state=state)

    def finalists(self, count: int) -> list[FrozenTrial]:
        """Return the best feasible trials that reached the last rung, best first.

        Not those of an earlier run that has removed their weights.
        """
        complete = [
            trial
            for trial in self.trials()
            if trial.state == TrialState.COMPLETE
            and (TAKEN_FROM not in trial.user_attrs or "checkpoint" in trial.user_attrs)
        ]
        reverse = self.spec.objective.direction == "maximize"
        return sorted(complete, key=lambda trial: trial.value or 0.0, reverse=reverse)[:count]
