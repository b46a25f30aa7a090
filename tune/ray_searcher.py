"""Optuna under Ray, with honest bookkeeping.

Ray's own `OptunaSearch` tells a stopped trial as COMPLETE with the value of an early rung, and
leaves a trial whose objective is NaN RUNNING for good; both mislead the sampler. Here a stopped
trial is PRUNED and keeps its intermediate values, an infeasible one is PRUNED with the constraints
it broke, and a broken one FAILs.
"""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from tune.ray_internals import DriverOnly
from tune.study import Study

RESTARTS = 2  # of a trial whose process died


class StudySearcher(DriverOnly, Searcher):
    """Gives Ray Tune the study's configurations: unfinished trials of an earlier driver first."""

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
        """Return a trial's number, its params and the checkpoint from which it resumes.

        Nothing once the search is over: what waits is paused.
        """
        checkpoint: str | None = None
        if self.over():
            return str(Searcher.FINISHED)
        if self.waiting:
            number = self.waiting.pop(0)
            params = self.study.ask_again(number)
            checkpoint = self.study.checkpoint(number)
        elif self.study.started() >= self.total:
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
