"""What a trial asks Ray for, from what a probe of the device has found."""

from pathlib import Path

import pytest
from pytest import MonkeyPatch

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.prepared import Prepared, Split
from tune.cluster import resources
from tune.cluster.connection import Cluster
from tune.cluster.resources import plan_share
from tune.cluster.share import Node, Share, allocatable, capacity, fraction
from tune.cluster.shipping import Shipment

GIB = 2**30
PREPARED = Prepared(Path("m"), Path("t"), *[Split(Path("p"), Path("l"), None)] * 2)


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (1, 1 / 8),  # 72 would fit; more than 8 only wait for each other
        (9, 1 / 8),  # 8 x 9 = 72: nine tenths of the device
        (9.1, 1 / 7),
        (36, 1 / 2),
        (37, 1.0),
        (79, 1.0),  # more than nine tenths, but a trial has it for itself
    ],
)
def test_share_of_a_device_of_80(needed: float, expected: float) -> None:
    assert fraction(int(needed * GIB), 80 * GIB) == pytest.approx(expected)


def test_trials_on_one_device_leave_room_for_their_contexts() -> None:
    assert 8 * allocatable(1 / 8) == pytest.approx(0.9)
    assert allocatable(1.0) == 1.0


def cluster(*nodes: tuple[float, float]) -> Cluster:
    """A cluster whose nodes have so many CPUs and GPUs."""
    return Cluster(dashboard=None, node="n", single=True, nodes=tuple(Node(*n) for n in nodes))


def of(spec: Spec, cpus: float, gpus: float, **asked: object) -> Share:
    wanted = spec.resources.model_copy(update=asked)
    wide = spec.model_copy(update={"resources": wanted})
    return plan_share(wide, cluster((cpus, gpus)), PREPARED, Shipment("n"))


def test_as_many_trials_as_cpus_and_gpus_carry(small_spec: Spec) -> None:
    assert of(small_spec, 16, 0, gpu=0) == Share(1, 0.0, 16)
    assert of(small_spec, 16, 0, gpu=0, cpu=4) == Share(4, 0.0, 4)
    assert of(small_spec, 16, 2, gpu=0.25) == Share(1, 0.25, 8)
    assert of(small_spec, 3, 2, gpu=0.25) == Share(1, 0.25, 3)
    # 0.3 of a device: three on each; what is left over of two devices makes no seventh.
    assert of(small_spec, 16, 2, gpu=0.3) == Share(1, 0.3, 6)
    few = small_spec.model_copy(
        update={"search": small_spec.search.model_copy(update={"concurrent": 2})}
    )
    assert of(few, 16, 2, gpu=1) == Share(1, 1.0, 2)


def test_trial_runs_on_one_node(small_spec: Spec) -> None:
    """CPUs of two nodes do not add up, nor those of one node and the GPU of another."""
    assert capacity([Node(3, 0), Node(3, 0)], 2, 0) == 2
    assert capacity([Node(1, 0)] * 7, 1.5, 0) == 0
    assert capacity([Node(64, 0), Node(2, 4)], 1, 1) == 2
    assert capacity([Node(0, 0), Node(8, 1), Node(1, 8)], 1, 0.25) == 4 + 1
    assert capacity([Node(0.3, 0)], 0.1, 0) == 3
    wanted = small_spec.resources.model_copy(update={"cpu": 4, "gpu": 0.5})
    spec = small_spec.model_copy(update={"resources": wanted})
    large = cluster((6, 1), (7, 1), (30, 0))
    assert plan_share(spec, large, PREPARED, Shipment("n")) == Share(4, 0.5, 2)
    with pytest.raises(UserError, match=r"4 is more than the 3 CPUs that a node with a GPU has"):
        plan_share(spec, cluster((3, 8), (64, 0)), PREPARED, Shipment("n"))


def test_auto_probes_only_where_there_is_a_gpu(small_spec: Spec, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "probe", lambda *args: 0.5)
    assert of(small_spec, 16, 0, gpu="auto") == Share(1, 0.0, 16)
    assert of(small_spec, 16, 2, gpu="auto") == Share(1, 0.5, 4)


def test_more_than_there_is_is_refused(small_spec: Spec) -> None:
    with pytest.raises(UserError, match=r"4 is more than the 2 CPUs that a node has"):
        of(small_spec, 2, 0, gpu=0, cpu=4)
    with pytest.raises(UserError, match=r"resources.gpu: 0.5, and Ray sees no GPU"):
        of(small_spec, 2, 0, gpu=0.5)
