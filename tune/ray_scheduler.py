"""ASHA over pairs seen: which trials go on at a rung.

The rule is Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the
form that stops trials where the paper pauses them. Its whole state is the list of values recorded
at each rung, which `decisions.jsonl` holds: a search that is resumed decides as if it had never
stopped.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.trial_report import Report
from tune.asha import REDUCTION_FACTOR, goes_on
from tune.cluster.checkpoint_storage import Checkpoints
from tune.cluster.preemption import Notice
from tune.ray_internals import DriverOnly
from tune.record import Decision, Record, Verdict, now
from tune.study import Study


class RungScheduler(DriverOnly, FIFOScheduler):
    """Records each report of a trial, decides at rungs, and tells the study how a trial ended.

    Attributes:
        heard: when each trial that runs now, by Ray's id, was heard of last; monotonic seconds.
        stuck: Ray's ids of the trials that hung and were killed.
    """

    def __init__(
        self,
        spec: Spec,
        study: Study,
        record: Record,
        checkpoints: Checkpoints,
        over: Callable[[], str | None],
        observe: Callable[[Decision], None],
        notice: Notice,
    ) -> None:
        """Args:
        spec: the resolved search.
        study: the journal.
        record: the run folder.
        checkpoints: the run's.
        over: `stop` or `time` when what runs now has to end at its next rung, else None.
        observe: is called after each decision.
        notice: what to do when the driver is told to end.
        """
        super().__init__()
        self.spec = spec
        self.study = study
        self.record = record
        self.checkpoints = checkpoints
        self.over = over
        self.observe = observe
        self.notice = notice
        self.nominal = spec.rungs_pairs if spec.budget.steps is None else [spec.budget.steps]
        self.heard: dict[str, float] = {}
        self.stuck: set[str] = set()

    def choose_trial_to_run(self, controller: Any) -> RayTrial | None:
        """Choose as Ray does.

        It asks at every step, so this is where hanging trials are ended, and a search that is told
        to end.
        """
        if self.notice.given:
            live = controller.get_live_trials()
            self.notice.leave([t.trial_id for t in live if t.status == RayTrial.RUNNING])
            return None
        now = time.monotonic()
        for trial in list(controller.get_live_trials()):
            if trial.status != RayTrial.RUNNING:
                self.heard.pop(trial.trial_id, None)
            elif now - self.heard.setdefault(trial.trial_id, now) > self._patience:
                self._end_stuck(trial)
        return super().choose_trial_to_run(controller)

    @property
    def _patience(self) -> float:
        return 60 * self.spec.search.stuck_minutes

    def _end_stuck(self, trial: RayTrial) -> None:
        minutes = self.spec.search.stuck_minutes
        cause = f"no report for {minutes:g} minutes (search.stuck_minutes): its process was ended"
        if not self._ended(trial):
            self.study.tell(trial.config["number"], "error", cause)
        self.stuck.add(trial.trial_id)
        self.heard[trial.trial_id] = math.inf
        trial.max_failures = 0  # it would hang again
        ray.kill(trial.temporary_state.ray_actor)

    def on_trial_error(self, controller: Any, trial: RayTrial) -> None:
        """Note that a trial's process died, and tell the study if it was once too often.

        One that dies between its last report and its end has lost nothing: the study was told.
        """
        number: int = trial.config["number"]
        deaths, allowed = trial.num_failures, trial.max_failures
        if trial.trial_id in self.stuck or self._ended(trial):
            return
        self.study.note(number, restarts=min(deaths, allowed))
        if deaths > allowed:
            # Ray counts a checkpoint that cannot be fetched as a death: ask whether any can.
            self.checkpoints.attempts()
            cause = f"its process died {deaths} times, the last time because {_last_words(trial)}"
            self.study.tell(number, "error", cause)

    def on_trial_result(self, controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Answer Ray Tune: go on, or stop."""
        if trial.trial_id in self.stuck:  # its last word crossed with the order to end it
            return str(TrialScheduler.CONTINUE)
        self.heard[trial.trial_id] = time.monotonic()
        if "storage" in result:
            raise UserError(result["storage"])
        number: int = trial.config["number"]
        name = result.get("checkpoint_dir_name")
        facts = {"device": result["device"], "node": result["node"]}
        if name:
            facts["checkpoint"] = self.checkpoints.name(f"{trial.path}/{name}")
        self.study.note(number, **facts)
        on = self.reported(number, result["report"])
        if name:
            self.notice.saved(trial.trial_id)
        if on:
            return str(TrialScheduler.CONTINUE)
        # Ray stops it only after one more call to its worker, and would start it again if that
        # died meanwhile.
        trial.max_failures = 0
        return str(TrialScheduler.STOP)

    def _ended(self, trial: RayTrial) -> bool:
        number: int = trial.config["number"]
        return self.study.trial(number).state.is_finished()

    def reported(self, number: int, report: Report) -> bool:
        """Record a report; return whether the trial goes on.

        Everything measured is on the disk before the decision, and the decision before it takes
        effect. A rung that is reported again, after a crash, gets the decision it had.
        """
        self.record.log(number, report.log)
        if report.halved:
            self.study.note(number, micro_batch=report.micro_batch)
        if report.failed:
            self.study.tell(number, "error", report.failed)
            return False
        if report.diverged:
            self.study.diverged(number)
            return self._decide(number, report, None, [report.diverged])
        if report.rung is None:
            return True
        before = self.record.last_decision(number)
        if before is not None and before.rung >= report.rung:
            if before.rung == report.rung:
                self._tell(before)
            return before.decision == "continue"
        pairs = self.nominal[report.rung]
        broken = self.study.measured(number, pairs, report.measures)
        self.record.measured(number, report, broken)
        return self._decide(number, report, report.measures.get(self.spec.objective.metric), broken)

    def _decide(
        self, number: int, report: Report, value: float | None, broken: Sequence[str]
    ) -> bool:
        reached = sum(pairs <= report.pairs for pairs in self.nominal)
        rung = report.rung if report.rung is not None else min(reached, len(self.nominal) - 1)
        earlier = [
            d.value
            for d in self.record.decisions
            if d.rung == rung and d.decision != "infeasible" and d.value is not None
        ]
        over = self.over()
        verdict: Verdict = "continue"
        ended_by, reason = None, "no early stopping"
        if broken:
            verdict, reason = "infeasible", "; ".join(broken)
            ended_by = "nan" if report.diverged else "constraint"
        elif rung == len(self.nominal) - 1:
            verdict, ended_by, reason = "complete", "budget", "the budget is used"
        elif over is not None:
            verdict, ended_by = "stop", over
            reason = "the time is up" if over == "time" else "a stop was asked for"
        elif self.spec.search.scheduler == "asha":
            assert value is not None  # a missing or NaN objective is infeasible
            best = goes_on(value, earlier, self.spec.objective.direction)
            reason = (
                f"{'in' if best else 'not in'} the best third of {len(earlier) + 1} at this rung"
            )
            if not best:
                verdict, ended_by = "stop", "asha"
        decision = Decision(
            time=now(),
            trial=number,
            rung=rung,
            pairs=self.nominal[rung],
            value=value,
            others=earlier,
            reduction_factor=REDUCTION_FACTOR,
            direction=self.spec.objective.direction,
            decision=verdict,
            ended_by=ended_by,
            reason=reason,
        )
        self.record.decided(decision)
        self._tell(decision)
        self.observe(decision)
        return verdict == "continue"

    def _tell(self, decision: Decision) -> None:
        if decision.ended_by is not None:
            explained = decision.ended_by not in ("budget", "asha")
            cause = decision.reason if explained else None
            self.study.tell(decision.trial, decision.ended_by, cause)


def _last_words(trial: RayTrial) -> str:
    """Return what Ray says of the last death of a trial's process, without its advice."""
    text = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure #")[2]
    reason = text.partition("The actor is dead because ")[2] or text.partition("\n")[2]
    return " ".join(reason.partition("Some common causes")[0].split())
