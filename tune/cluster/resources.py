"""What one trial asks Ray for: a CPU, and a GPU or the share of one that its memory needs."""

import math
from collections.abc import Mapping
from typing import Any

import ray

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.prepared import Prepared
from tune.cluster.connection import Cluster
from tune.cluster.share import Share, fraction
from tune.cluster.shipping import Shipment


def share(spec: Spec, cluster: Cluster, prepared: Prepared, sent: Shipment) -> Share:
    """Plan what a trial gets and how many run at once.

    Raises:
        UserError: the spec asks for more than there is.
    """
    cpu, asked = spec.resources.cpu, spec.resources.gpu
    if cpu > cluster.most_cpus:
        raise UserError(
            f"resources.cpu: {cpu:g} is more than the {cluster.most_cpus:g} CPUs that a node has: "
            "lower it"
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
    """Train a few steps of the widest configuration on one GPU and return the share that what it
    needs there asks for: its peak, the judge and the CUDA context included.
    """

    @ray.remote(num_cpus=1, num_gpus=1, max_retries=0)
    def measure(params: Mapping[str, Any]) -> tuple[int, int] | UserError:
        import torch

        from trainables.memory_probe import peak_of_a_step
        from tune.worker import ready

        try:
            judge, _ = ready(spec, Share(cpu=1, gpu=1, concurrent=1), sent, prepared.judge_revision)
            peak = peak_of_a_step(spec, params, prepared.at(sent.here), judge)
        except torch.OutOfMemoryError:
            return UserError(
                "one pair of the longest does not fit on the GPU: lower max_length, turn "
                "gradient_checkpointing on, or use LoRA"
            )
        except UserError as error:
            return error
        free, total = torch.cuda.mem_get_info()
        # Nothing else runs there now: what is taken and not by the allocator is the context.
        return peak + total - free - torch.cuda.memory_reserved(), total

    result = ray.get(measure.remote(widest(spec)))
    if isinstance(result, UserError):
        raise result
    return fraction(*result)
