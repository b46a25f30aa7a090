"""The Ray cluster of a search: connect to one, or start Ray on this machine."""

import logging
import os
import signal
import site
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray

from search_spaces.errors import UserError
from tune.cluster.share import Node
from tune.cluster.signals import NOTICES, handled
from tune.ray_internals import only_importing_from, own_sigterm_handler, silence_dead_workers

ROOT = Path(__file__).parent.parent.parent
# What workers import: only these folders travel to the nodes of a cluster, whatever else is beside
# them.
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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: the resume command is printed then
    # A reused worker waits for the last trial's memory to be free.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a spec mean the driver's folder
    "RAY_AIR_NEW_OUTPUT": "0",
    # A task without a GPU sees none: `resources.gpu: 0` means the CPU on every node.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}


@dataclass(frozen=True)
class Cluster:
    """The nodes that a search can use.

    Attributes:
        dashboard: address of Ray's dashboard, or None where it does not run.
        node: id of the driver's node.
        single: the cluster is this machine alone.
        nodes: what each node has.
    """

    dashboard: str | None
    node: str
    single: bool
    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """The CPUs of all nodes together."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """The GPUs of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    @property
    def most_cpus(self) -> float:
        """The CPUs of the node that has the most."""
        return max((node.cpus for node in self.nodes), default=0.0)


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to a running cluster, or start Ray on this machine; disconnect at the end.

    Args:
        address: of the cluster; None means the one in `RAY_ADDRESS`, or else this machine alone.
        cpus: how many CPUs of this machine to use at most; None means all.

    Raises:
        UserError: Ray does not start, or no cluster lets this process in at the address.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    address = address or os.environ.get("RAY_ADDRESS")
    # The packages' folder, where Python would not look in itself: a checkout that is not installed.
    ours = [] if str(ROOT) in site.getsitepackages() else [str(ROOT)]
    options: dict[str, Any] = {"log_to_driver": False, "job_config": only_importing_from(ours)}
    # While it starts, Ray logs the traceback of what it then raises.
    options["logging_level"] = logging.CRITICAL
    if address is None:
        # Without an address Ray would join any cluster that it finds on this machine.
        options |= {"address": "local", "num_cpus": cpus}
    else:
        modules = {"py_modules": [str(ROOT / name) for name in PACKAGES]}
        options |= {"address": address, "runtime_env": modules | {"env_vars": ENVIRONMENT}}
    before = set(psutil.Process().children(recursive=True))
    try:
        yield _start(address, options)
    finally:
        with _undisturbed():
            started = _started(before)
            ray.shutdown()
            psutil.wait_procs(started, timeout=1)
            _end(started, before)


def _start(address: str | None, options: dict[str, Any]) -> Cluster:
    """Start Ray, or connect to it.

    Raises:
        UserError: as `connected`. Ray has no class for its errors here: a node that is late to
            start is a bare `Exception`, a temporary folder that cannot be used an `OSError`.
    """
    try:
        if address is not None:
            _reach(address)
        with _undisturbed():
            context = ray.init(**options)
        logging.getLogger("ray").setLevel(logging.ERROR)
        silence_dead_workers()
        return Cluster(
            dashboard=f"http://{context.dashboard_url}" if context.dashboard_url else None,
            node=ray.get_runtime_context().get_node_id(),
            single=address is None,
            nodes=tuple(
                Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
                for node in ray.nodes()
                if node["Alive"]
            ),
        )
    except Exception as error:
        raise UserError(_reason(error, address)) from error


def _reason(error: Exception, address: str | None) -> str:
    """Return why Ray did not start, and the way out."""
    message = " ".join(str(error).split())
    if not message or isinstance(error, LookupError):  # a key alone says nothing
        message = f"{type(error).__name__} {message}".strip()
    cause = f"{message} {error.__cause__}"
    if "InvalidAuthToken" in cause:
        # Ray sends its token to no address that was given by name, unless it is told to.
        return (
            f"the Ray cluster at {address!r} asks for its token: set RAY_AUTH_MODE=token, with "
            "what `ray get-auth-token` prints there in ~/.ray/auth_token here"
        )
    if "Version mismatch" in cause:
        versions = cause[cause.index("Version mismatch") :].partition(": ")[2]
        return (
            f"the Ray cluster at {address!r} has other versions than this process ({versions}): "
            "install the cluster's versions of Ray and Python here"
        )
    if address:
        set_by = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else "--address"
        return f"no Ray cluster answers at {address!r} ({message}): check {set_by}"
    named_by = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    place = os.environ[named_by] if named_by else "/tmp"
    if "/dev/shm" in message:
        way = (
            "make room in /dev/shm (in a container, start it with a larger --shm-size), or set "
            "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1"
        )
    elif isinstance(error, OSError) and not isinstance(error, ConnectionError):
        which = f"{place}, which {named_by} names" if named_by else place
        way = (
            f"make room in {which}, where Ray keeps its files, or set RAY_TMPDIR to a folder with "
            "a short path in which you may write"
        )
    else:
        way = (
            f"see the logs in {place}/ray/session_latest/logs, end other Ray processes with `ray "
            "stop`, or try again when the machine has less to do"
        )
    return f"Ray does not start here ({message}): {way}"


def _started(before: set[psutil.Process]) -> set[psutil.Process]:
    """Return this process's descendants but those from before."""
    return set(psutil.Process().children(recursive=True)) - before


def _end(started: set[psutil.Process], before: set[psutil.Process]) -> None:
    """End those of Ray's processes on this machine that its own shutdown has left.

    An agent that has hardly started does not watch its raylet yet, and would outlive it. A start
    that failed shuts nothing down, and its raylet may start an agent at any moment: each process is
    stopped first, so that the family is complete before the first one is killed.
    """
    stopped: set[psutil.Process] = set()
    while new := (started | _started(before)) - stopped:
        stopped |= new
        for process in new:
            with suppress(psutil.Error):
                if "ray" in " ".join(process.cmdline()):
                    process.suspend()
    for process in stopped:
        with suppress(psutil.Error):
            if "ray" in " ".join(process.cmdline()):
                process.kill()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals back while Ray starts or ends; a second one is let through.

    Ray that is interrupted there leaves processes behind or crashes. Its Python handlers of SIGTERM
    would end the process without the resume command. Its C++ core puts a handler over ours that
    aborts three seconds after the signal, and removes ours together with its own.

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
    if address.startswith("ray://"):
        raise ConnectionError(
            "it is the address of a Ray client server, and a search needs the cluster's own, such "
            "as 10.0.0.1:6379, or `auto` on a node of the cluster"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise ConnectionError(reason or str(error)) from error


def host() -> str:
    """Return this node's name, as the leaderboard shows it."""
    return socket.gethostname()
