"""Set the limits of `pair_loss` on some configurations and charge them on others."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bench.measures import Measure, chosen
from bench.replay import Curves
from search_spaces.objective import LIMITS

SPLITS = 200
Limits = Mapping[str, Mapping[str, float]]
# From loose to tight: among limits of equal regret the loosest are set.
KL = (20.0, 15.0, 10.0, 7.0, 5.0, 3.0)
CHOSEN_DRIFT = (-0.5, -0.1, 0.0, 0.02)
REPETITION = (0.5, 0.2, 0.1)
ENDED = (0.1, 0.5, 0.9)


def candidates() -> Iterator[Limits]:
    """Yield every combination of limits, the loosest first."""
    combinations = itertools.product(KL, CHOSEN_DRIFT, REPETITION, ENDED)
    for kl, drift, repetition, ended in combinations:
        yield {
            "kl": {"max": kl},
            "chosen_drift": {"min": drift},
            "repetition": {"max": repetition},
            "ended": {"min": ended},
        }


def regret(curves: Curves, limits: Limits) -> float:
    """Return what choosing by `pair_loss` under the limits loses, in points of judged score."""
    line = chosen(curves, Measure("", "pair_loss", -1, limits))
    return 100 * (curves.best - (line["truth"] if line else 0.0))


def part(curves: Curves, lines: Sequence[dict[str, Any]]) -> Curves:
    """Return some of the curves as if no others had been recorded."""
    some = object.__new__(Curves)
    some.__dict__.update(curves.__dict__)
    some.lines = list(lines)
    some.best = max(line["truth"] for line in lines)
    return some


def cross_validated(curves: Curves) -> dict[str, np.ndarray]:
    """Return the regrets on halves that the limits were not set on, in points, `(SPLITS,)` each."""
    generator = np.random.default_rng(0)
    found: dict[str, list[float]] = {"set on the other half": [], "as shipped": [], "none": []}
    for _ in range(SPLITS):
        order = generator.permutation(len(curves.lines))
        halves = [
            part(curves, [curves.lines[i] for i in half]) for half in np.array_split(order, 2)
        ]
        best = min(candidates(), key=lambda limits: regret(halves[0], limits))
        found["set on the other half"].append(regret(halves[1], best))
        found["as shipped"].append(regret(halves[1], LIMITS["pair_loss"]))
        found["none"].append(regret(halves[1], {}))
    return {name: np.array(values) for name, values in found.items()}
