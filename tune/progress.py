"""A running search on the terminal: a table that updates, or lines where output is a file."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from results.formatting import compact, measure
from search_spaces.spec import Spec
from tune.asha import Decision
from tune.record import Record
from tune.study import TAKEN_FROM, Study

REFRESH_SECONDS = 0.5  # reading the journal more often would cost the driver more than it shows
NEWEST = 8  # decisions that the table shows


class Progress:
    """Shows the stages and decisions of one run.

    Use as a context manager: while it is open, the table updates in place.
    """

    def __init__(self, console: Console, spec: Spec, record: Record, study: Study) -> None:
        self.console = console
        self.spec = spec
        self.record = record
        self.study = study
        self.started = time.monotonic()
        self.finished_before = self._finished(self._states())
        self.shown = 0.0
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.__enter__()
            self.refresh()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.update(self._table(), refresh=True)
            self.live.__exit__(None, None, None)

    def decided(self, decision: Decision) -> None:
        """Show a rung decision."""
        if self.live is None:
            self.console.print(self._line(decision), markup=False, highlight=False, soft_wrap=True)
        self.refresh(now=True)

    def verified(
        self,
        number: int,
        seed: int | None,
        measures: Mapping[str, float | None],
        done: int,
        total: int,
    ) -> None:
        """Show one measurement on the test split."""
        which = "its own checkpoint" if seed is None else f"trained again with seed {seed}"
        names = self._names("kl")
        shown = ", ".join(f"{name} {measure(measures, name)}" for name in names)
        line = f"verifying {done} of {total}: trial {number}, {which}: {shown}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def left_out(self, number: int, why: str) -> None:
        """Say that a trial cannot be verified."""
        line = f"trial {number} is left out of verification: {why}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def refresh(self, now: bool = False) -> None:
        """Draw the table again if the last drawing is old enough."""
        if self.live and (now or time.monotonic() - self.shown > REFRESH_SECONDS):
            self.shown = time.monotonic()
            self.live.update(self._table(), refresh=True)

    def _names(self, *others: str) -> list[str]:
        judged = ["judge_score"] if self.spec.judge else []
        return [self.spec.objective.metric, *judged, *others]

    def _states(self) -> Counter[str]:
        # `stop` and `time` ended trials in older versions, which did not pause them.
        ended = {"budget": "complete", "asha": "stopped", "stop": "stopped", "time": "stopped"}
        ended |= {"constraint": "infeasible", "nan": "infeasible", "error": "failed"}
        states: Counter[str] = Counter()
        for trial in self.study.trials():
            if TAKEN_FROM in trial.user_attrs:
                continue
            if trial.state.is_finished():
                states[ended.get(trial.user_attrs.get("ended_by", "error"), "failed")] += 1
            elif trial.user_attrs.get("paused"):
                states["paused"] += 1
            else:
                states[trial.state.name.lower()] += 1
        return states

    @staticmethod
    def _finished(states: Counter[str]) -> int:
        return sum(states[state] for state in ("complete", "stopped", "infeasible", "failed"))

    def _summary(self) -> str:
        """Return trials by state, best so far and time left, in one line."""
        states = self._states()
        known = ("complete", "stopped", "infeasible", "failed", "running", "paused")
        parts = [f"{states[word]} {word}" for word in known if states[word]]
        done, total = self._finished(states), self.spec.trials
        best = self.study.finalists(1)
        if best:
            metric = self.spec.objective.metric
            parts.append(f"best {metric} {best[0].value:.3f} (trial {best[0].number})")
        elapsed = time.monotonic() - self.started
        new = done - self.finished_before
        if new and done < total:
            parts.append(f"about {_duration(elapsed / new * (total - done))} left")
        return f"{done} of {total} trials: " + ", ".join(parts)

    def _line(self, decision: Decision) -> str:
        measures = self._measures(decision)
        metric = self.spec.objective.metric
        names = dict.fromkeys([metric, "kl", "accuracy"])
        shown = [f"{name} {measure(measures, name)}" for name in names if name in measures]
        params = " ".join(f"{k}={compact(v)}" for k, v in self._params(decision.trial).items())
        measured = ": ".join(["", ", ".join(shown)] if shown else [""])
        steps = f" ({measures['step']} steps)" if self.spec.budget.steps and measures else ""
        return (
            f"trial {decision.trial:>3} at {decision.pairs} pairs{steps}{measured}: "
            f"{decision.decision} ({decision.reason}) [{params}] | {self._summary()}"
        )

    def _measures(self, decision: Decision) -> dict[str, Any]:
        lines = self.record.measures(decision.trial)
        return next((line for line in lines if line["rung"] == decision.rung), {})

    def _params(self, number: int) -> dict[str, Any]:
        return self.study.params(self.study.trial(number).params)

    def _table(self) -> Group:
        names = self._names("kl", "accuracy")
        table = Table("trial", "pairs", *names, "decision", *self.spec.space, box=None)
        for decision in self.record.decisions[-NEWEST:]:
            measures = self._measures(decision)
            params = self._params(decision.trial)
            table.add_row(
                str(decision.trial),
                str(decision.pairs),
                *(measure(measures, name) for name in names),
                decision.ended_by or decision.decision,
                *(compact(params.get(name)) for name in self.spec.space),
            )
        return Group(Text(self._summary(), style="bold"), table)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
