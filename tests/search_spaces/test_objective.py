"""How far outside its limits a measure is: what the sampler compares infeasible trials by."""

import math

import pytest

from search_spaces.objective import CONSTRAINTS, MOST, WORST, Bound


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        (Bound(max=20), 60.0, 2.0),
        (Bound(max=20), 20.0, 0.0),
        (Bound(max=20), -5.0, 0.0),
        (Bound(min=0.1), 0.3, 0.0),
        (Bound(min=0.1), 0.0, 1.0),
        (Bound(min=-0.2), -0.5, 1.5),
        (Bound(min=-3, max=-1), -0.5, 0.5),
        (Bound(min=0, max=1), 3.0, 2.0),
        (Bound(max=0), 0.25, 0.25),  # zero has no scale
        (Bound(min=0), -0.25, 0.25),
        (Bound(max=1e-300), 1e10, MOST),
        (Bound(max=20), None, WORST),
        (Bound(max=20), math.nan, WORST),
        (Bound(max=20), math.inf, WORST),
        (Bound(), math.nan, 0.0),
        (Bound(), None, 0.0),
    ],
)
def test_violation_is_relative_to_the_end_that_is_broken(
    bound: Bound, value: float | None, expected: float
) -> None:
    assert bound.violation(value) == pytest.approx(expected)
    if value is not None and math.isfinite(value):
        assert (bound.violation(value) == 0) is bound.holds(value)


def test_nan_is_worse_than_all_other_limits_broken_together() -> None:
    everything = sum(Bound(max=1e-300).violation(1e300) for _ in CONSTRAINTS)
    assert everything < Bound(max=20).violation(math.nan)
