"""The share of a node that one trial gets, and its arithmetic."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Of a shared device, left free: a trial takes a little more than a probe of a few steps can see.
HEADROOM = 0.1
MOST_ON_ONE_GPU = 8


@dataclass(frozen=True)
class Node:
    """The CPUs and GPUs of one node, as Ray counts them."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Share:
    """What one trial gets.

    Attributes:
        cpu: CPUs, as Ray counts them.
        gpu: share of one GPU, 0 without one.
        concurrent: trials that run at once.
    """

    cpu: float
    gpu: float
    concurrent: int

    def described(self) -> str:
        """Return what a trial gets, in words."""
        gpu = f", {self.gpu:.2g} of a GPU" if self.gpu else ""
        return f"{self.cpu:g} CPU{'s' if self.cpu != 1 else ''}{gpu} each"


def capacity(nodes: Iterable[Node], cpu: float, gpu: float) -> int:
    """Return how many trials run at once: each on one node, and on one GPU of it at most.

    Args:
        nodes: of the cluster.
        cpu: CPUs of a trial.
        gpu: share of one GPU that a trial gets, 0 for none.
    """
    fit = 0
    for node in nodes:
        by_cpu = math.floor(node.cpus / cpu + 1e-9)
        by_gpu = math.floor(node.gpus) * math.floor(1 / gpu + 1e-9) if gpu else by_cpu
        fit += min(by_cpu, by_gpu)
    return fit


def fraction(needed: int, total: int) -> float:
    """Return the share of a GPU for trials that need `needed` of its `total` bytes: 1 / n for n."""
    fit = math.floor(total * (1 - HEADROOM) / needed)
    return 1 / max(1, min(MOST_ON_ONE_GPU, fit))


def allocatable(gpu: float) -> float:
    """Return the part of a device's memory that a trial with a share of it may allocate.

    Less than the share, unless it has the device for itself: each process has a CUDA context
    beside what it allocates.
    """
    return gpu * (1 - HEADROOM) if gpu < 1 else 1.0
