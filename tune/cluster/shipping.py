"""Bring files to the nodes of a cluster, and run a task that fills a folder."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_spaces.errors import UserError
from trainables.artifacts import checksum
from tune.cluster import received_files
from tune.cluster.connection import Cluster
from tune.cluster.liveness import Watch
from tune.record import Record

PATIENCE = 30  # seconds that the end of a run waits for nodes to remove its files


@dataclass(frozen=True)
class File:
    """One file in Ray's object store."""

    digest: str  # SHA-256
    content: Any  # reference to an array of bytes


@dataclass(frozen=True)
class Shipment:
    """Files that any node can have: on the driver's node by their paths, else through Ray.

    A run has one, which grows: each content goes into the object store once, and to a node once.

    Attributes:
        node: id of the node on which the paths hold.
        run: name of the run's folder on other nodes; empty where there is only this machine.
        files: by path on the driver's node.
    """

    node: str
    run: str = ""
    files: dict[str, File] = field(default_factory=dict)

    def add(self, paths: Iterable[Path]) -> "Shipment":
        """Put files into the object store, unless everything runs on this machine anyway."""
        if self.run:
            known = {file.digest: file for file in self.files.values()}
            for path in paths:
                digest = checksum(path)
                if digest not in known:
                    known[digest] = File(digest, ray.put(np.fromfile(path, dtype=np.uint8)))
                self.files[str(path)] = known[digest]
        return self

    def release(self, paths: Iterable[Path]) -> None:
        """Give files back that no later task needs; Ray frees a content with its last path."""
        for path in paths:
            self.files.pop(str(path), None)

    def here(self, path: Path) -> Path:
        """Return where a file or folder of the shipment is on this node.

        Raises:
            NotReached: this node's temporary folder cannot be trusted, or lacks room.
        """
        if not self.files or ray.get_runtime_context().get_node_id() == self.node:
            return path
        wanted = {
            Path(name).relative_to(path).as_posix(): file
            for name, file in self.files.items()
            if Path(name).is_relative_to(path)
        }
        contents = {file.digest: file.content for file in wanted.values()}
        digests = {inside: file.digest for inside, file in wanted.items()}
        return received_files.received(
            self.run, path.name, digests, lambda digest: ray.get(contents[digest])
        )

    def named(self, name: str) -> str:
        """Return a path as a spec names it, or where the shipment has it if it is not here.

        The file itself goes first: on a shared file system it has its neighbours beside it.
        """
        path = Path(name).expanduser().absolute()
        held = any(Path(file).is_relative_to(path) for file in self.files)
        return str(self.here(path)) if held and not path.exists() else name


@contextmanager
def shipping(cluster: Cluster, record: Record) -> Iterator[Shipment]:
    """Give a run its shipment; at the run's end, remove what the nodes have of it.

    A run that is interrupted or fails leaves its files: `preftune resume` finds them again. They
    are removed once nothing has used them for a day, see `received_files`.
    """
    folder = record.folder.absolute()
    # Not the path alone: another machine's driver may have a run folder of the same path.
    identity = hashlib.sha256(f"{record.info.get('created')} {folder}".encode()).hexdigest()[:12]
    sent = Shipment(cluster.node, "" if cluster.single else f"{folder.name}-{identity}")
    try:
        yield sent
        if sent.run:
            _remove(sent.run, cluster.node)
    finally:
        sent.files.clear()


def _remove(run: str, driver: str) -> None:
    """Remove a run's files from every node but the driver's; one that does not answer is left."""
    with suppress(RayError):
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        tasks = [
            ray.remote(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )(received_files.remove).remote(run)
            for node in nodes
            if node != driver
        ]
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)


def build_on_worker(
    cluster: Cluster,
    build: Callable[..., None],
    out: Path,
    *arguments: Any,
    gpus: float = 0.0,
    cpus: float = 1.0,
    watched: tuple[str, float] | None = None,
) -> None:
    """Fill the folder `out` by running `build(folder, *arguments)` as a Ray task.

    The task runs on the driver's node, which has the user's own files, if that node has what the
    task asks for at all; else wherever there is room.

    Args:
        watched: the name under which `build` shows `heartbeats`, and the minutes without one
            after which it is ended; None for one that may be silent.

    Raises:
        UserError: as `build` raised it, or it was ended.
    """
    near = NodeAffinitySchedulingStrategy(cluster.node, soft=True)
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 2, "scheduling_strategy": near}
    task = ray.remote(**options)(_fill)
    running = task.remote(cluster.node, build, out, arguments)
    if watched is not None:
        _wait_for(running, *watched)
    built = ray.get(running)
    if isinstance(built, UserError):
        raise built
    for name, content in built.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        content.tofile(out / name)


def _wait_for(task: ray.ObjectRef, name: str, minutes: float) -> None:
    watch = Watch(minutes)
    while not ray.wait([task], timeout=1)[0]:
        if watch.end_hung({task: name}):
            watch.forget(task, name)
            raise UserError(f"preparing the {name} failed: {watch.cause}")
    watch.forget(task, name)


def _fill(
    node: str, build: Callable[..., None], out: Path, arguments: Sequence[Any]
) -> dict[str, np.ndarray] | UserError:
    """Build on this worker; return the files if it is not on `node`, which has the folder `out`."""
    try:
        if ray.get_runtime_context().get_node_id() == node:
            build(out, *arguments)
            return {}
        with tempfile.TemporaryDirectory(prefix="preftune-build-") as name:
            folder = Path(name)
            build(folder, *arguments)
            paths = [path for path in folder.rglob("*") if path.is_file()]
            return {str(p.relative_to(folder)): np.fromfile(p, dtype=np.uint8) for p in paths}
    except UserError as error:
        return error  # as a value: Ray would wrap a raised one in its own traceback
