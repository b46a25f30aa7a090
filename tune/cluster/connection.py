"""The Ray cluster of a search: connect to one or start one, and bring files to its nodes."""

import logging
import os
import signal
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray

from search_spaces.errors import UserError
from tune.cluster.signals import NOTICES, handled
from tune.ray_internals import own_sigterm_handler, silence_dead_workers

ROOT = Path(__file__).parent.parent.parent
# What workers import: these folders alone travel to the nodes of a cluster, whatever else stands
# beside them.
PACKAGES = ("search_spaces", "trainables", "tune", "results")

# Read by the driver and, through it, by every worker it starts.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # trials are the parallelism; forked tokenizers would warn
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    # `measures.jsonl` holds what CSV and JSON would repeat.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: it ends with the resume line
    # A reused worker waits for the last trial's memory to be free.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a spec mean the driver's folder
    "RAY_AIR_NEW_OUTPUT": "0",
    # What asks for no GPU sees none: `resources.gpu: 0` is the CPU, wherever it runs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}


@dataclass(frozen=True)
class Cluster:
    """What there is to run on.

    Attributes:
        dashboard: address of Ray's dashboard, or None where it does not run.
        node: id of the driver's node.
        single: the cluster is this machine alone.
        nodes, cpus, gpus: how much there is of each.
        most_cpus: how many CPUs the largest node has.
    """

    dashboard: str | None
    node: str
    single: bool
    nodes: int
    cpus: float
    gpus: float
    most_cpus: float


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to a running cluster, or start Ray on this machine; disconnect at the end.

    Args:
        address: of the cluster; None means the one in `RAY_ADDRESS`, or else this machine alone.
        cpus: of this machine, to use no more than so many.

    Raises:
        UserError: there is no cluster at the address, or it does not let us in.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Without an address Ray would join any cluster that it finds on this machine.
        options |= {"address": "local", "num_cpus": cpus}
    else:
        modules = {"py_modules": [str(ROOT / name) for name in PACKAGES]}
        options |= {"address": address, "runtime_env": modules | {"env_vars": ENVIRONMENT}}
    before = psutil.Process().children(recursive=True)
    try:
        context = _init(address, options)
        silence_dead_workers()
        alive = [node for node in ray.nodes() if node["Alive"]]
        have = ray.cluster_resources()
        url = context.dashboard_url
        yield Cluster(
            dashboard=f"http://{url}" if url else None,
            node=ray.get_runtime_context().get_node_id(),
            single=address is None,
            nodes=len(alive),
            cpus=have.get("CPU", 0.0),
            gpus=have.get("GPU", 0.0),
            most_cpus=max(node["Resources"].get("CPU", 0.0) for node in alive),
        )
    finally:
        with _undisturbed():
            started = set(psutil.Process().children(recursive=True)) - set(before)
            ray.shutdown()
            _end(started)


def _init(address: str | None, options: dict[str, Any]) -> Any:
    """Start Ray, or connect to it; return its context.

    Raises:
        UserError: as `connected`.
    """
    try:
        if address is not None:
            _reach(address)
        with _undisturbed():
            return ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if "InvalidAuthToken" in f"{error} {error.__cause__}":
            # Ray sends its token to no address that was given by name, unless it is told to.
            raise UserError(
                f"the Ray cluster at {address!r} asks for its token: set RAY_AUTH_MODE=token, with "
                "what `ray get-auth-token` prints there in ~/.ray/auth_token here"
            ) from error
        where = f"no Ray cluster answers at {address!r}" if address else "Ray does not start here"
        way = "check --address" if address else "end other Ray processes with `ray stop`"
        raise UserError(f"{where} ({str(error).partition(chr(10))[0]}): {way}") from error


def _end(started: Collection[psutil.Process]) -> None:
    """End those of Ray's processes on this machine that its own shutdown has left.

    An agent that has hardly started does not watch its raylet yet, and would outlive it.
    """
    for process in psutil.wait_procs(started, timeout=1)[1]:
        with suppress(psutil.Error):
            if "ray" in " ".join(process.cmdline()):
                process.kill()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals back while Ray starts or ends; a second one is let through.

    Interrupted there, Ray leaves processes behind or crashes. Its Python handlers of SIGTERM would
    end the process without the resume line; its C++ core puts one over ours that aborts three
    seconds after the signal, and takes ours away with its own.

    Raises:
        KeyboardInterrupt: a signal came meanwhile.
    """
    held = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal held
        if held:
            raise KeyboardInterrupt
        held = True

    try:
        with own_sigterm_handler(), handled(hold, signal.SIGINT, *NOTICES):
            # What Ray starts inherits it: a terminal that closes tells all its processes, and
            # these are needed until trials have saved.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        if held:
            signal.alarm(0)  # the three seconds
    if held:
        raise KeyboardInterrupt


def _reach(address: str) -> None:
    """Raise ConnectionError if nothing listens at host:port; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from error


def host() -> str:
    """Return this node's name, as the leaderboard shows it."""
    return socket.gethostname()
