"""Leaderboard, verdict, data and head of a run as plain data, which pages and tables render."""

import math

from results.run.layout import STATES
from results.run.run import Run
from results.run.trial import Trial


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
