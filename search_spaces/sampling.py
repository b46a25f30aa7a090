"""Turn a space into what Optuna samples from.

In a spec a choice may be a list (`loss_type: {choice: [[sigmoid], [sigmoid, sft]]}`); Optuna's
categories are text, numbers, booleans and None. `encode` makes one of the other, `decode` takes it
back, and scalars pass through both unchanged.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search_spaces.domains import Domain

# Text that starts like JSON is itself written as JSON: decoding is exact for `[qk]_proj` too.
_JSON_STARTS = ("[", "{", '"')

Category = None | bool | int | float | str


def encode(name: str, value: Any) -> Category:
    """Return the form of a field's value that Optuna stores.

    Raises:
        TypeError: the value is neither a scalar nor made of lists and mappings of scalars.
    """
    if isinstance(value, list | dict) or (
        isinstance(value, str) and value.startswith(_JSON_STARTS)
    ):
        return json.dumps(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: {value!r} cannot be a choice")


def decode(name: str, value: Category) -> Any:
    """Return the value that `encode` was given.

    Raises:
        ValueError: the text starts like JSON and is none, so it never came from `encode`.
    """
    if isinstance(value, str) and value.startswith(_JSON_STARTS):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError(
                f"{name}: the study holds {value!r}, which no spec of ours wrote"
            ) from None
    return value


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
