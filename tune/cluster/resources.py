"""The plan of what one trial asks Ray for: CPUs, and a GPU or the part of one that it needs."""

import ray

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.prepared import Prepared
from tune.cluster.connection import Cluster
from tune.cluster.share import Share, capacity, fraction
from tune.cluster.shipping import Shipment
from tune.worker import memory_of_a_trial


def plan_share(spec: Spec, cluster: Cluster, prepared: Prepared, sent: Shipment) -> Share:
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
    if asked != "auto" and asked > 0 and not cluster.gpus:
        raise UserError(
            f"resources.gpu: {asked:g}, and Ray sees no GPU: set it to auto or 0, or give the "
            "--address of a cluster that has one"
        )
    if asked and cluster.gpus and not capacity(cluster.nodes, cpu, 1.0):
        most = max(node.cpus for node in cluster.nodes if node.gpus)
        raise UserError(
            f"resources.cpu: {cpu:g} is more than the {most:g} CPUs that a node with a GPU has: "
            "lower it, or set resources.gpu to 0"
        )
    if asked == "auto":
        gpu = probe(spec, prepared, sent) if cluster.gpus else 0.0
    else:
        gpu = float(asked)
    fit = capacity(cluster.nodes, cpu, gpu)
    return Share(cpu, gpu, min(fit, spec.search.concurrent or fit))


def probe(spec: Spec, prepared: Prepared, sent: Shipment) -> float:
    """Return the share of a GPU that the widest configuration needs, judge and context included."""
    on_a_gpu = ray.remote(num_cpus=1, num_gpus=1, max_retries=0)(memory_of_a_trial)
    needed = ray.get(on_a_gpu.remote(spec, prepared, sent))
    if isinstance(needed, UserError):
        raise needed
    return fraction(*needed)
