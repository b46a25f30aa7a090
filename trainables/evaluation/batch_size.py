"""A batch size for models without gradients that is halved where it does not fit on the device."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
log = logging.getLogger(__name__)
EVALUATION_BATCH = 128  # sequences at a time, to begin with


class BatchSize:
    """A number of sequences at a time that is halved, and stays halved, where it does not fit.

    No result depends on it, but for the rounding of padded sums: see `draws`.
    """

    def __init__(self, size: int = EVALUATION_BATCH) -> None:
        self.size = size

    def run(self, compute: Callable[[int], T]) -> T:
        """Return `compute(size)` at the largest size that fits.

        Raises:
            torch.OutOfMemoryError: one sequence at a time does not fit.
        """
        while True:
            try:
                return compute(self.size)
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            # Outside of the handler: its traceback holds the tensors that did not fit.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            half = self.size // 2
            log.warning(
                "out of device memory with %d answers at a time: continuing with %d",
                self.size,
                half,
            )
            self.size = half
