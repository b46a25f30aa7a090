"""Bring files to the nodes of a cluster, and run a task that fills a folder."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from filelock import FileLock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_spaces.errors import UserError
from tune.cluster.connection import Cluster


@dataclass(frozen=True)
class Shipment:
    """Files that any node can have: on the driver's node by their paths, else through Ray, once.

    Attributes:
        node: id of the node on which the paths hold.
        contents: a reference into Ray's object store for each file; empty on a single machine.
    """

    node: str
    contents: dict[str, Any] = field(default_factory=dict)

    def here(self, path: Path) -> Path:
        """Return where a file or folder of the shipment stands on this node."""
        if not self.contents or ray.get_runtime_context().get_node_id() == self.node:
            return path
        wanted = [
            name for name in self.contents if name == str(path) or Path(name).is_relative_to(path)
        ]
        digest = hashlib.sha256("".join(ref.hex() for ref in self.contents.values()).encode())
        root = Path(tempfile.gettempdir()) / f"preftune-{os.getuid()}" / digest.hexdigest()[:16]
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(root / ".lock"):
            for name in wanted:
                target = root / name.lstrip("/")
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    partial = target.with_name(target.name + ".partial")
                    ray.get(self.contents[name]).tofile(partial)
                    partial.rename(target)
        return root / str(path).lstrip("/")

    def named(self, name: str) -> str:
        """Return a path as a spec names it, or where the shipment has it if it is not here.

        The file itself goes first: on a shared file system it has its neighbours beside it.
        """
        path = Path(name).expanduser().absolute()
        held = any(Path(file).is_relative_to(path) for file in self.contents)
        return str(self.here(path)) if held and not path.exists() else name


def ship(cluster: Cluster, files: Sequence[Path]) -> Shipment:
    """Put files into the object store, unless every trial runs on this machine anyway."""
    if cluster.single:
        return Shipment(cluster.node)
    return Shipment(cluster.node, {str(p): ray.put(np.fromfile(p, dtype=np.uint8)) for p in files})


def build_on_worker(
    cluster: Cluster,
    build: Callable[..., None],
    out: Path,
    *arguments: Any,
    gpus: float = 0.0,
    cpus: float = 1.0,
) -> None:
    """Fill the folder `out` by running `build(folder, *arguments)` as a Ray task.

    The task runs on the driver's node, which has the user's own files, if that node has what the
    task asks for at all; else wherever there is room.

    Raises:
        UserError: as `build` raised it.
    """
    near = NodeAffinitySchedulingStrategy(cluster.node, soft=True)
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 2, "scheduling_strategy": near}
    task = ray.remote(**options)(_fill)
    built = ray.get(task.remote(cluster.node, build, out, arguments))
    if isinstance(built, UserError):
        raise built
    for name, content in built.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        content.tofile(out / name)


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
