"""What the limits of `pair_loss` are worth, and whether they hold where they were not set.

python -m bench.calibration
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from bench.curves import LEARNING_RATES
from bench.measures import JUDGED, MEASURES, UNJUDGED, Measure, regret
from bench.replay import Curves

Limits = Mapping[str, Mapping[str, float]]
# From loose to tight: among limits of equal regret the loosest are set.
KL = (40.0, 30.0, 20.0, 15.0, 10.0, 5.0)
CHOSEN_DRIFT = (-0.5, -0.2, -0.1, 0.0)
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


def part(curves: Curves, lines: Sequence[dict[str, Any]]) -> Curves:
    """Return some of the curves as if no others had been recorded."""
    some = copy(curves)
    some.lines = list(lines)
    some.best = max(line["truth"] for line in lines)
    return some


def subspaces(curves: Curves) -> list[Curves]:
    """Return the parts that a narrower search might have had for its whole space.

    Each loss or all of them, with each beta or all of them; every learning rate.
    """
    found = []
    names = ("loss_type", "beta")
    values = [
        [*{str(line["params"][name]): line["params"][name] for line in curves.lines}.values()]
        for name in names
    ]
    for wanted in itertools.product(*([*some, None] for some in values)):
        asked = [(n, w) for n, w in zip(names, wanted, strict=True) if w is not None]
        lines = [one for one in curves.lines if all(one["params"][n] == w for n, w in asked)]
        found.append(part(curves, lines))
    return found


def by_pair_loss(limits: Limits) -> Measure:
    """Return the choice by `pair_loss` under some limits."""
    return Measure("", "pair_loss", -1, limits)


def over_subspaces(curves: Curves) -> dict[str, np.ndarray]:
    """Return the regret in each subspace, in points, `(subspaces,)`, of each way to choose."""
    trl = {measure.label: measure for measure in MEASURES if measure.key.startswith("trl.")}
    ways = {
        "win_rate under its limit": Measure("", "win_rate", 1, JUDGED),
        "pair_loss under its limits": by_pair_loss(UNJUDGED),
        "pair_loss under that on kl alone": by_pair_loss({"kl": UNJUDGED["kl"]}),
        "pair_loss under the other three": by_pair_loss(
            {name: bound for name, bound in UNJUDGED.items() if name != "kl"}
        ),
        "pair_loss without limits": by_pair_loss({}),
        **trl,
    }
    parts = subspaces(curves)
    return {
        name: np.array([regret(some, measure) for some in parts]) for name, measure in ways.items()
    }


def over_kl(curves: Curves) -> dict[str, np.ndarray]:
    """Return the regret of `pair_loss` in each subspace under each limit on `kl` and no other."""
    parts = subspaces(curves)
    return {
        f"{limit:g}": np.array(
            [regret(some, by_pair_loss({"kl": {"max": limit}})) for some in parts]
        )
        for limit in (5.0, 10.0, 15.0, 20.0, 25.0, 40.0)
    }


def left_out(curves: Curves) -> dict[str, np.ndarray]:
    """Return regrets where the limits were not set, in points, `(losses * betas,)`.

    Each pair of a loss and a beta is left out in turn: limits are set on the others, by their mean
    regret there, and charged with their regret in the one that they have not seen.
    """
    cells = [some for some in subspaces(curves) if len(some.lines) == len(LEARNING_RATES)]
    regrets = np.array(
        [[regret(cell, by_pair_loss(limits)) for cell in cells] for limits in candidates()]
    )
    set_on_others = []
    for number in range(len(cells)):
        others = np.delete(regrets, number, axis=1).mean(axis=1)
        set_on_others.append(regrets[others.argmin(), number])  # the first of equals: the loosest
    shipped, none = (
        np.array([regret(cell, by_pair_loss(limits)) for cell in cells])
        for limits in (UNJUDGED, {})
    )
    return {
        "set on the others": np.array(set_on_others),
        "as shipped (set on all of them)": shipped,
        "none": none,
    }


def main() -> None:
    """Print the tables."""
    curves = Curves()
    for table in (over_subspaces(curves), over_kl(curves), left_out(curves)):
        for name, regrets in table.items():
            print(f"{name}: mean {regrets.mean():.1f}, worst {regrets.max():.1f}")  # noqa: T201


if __name__ == "__main__":
    main()
