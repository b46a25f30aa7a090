"""How a configuration spends its budget: batches, steps, rungs and the order of the pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.spec import Spec


@dataclass(frozen=True)
class Plan:
    """How a configuration spends its budget.

    Attributes:
        micro_batch: pairs in one forward pass.
        accumulation: forward passes in one optimizer step.
        steps: optimizer steps of the full budget.
        rung_steps: the step at which each rung is reached.
    """

    micro_batch: int
    accumulation: int
    steps: int
    rung_steps: tuple[int, ...]

    @property
    def effective_batch(self) -> int:
        """Pairs in one optimizer step."""
        return self.micro_batch * self.accumulation

    def halved(self) -> "Plan | None":
        """Return a plan of the same batch in smaller micro-batches, or None if one pair is left."""
        if self.micro_batch == 1:
            return None
        divisor = next(d for d in range(2, self.micro_batch + 1) if self.micro_batch % d == 0)
        return Plan(
            self.micro_batch // divisor, self.accumulation * divisor, self.steps, self.rung_steps
        )


def plan(spec: Spec, params: Mapping[str, Any]) -> Plan:
    """Return how `params` spends the budget: steps to a rung = ceil(pairs / effective batch)."""
    configuration = spec.configuration(params)
    micro, accumulation = configuration.micro_batch, configuration.accumulation
    if spec.budget.steps is not None:
        return Plan(micro, accumulation, spec.budget.steps, (spec.budget.steps,))
    steps = tuple(math.ceil(pairs / (micro * accumulation)) for pairs in spec.rungs_pairs)
    return Plan(micro, accumulation, steps[-1], steps)


def in_order(rows: int, pairs: int, seed: int) -> np.ndarray:
    """Return the row numbers of the first `pairs` pairs of training, int64 `(pairs,)`.

    Epoch after epoch of seeded permutations: it does not depend on the batch size, so at every rung
        trials of all batch sizes have seen the same pairs.
    """
    generator = np.random.default_rng(seed)
    epochs = [generator.permutation(rows) for _ in range(math.ceil(pairs / rows))]
    return np.concatenate(epochs)[:pairs]
