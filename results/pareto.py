"""What the objective costs in KL: the front of a search, and the choice under other budgets.

Drawn from the records of one study. A multi-objective study would have no pruning, and one search
under a budget has already measured both sides of every trial.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from results.run.run import Run

BUDGETS = (0.5, 1.0, 2.0)  # times the search's own limit on `kl`


@dataclass(frozen=True)
class Point:
    """A trial at the last rung that it reached.

    Attributes:
        trial: its number.
        pairs: pairs seen there.
        kl: nats per answer.
        value: the objective.
        complete: it used its budget of pairs.
        eligible: nothing but the limit on `kl` keeps it from being chosen: it is complete, or was
            ended for its `kl` alone.
    """

    trial: int
    pairs: int
    kl: float
    value: float
    complete: bool
    eligible: bool


@dataclass(frozen=True)
class Choice:
    """What the search would have chosen under a limit on `kl`; `point` is None where nothing."""

    budget: float
    point: Point | None


def points(run: Run) -> list[Point]:
    """Return a point for each trial that was measured, by number."""
    measured = []
    for trial in run.trials():
        kl, value = trial.measures.get("kl"), trial.measures.get(run.metric)
        if kl is None or value is None:
            continue
        broken = {name for name, excess in trial.constraints.items() if not excess <= 0}
        for_kl = trial.state == "infeasible" and broken == {"kl"}
        complete = trial.state == "complete"
        point = Point(
            trial.number, trial.pairs, float(kl), float(value), complete, complete or for_kl
        )
        measured.append(point)
    return measured


def front(points: Sequence[Point], maximize: bool) -> list[Point]:
    """Return the points that no other beats in both: less `kl` and a better value; `kl` rises."""
    sign = -1.0 if maximize else 1.0
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.kl, sign * p.value, p.trial)):
        if not best or sign * point.value < sign * best[-1].value:
            best.append(point)
    return best


def choices(run: Run) -> list[Choice]:
    """Return the choice under half of the search's limit on `kl`, under it and under twice of it.

    Empty where the search does not limit `kl`. What a larger budget would have chosen is known only
    as far as its trials went: one that broke the limit was ended there.
    """
    limit = run.limits.get("kl", {}).get("max")
    if limit is None:
        return []
    eligible = [point for point in points(run) if point.eligible]
    chosen = []
    for budget in (share * limit for share in BUDGETS):
        within = [point for point in eligible if point.kl <= budget]
        best = front(within, run.maximize)[-1:]  # the value improves along a front
        chosen.append(Choice(budget, best[0] if best else None))
    return chosen
