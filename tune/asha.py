"""The ASHA rule: which trials continue at a rung."""

from collections.abc import Sequence

REDUCTION_FACTOR = 3  # the paper's eta; the default rungs are budget / 9, / 3 and / 1


def goes_on(value: float, others: Sequence[float], direction: str) -> bool:
    """Say whether a value is in the top 1 / `REDUCTION_FACTOR` at its rung, itself included.

    At least one value is: the first trial of a rung always goes on, and so does every new best. A
        tie with the last one kept goes on.
    """
    sign = -1.0 if direction == "maximize" else 1.0
    ranked = sorted(sign * other for other in (*others, value))
    keep = max(1, len(ranked) // REDUCTION_FACTOR)
    return sign * value <= ranked[keep - 1]
