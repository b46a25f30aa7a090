"""The front of the objective against KL, and what other budgets would have chosen."""

from dataclasses import replace

import pytest

from results.pareto import Point, choices, front
from results.run.run import Run
from results.run.trial import Trial
from results.tables import _other_budgets


def point(trial: int, kl: float, value: float) -> Point:
    return Point(trial, 1600, kl, value, True, True)


def test_front_by_hand() -> None:
    """Trial 2 costs more KL than 1 and wins less; 4 wins as much as 3 for more."""
    points = [point(3, 9, 0.7), point(1, 2, 0.6), point(2, 5, 0.55), point(4, 12, 0.7)]
    assert [p.trial for p in front(points, maximize=True)] == [1, 3]
    assert [p.trial for p in front(points, maximize=False)] == [1, 2]
    assert front([], maximize=True) == []


def trial(number: int, state: str, pairs: int, kl: float | None, win_rate: float | None) -> Trial:
    broken = {"kl": kl - 20.0} if kl is not None and kl > 20 else {}
    measures = {"kl": kl, "win_rate": win_rate}
    return Trial(
        number, state, None, None, {}, win_rate, pairs, constraints=broken, measures=measures
    )


TRIALS = [
    trial(0, "complete", 1600, 4.0, 0.60),
    trial(1, "complete", 1600, 15.0, 0.70),
    trial(2, "infeasible", 533, 30.0, 0.75),  # for its KL alone, at its second rung
    trial(3, "infeasible", 178, 300.0, 0.80),
    trial(4, "stopped", 178, 1.0, 0.90),  # ASHA stopped it: it never used its budget
    trial(5, "failed", 0, None, None),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Run:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(Run, "trials", lambda self: TRIALS)
    spec = "objective: {metric: win_rate, constraints: {kl: {max: 20}}}\n"
    (tmp_path / "spec.yaml").write_text(spec)
    return Run(tmp_path, {})


def test_choices_under_half_the_limit_the_limit_and_twice_of_it(run: Run) -> None:
    found = [(c.budget, c.point.trial, c.point.pairs) for c in choices(run) if c.point]
    assert found == [(10.0, 0, 1600), (20.0, 1, 1600), (40.0, 2, 533)]


def test_other_budgets_in_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _other_budgets(run) == (
        "By the validation split the best is, under kl ≤ 10 trial 0 (win_rate 0.600, kl 4.0); "
        "kl ≤ 20 trial 1 (win_rate 0.700, kl 15.0); kl ≤ 40 trial 2 (win_rate 0.750, kl 30.0, "
        "ended at 533 pairs)."
    )
    monkeypatch.setattr(Run, "trials", lambda self: TRIALS[:1])
    assert _other_budgets(run) == (
        "By the validation split the best is trial 0 (win_rate 0.600, kl 4.0) under kl ≤ 10, "
        "kl ≤ 20, kl ≤ 40."
    )
    monkeypatch.setattr(Run, "trials", lambda self: TRIALS[1:2])
    assert _other_budgets(run).startswith(  # type: ignore[union-attr]
        "By the validation split the best is, under kl ≤ 10 no trial; kl ≤ 20 trial 1 ("
    )


def test_budget_under_which_nothing_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "trials", lambda self: TRIALS[1:2])
    assert [c.point and c.point.trial for c in choices(run)] == [None, 1, 1]


def test_broken_limit_on_something_else_is_no_choice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = replace(TRIALS[2], constraints={"kl": 10.0, "ended": 0.2})
    monkeypatch.setattr(Run, "trials", lambda self: [torn])
    assert [c.point for c in choices(run)] == [None, None, None]


def test_search_without_a_limit_on_kl_has_no_budgets(run: Run) -> None:
    (run.folder / "spec.yaml").write_text("objective: {metric: win_rate, constraints: {kl: {}}}\n")
    assert choices(Run(run.folder, {})) == []
