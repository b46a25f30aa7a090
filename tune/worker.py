"""What a Ray worker sets up before it trains: threads, the share of a device, the judge."""

import gc
from functools import cache

from search_spaces.spec import Spec
from trainables.judges import Judge
from trainables.judges.load import load_judge
from tune.cluster.share import Share, allocatable
from tune.cluster.shipping import Shipment


def ready(
    spec: Spec, share: Share, sent: Shipment, judge_revision: str | None
) -> tuple[Judge | None, str]:
    """Limit this process to its share; return the judge and the device's name.

    Raises:
        UserError: the judge cannot be loaded, or the device lacks the precision asked for.
    """
    import torch

    from trainables.devices import device_and_dtype

    _freeze_imports()
    device, _ = device_and_dtype(spec.precision)
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        # A trial that outgrows its share fails alone, instead of taking its neighbours' memory.
        torch.cuda.set_per_process_memory_fraction(allocatable(share.gpu or 1.0))
    else:
        torch.set_num_threads(max(1, int(share.cpu)))
    if spec.judge is None:
        return None, name
    return load_judge(sent.named(spec.judge), device, judge_revision), name


@cache  # later calls would also freeze what an earlier trial has left, for good
def _freeze_imports() -> None:
    """Take what is imported by now out of all collections of garbage.

    Each goes through hundreds of thousands of objects that stay; accelerate, Ray and the end of a
    trial collect so often that it was a fifth of the time of a small search.
    """
    gc.collect()  # a worker that has prepared something may hold its model still
    gc.freeze()
