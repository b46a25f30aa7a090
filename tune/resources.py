"""What one trial asks Ray for: a CPU, and a GPU or the share of one that its memory needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from search_spaces.spec import Spec
from trainables.errors import UserError
from trainables.prepared import Prepared
from tune.cluster import Cluster, Shipment

# Left free on a shared device: CUDA contexts of the other trials, and what the allocator cannot
# fill.
HEADROOM = 0.1
MOST_ON_ONE_GPU = 8


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

    def words(self) -> str:
        """Return what a trial gets, in words."""
        gpu = f", {self.gpu:.2g} of a GPU" if self.gpu else ""
        return f"{self.cpu:g} CPU{'s' if self.cpu != 1 else ''}{gpu} each"


def fraction(peak: int, total: int) -> float:
    """Return the share of a GPU for trials that peak at `peak` of its `total` bytes: 1 / n for n.

    Raises:
        UserError: one trial does not fit.
    """
    room = total * (1 - HEADROOM)
    if peak > room:
        raise UserError(
            f"one trial needs {peak / 2**30:.1f} GiB of GPU memory and the device has "
            f"{total / 2**30:.1f}: lower per_device_train_batch_size or max_length, turn "
            "gradient_checkpointing on, or use LoRA"
        )
    return 1 / min(MOST_ON_ONE_GPU, math.floor(room / peak))


def share(spec: Spec, cluster: Cluster, prepared: Prepared, sent: Shipment) -> Share:
    """Plan what a trial gets and how many run at once.

    Raises:
        UserError: the spec asks for more than there is.
    """
    cpu, asked = spec.resources.cpu, spec.resources.gpu
    if cpu > cluster.cpus:
        raise UserError(
            f"resources.cpu: {cpu:g} is more than the {cluster.cpus:g} CPUs there are: lower it"
        )
    if asked == "auto":
        gpu = probe(spec, prepared, sent) if cluster.gpus else 0.0
    elif asked > 0 and not cluster.gpus:
        raise UserError(
            f"resources.gpu: {asked:g}, and Ray sees no GPU: set it to auto or 0, or give the "
            "--address of a cluster that has one"
        )
    else:
        gpu = float(asked)
    fit = math.floor(cluster.cpus / cpu)
    if gpu:
        # Ray never splits one trial over two devices: whole GPUs times trials on each.
        fit = min(fit, math.floor(cluster.gpus) * math.floor(1 / gpu + 1e-9))
    return Share(cpu, gpu, max(1, min(fit, spec.search.concurrent or fit)))


def widest(spec: Spec) -> dict[str, Any]:
    """Return the configuration of the space that needs the most memory:

    every number at its largest.
    """
    params: dict[str, Any] = {}
    for name, domain in spec.space.items():
        values = domain.values
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        params[name] = max(numbers) if len(numbers) == len(values) else values[0]
    return params


def probe(spec: Spec, prepared: Prepared, sent: Shipment) -> float:
    """Train a few steps of the widest configuration on one GPU and return the share that its peak
    asks for.
    """

    @ray.remote(num_cpus=1, num_gpus=1, max_retries=0)
    def measure(params: Mapping[str, Any]) -> tuple[int, int] | UserError:
        import torch

        from trainables.dpo import peak_of_a_step

        try:
            peak = peak_of_a_step(spec, params, prepared.at(sent.here))
        except torch.OutOfMemoryError:
            return UserError("one step of one pair does not fit on the GPU")
        return peak, torch.cuda.get_device_properties(0).total_memory

    result = ray.get(measure.remote(widest(spec)))
    if isinstance(result, UserError):
        raise result
    return fraction(*result)
