"""Which pairs the reference scores: those that a search trains on or measures."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from search_spaces.spec import Spec
from trainables.budget import in_order


def most_pairs(spec: Spec) -> int:
    """Return a number of pairs that no configuration exceeds: its last batch is a whole one."""
    fixed = spec.configuration({})
    largest = 1
    for name, value in (
        ("per_device_train_batch_size", fixed.micro_batch),
        ("gradient_accumulation_steps", fixed.accumulation),
    ):
        domain = spec.space.get(name)
        largest *= value if domain is None else max(domain.values)
    if spec.budget.steps is not None:
        return spec.budget.steps * largest
    assert spec.budget.pairs is not None
    return spec.budget.pairs + largest - 1


def training_rows(rows: int, pairs: int, seeds: Iterable[int]) -> np.ndarray:
    """Return the positions that are among the first `pairs` with any of the seeds, sorted, int64.

    Args:
        rows: how many training pairs there are.
        pairs: how many a training sees.
        seeds: of the order of the pairs, see `in_order`.
    """
    if pairs >= rows:
        return np.arange(rows)
    return np.unique(np.concatenate([in_order(rows, pairs, seed) for seed in seeds]))


def test_rows(prompts: Sequence[Hashable], sampled: int, pairs: int) -> np.ndarray:
    """Return the positions of the test pairs to measure, sorted, int64.

    A pair of each sampled prompt always, then these prompts' other pairs, then the rest, each from
    the first: answers and pairs are of the same prompts as far as the number allows it.

    Args:
        prompts: of each pair of the split.
        sampled: how many distinct prompts, from the first, get a sampled answer.
        pairs: how many to measure; more where there are more sampled prompts.
    """
    first = {prompt: position for position, prompt in reversed(list(enumerate(prompts)))}
    chosen = set(list(dict.fromkeys(prompts))[:sampled])
    rank = [2 if p not in chosen else int(first[p] != i) for i, p in enumerate(prompts)]
    order = np.argsort(rank, kind="stable")
    return np.sort(order[: max(pairs, len(chosen))])
