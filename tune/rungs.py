"""The rules of a search at its rungs, without Ray: a report becomes records and a decision.

The whole state is the list of values recorded at each rung, which `decisions.jsonl` holds: a
resumed search decides as if it had never stopped.
"""

from collections.abc import Callable, Sequence

from search_spaces.objective import Objective
from trainables.trial_report import Report
from tune.asha import REDUCTION_FACTOR, Action, Decision, promoted
from tune.record import Record, now
from tune.study import Study


class Rungs:
    """Records the reports of trials, decides at rungs, and tells the study how a trial ended."""

    def __init__(
        self,
        objective: Objective,
        rungs: Sequence[int],
        early_stopping: bool,
        study: Study,
        record: Record,
        over: Callable[[], str | None] = lambda: None,
        observe: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        """Take the rules of the search and the two places where it is recorded.

        Args:
            objective: the measure that trials are ranked by.
            rungs: the pairs at which trials are measured, up to the budget; none where the budget
                is in steps, whose end is the only rung.
            early_stopping: use ASHA; else every feasible trial continues to the last rung.
            study: the journal.
            record: the run folder.
            over: returns `stop` or `time` when running trials must pause at their next rung.
            observe: is called after each decision.
        """
        self.objective = objective
        self.rungs = list(rungs)
        self.early_stopping = early_stopping
        self.study = study
        self.record = record
        self.over = over
        self.observe = observe

    def reported(self, number: int, report: Report) -> bool:
        """Record a report; return whether the trial continues.

        Everything measured is on the disk before the decision, and the decision before it takes
        effect. A rung that is reported again, after a crash, gets the decision it had; that of a
        paused trial is made anew.
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
        for before in self.record.decisions:
            made = before.trial == number and before.decision != "pause"
            if made and before.rung == report.rung:
                self._tell(before)
                return before.decision == "continue"
        nominal = self.rungs[report.rung] if self.rungs else report.step
        broken = self.study.measured(number, nominal, report.measures)
        self.record.measured(number, report, broken)
        return self._decide(number, report, report.measures.get(self.objective.metric), broken)

    def _decide(
        self, number: int, report: Report, value: float | None, broken: Sequence[str]
    ) -> bool:
        rung = report.rung if report.rung is not None else self._next_rung(report)
        others = self._others(number, rung)
        action, ended_by, reason = self._action(rung, value, others, broken)
        if report.diverged:
            ended_by = "nan"
        decision = Decision(
            time=now(),
            trial=number,
            rung=rung,
            pairs=self.rungs[rung] if self.rungs else report.pairs,
            value=value,
            others=others,
            reduction_factor=REDUCTION_FACTOR,
            direction=self.objective.direction,
            decision=action,
            ended_by=ended_by,
            reason=reason,
        )
        self.record.decided(decision)
        self._tell(decision)
        self.observe(decision)
        return action == "continue"

    def _next_rung(self, report: Report) -> int:
        reached = sum(pairs <= report.pairs for pairs in self.rungs)
        return min(reached, self._last)

    @property
    def _last(self) -> int:
        return max(0, len(self.rungs) - 1)

    def _others(self, number: int, rung: int) -> list[float]:
        """Return the values that the other feasible trials have recorded at a rung.

        One value for each trial: a paused trial records its value again when it continues.
        """
        return list(
            {
                decision.trial: decision.value
                for decision in self.record.decisions
                if decision.rung == rung
                and decision.trial != number
                and decision.decision != "infeasible"
                and decision.value is not None
            }.values()
        )

    def _action(
        self, rung: int, value: float | None, others: Sequence[float], broken: Sequence[str]
    ) -> tuple[Action, str | None, str]:
        """Return the decision, what ended or paused the trial (or None) and the reason."""
        if broken:
            return "infeasible", "constraint", "; ".join(broken)
        if rung == self._last:
            return "complete", "budget", "the budget is used"
        if (over := self.over()) is not None:
            return "pause", over, "the time is up" if over == "time" else "a stop was asked for"
        if not self.early_stopping:
            return "continue", None, "no early stopping"
        assert value is not None  # a missing or NaN objective is infeasible
        where = f"the best third of {len(others) + 1} at this rung"
        if promoted(value, others, self.objective.direction):
            return "continue", None, f"in {where}"
        return "stop", "asha", f"not in {where}"

    def _tell(self, decision: Decision) -> None:
        if decision.decision == "pause":
            self.study.note(decision.trial, paused=decision.ended_by)
        elif decision.ended_by is not None:
            explained = decision.ended_by not in ("budget", "asha")
            cause = decision.reason if explained else None
            self.study.tell(decision.trial, decision.ended_by, cause)
