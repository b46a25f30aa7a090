"""The rungs of a search as a scheduler of Ray Tune: a thin adapter round `tune.rungs`."""

import math
import time
from pathlib import Path
from typing import Any

import ray
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.errors import UserError
from tune.cluster.checkpoint_storage import Checkpoints
from tune.cluster.preemption import Preemption
from tune.ray_internals import DriverOnly, actor_of
from tune.rungs import Rungs


class RungScheduler(DriverOnly, FIFOScheduler):
    """Hands the reports of trials to the rungs; ends trials that hang or die too often.

    Attributes:
        last_report: when each running trial, by Ray's id, reported last; monotonic seconds.
        stuck: Ray's ids of the trials that hung and were killed.
    """

    def __init__(
        self, rungs: Rungs, checkpoints: Checkpoints, preemption: Preemption, stuck_minutes: float
    ) -> None:
        """Take the rungs and what concerns the processes of trials.

        Args:
            rungs: decide what a report leads to.
            checkpoints: the run's.
            preemption: what to do when the cluster takes the machine away.
            stuck_minutes: a trial without a report for so long is ended.
        """
        super().__init__()
        self.rungs = rungs
        self.study = rungs.study
        self.checkpoints = checkpoints
        self.preemption = preemption
        self.stuck_minutes = stuck_minutes
        self.last_report: dict[str, float] = {}
        self.stuck: set[str] = set()

    def choose_trial_to_run(self, controller: Any) -> RayTrial | None:
        """Choose as Ray does.

        Ray asks at every step, so this is where hanging trials are ended, and a search that is
        told to end.
        """
        if self.preemption.announced:
            live = controller.get_live_trials()
            self.preemption.leave([t.trial_id for t in live if t.status == RayTrial.RUNNING])
            return None
        now = time.monotonic()
        for trial in list(controller.get_live_trials()):
            if trial.status != RayTrial.RUNNING:
                self.last_report.pop(trial.trial_id, None)
            elif now - self.last_report.setdefault(trial.trial_id, now) > 60 * self.stuck_minutes:
                self._end_stuck(trial)
        return super().choose_trial_to_run(controller)

    def _end_stuck(self, trial: RayTrial) -> None:
        minutes = self.stuck_minutes
        cause = f"no report for {minutes:g} minutes (search.stuck_minutes): its process was ended"
        if not self._ended(trial):
            self.study.tell(trial.config["number"], "error", cause)
        self.stuck.add(trial.trial_id)
        self.last_report[trial.trial_id] = math.inf
        trial.max_failures = 0  # it would hang again
        ray.kill(actor_of(trial))

    def on_trial_error(self, controller: Any, trial: RayTrial) -> None:
        """Note that the process of a trial died, and fail the trial after too many deaths.

        A process that dies between its last report and its end has lost nothing: the study knows
        how the trial ended, or that it is paused.
        """
        number: int = trial.config["number"]
        deaths, allowed = trial.num_failures, trial.max_failures
        if trial.trial_id in self.stuck or self._ended(trial):
            return
        self.study.note(number, restarts=min(deaths, allowed))
        if deaths > allowed:
            # Ray counts a checkpoint that cannot be fetched as a death: ask whether any can.
            self.checkpoints.attempts()
            cause = f"its process died {deaths} times, the last time because {_cause(trial)}"
            self.study.tell(number, "error", cause)
        else:
            # Ray learns of a checkpoint by a call of its own to the worker, after the report that
            # the study has it from: one that dies in between would leave Ray without its first.
            trial.config["resume_from"] = self.study.checkpoint(number)

    def on_trial_result(self, controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Return Ray's word for what the trial does next."""
        if trial.trial_id in self.stuck:  # its last report crossed with the order to end it
            return str(TrialScheduler.CONTINUE)
        self.last_report[trial.trial_id] = time.monotonic()
        if "storage" in result:
            raise UserError(result["storage"])
        number: int = trial.config["number"]
        checkpoint = result.get("checkpoint_dir_name")
        facts = {"device": result["device"], "node": result["node"]}
        if checkpoint:
            facts["checkpoint"] = self.checkpoints.name(f"{trial.path}/{checkpoint}")
        self.study.note(number, **facts)
        continues = self.rungs.reported(number, result["report"])
        if checkpoint:
            self.preemption.saved(trial.trial_id)
        if continues:
            return str(TrialScheduler.CONTINUE)
        # Ray stops it only after one more call to its worker, and would start it again if that
        # died meanwhile.
        trial.max_failures = 0
        return str(TrialScheduler.STOP)

    def _ended(self, trial: RayTrial) -> bool:
        number: int = trial.config["number"]
        return self.study.trial(number).state.is_finished() or self.study.paused(number)


def _cause(trial: RayTrial) -> str:
    """Return Ray's reason for the last death of a trial's process, without its advice."""
    text = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure #")[2]
    reason = text.partition("The actor is dead because ")[2] or text.partition("\n")[2]
    return " ".join(reason.partition("Some common causes")[0].split())
