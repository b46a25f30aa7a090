"""Optuna under Ray, with honest bookkeeping.

Ray's own `OptunaSearch` tells a stopped trial as COMPLETE with the value of an early rung, and
leaves a trial whose objective is NaN RUNNING for good; both mislead the sampler. Here a stopped
trial is PRUNED and keeps its intermediate values, an infeasible one is PRUNED with the constraints
it broke, and a broken one FAILs.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.search import Searcher

from results.journal import ReadOnlyJournal
from search_spaces.sampling import decode, distributions, encode, grid
from search_spaces.spec import Bound, Spec
from trainables.errors import UserError
from tune.checkpoints import place_of
from tune.driver_only import DriverOnly
from tune.record import drop_partial_line

STUDY = "search"
RESTARTS = 2  # of a trial whose process died
TAKEN_FROM = "taken_from"  # marks a trial of an earlier run: `search.warm_start`
NOT_FINITE = "finite"  # the constraint that a NaN or infinite objective breaks


def excess(bound: Bound, value: float | None) -> float:
    """Return by how much a measure breaks a bound;

    zero or less is feasible. An unknown or NaN measure breaks it.
    """
    if value is None or math.isnan(value):
        return math.inf
    over = -math.inf if bound.max is None else value - bound.max
    under = -math.inf if bound.min is None else bound.min - value
    return max(over, under)


class Study:
    """The journal of a search: asks for configurations, records what became of them.

    Attributes:
        study: the Optuna study.
    """

    def __init__(self, spec: Spec, folder: Path, earlier: Sequence[FrozenTrial] = ()) -> None:
        """Args:
        spec: the resolved search.
        folder: the run folder.
        earlier: finished trials of another run, which come first.
        """
        self.spec = spec
        self.folder = folder.absolute()
        drop_partial_line(folder / "study.journal")  # the next record would end up inside it
        path = str(folder / "study.journal")
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
                f"{path} is damaged at line {line}: cut the file off before that line to go on "
                "from what stands above it"
            ) from error
        self.distributions = distributions(spec.space)
        # Not those that a driver which was killed has added already.
        for trial in earlier[len(self.trials()) :]:
            self.study.add_trial(trial)
        self._enqueue()

    def _enqueue(self) -> None:
        points = [dict(point) for point in self.spec.search.try_first]
        if self.spec.search.sampler == "grid":
            points += [point for point in grid(self.spec.space) if point not in points]
        if len(self.trials()) - self.taken() >= len(points):
            return
        for point in points:
            fixed = {name: encode(name, value) for name, value in point.items()}
            self.study.enqueue_trial(fixed, skip_if_exists=True)  # by a driver that was killed

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
        """Return the number and the configuration of the next trial."""
        number = self._numbered()
        self.study.sampler = self._sampler(number)
        trial = self.study.ask(self.distributions)
        return trial.number, self.params(trial.params)

    def ask_again(self, number: int) -> dict[str, Any]:
        """Return the configuration of an unfinished trial.

        What a driver that was killed while it asked had not stored yet is drawn as it would have
        been.
        """
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
        """Return the trials that were running when the journal ends."""
        return [trial.number for trial in self.trials() if trial.state == TrialState.RUNNING]

    def _live(self, number: int) -> Trial:
        return Trial(self.study, self.trial(number)._trial_id)

    def note(self, number: int, **attributes: Any) -> None:
        """Store user attributes of a trial."""
        live = self._live(number)
        for name, value in attributes.items():
            live.set_user_attr(name, value)

    def measured(self, number: int, pairs: int, measures: Mapping[str, float | None]) -> list[str]:
        """Record a rung:

        the objective, and which constraints it breaks, in words. None broken: an empty list.
        """
        live = self._live(number)
        value = measures.get(self.spec.objective.metric)
        broken = []
        if value is None or not math.isfinite(value):
            broken.append(f"{self.spec.objective.metric} is {value}")
            live.set_constraint(NOT_FINITE, 1.0)
        elif pairs not in self.trial(number).intermediate_values:
            live.report(value, step=pairs)
        for name, bound in self.spec.objective.constraints.items():
            measure = measures.get(name)
            over = excess(bound, measure)
            if over > 0:
                below = bound.min is not None and measure is not None and measure < bound.min
                limit = f"< {bound.min}" if below or bound.max is None else f"> {bound.max}"
                shown = "not known" if measure is None else f"{measure:.3g}"
                broken.append(f"{name} {shown} {limit}")
                # Optuna stores finite numbers; one that is not known is as broken as can be.
                live.set_constraint(name, min(over, 1e9))
        return broken

    def diverged(self, number: int) -> None:
        """Record that training broke down."""
        self._live(number).set_constraint(NOT_FINITE, 1.0)

    def tell(self, number: int, ended_by: str, cause: str | None) -> None:
        """End a trial.

        Args:
            number: the trial.
            ended_by: `budget`, `asha`, `constraint`, `nan`, `stop`, `time` or `error`.
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


class StudySearcher(DriverOnly, Searcher):
    """Gives Ray Tune the study's configurations; unfinished trials of an earlier driver first."""

    def __init__(
        self, study: Study, total: int, ended: Callable[[], None], over: Callable[[], bool]
    ) -> None:
        super().__init__(metric=None, mode=None)
        self.study = study
        self.total = total
        self.ended = ended
        self.over = over
        self.waiting = study.unfinished()
        self.given: dict[str, int] = {}  # Ray's id of a trial -> its number

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the configuration of a new Ray trial:

        its number, its params, the checkpoint to go on from.
        """
        checkpoint: str | None = None
        if self.waiting:
            number = self.waiting.pop(0)
            params = self.study.ask_again(number)
            checkpoint = self.study.checkpoint(number)
        elif self.over() or self.study.started() >= self.total:
            return str(Searcher.FINISHED)
        else:
            number, params = self.study.ask()
        self.given[trial_id] = number
        return {"number": number, "params": params, "resume_from": checkpoint}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Say that a trial ended; the scheduler has told the study how.

        Ray gives a trial up for good when a used worker dies while taking it over. Such a one comes
        next, in its turn: with one worker, ASHA then decides as if nothing had happened.
        """
        number = self.given[trial_id]
        again = list(self.given.values()).count(number) <= RESTARTS
        if error and again and not self.study.trial(number).state.is_finished():
            self.waiting.insert(0, number)
        self.ended()

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal is the record, and no pickle is an interface."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a resumed search starts a new Tuner on the journal."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing."""
