"""Turn a space into what Optuna samples from.

In a spec a choice may be a list (`loss_type: {choice: [[sigmoid], [sigmoid, sft]]}`); Optuna's
categories are text, numbers, booleans and None. `encode` makes one of the other, `decode` takes it
back, and scalars pass through both unchanged.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search_spaces.choices import encode
from search_spaces.domains import Domain


def distributions(space: Mapping[str, Domain]) -> dict[str, BaseDistribution]:
    """Return one Optuna distribution a field, in the space's order; choices are encoded."""
    return {name: _distribution(name, domain) for name, domain in space.items()}


def _distribution(name: str, domain: Domain) -> BaseDistribution:
    if domain.kind == "choice":
        return CategoricalDistribution([encode(name, value) for value in domain.values])
    low, high = domain.values
    if domain.kind in ("int", "logint"):
        return IntDistribution(low, high, log=domain.kind == "logint")
    return FloatDistribution(low, high, log=domain.kind == "loguniform")


def grid(space: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """Return every configuration of choices and whole numbers; the last field varies fastest.

    The values are the spec's own; `encode` them for `study.enqueue_trial`, which is what they are
    for: Optuna's GridSampler raises when the grid is exhausted, and repeats enqueued points.

    Raises:
        ValueError: a range of real numbers has no grid.
    """
    axes = []
    for name, domain in space.items():
        if domain.kind == "choice":
            axes.append(domain.values)
        elif domain.kind == "int":
            axes.append(list(range(domain.values[0], domain.values[1] + 1)))
        else:
            raise ValueError(f"{name}: {domain} has no grid; use a choice or int")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]
