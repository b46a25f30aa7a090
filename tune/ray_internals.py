"""Every private or undocumented name of Ray that preftune uses, each with the reason.

The upper bound on Ray in `pyproject.toml` is for these names; `tests/tune/test_ray_internals.py`
says which of them a new version lacks.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import utils, worker
from ray.experimental import internal_kv
from ray.job_config import JobConfig
from ray.tune.experiment import Trial


class DriverOnly:
    """A mix-in whose objects pickle as a plain object.

    Ray Tune pickles its searcher, scheduler and callbacks into its experiment folder, and nobody
    restores them: their files and locks belong to this process, and the run folder is the record.
    """

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return object, ()


def actor_of(trial: Trial) -> Any:
    """Return the actor that runs a trial.

    Ray Tune has no public way to end the process of a trial that hangs.
    """
    return trial.temporary_state.ray_actor


def forget_averages(trial: Trial) -> None:
    """Drop the moving averages of each metric of a trial that ended.

    They are 50 KB a trial, and Ray Tune holds them until the search ends.
    """
    trial.metric_n_steps.clear()
    trial.metric_analysis.clear()


def forget_report(trial: Trial) -> None:
    """Drop the arrays and texts that were reported together with the newest checkpoint.

    Ray Tune holds them for as long as the search lasts.
    """
    newest = trial.latest_checkpoint_result
    if newest is not None:
        newest.metrics.pop("report", None)


class _Fixed(list[str]):
    """Folders to which Ray adds none."""

    def extend(self, folders: Iterable[str]) -> None:
        """Leave it as it is."""


def only_importing_from(folders: Iterable[str]) -> JobConfig:
    """Return the configuration of a job whose workers look for modules here and where Python does.

    Ray puts the driver's current folder before everything else: a `datasets.py` or a `tune.py`
    beside a user's spec would be imported in place of the libraries. It has no option for that.
    """
    config = JobConfig()
    config._py_driver_sys_path = _Fixed(folders)
    return config


def silence_dead_workers() -> None:
    """Keep Ray from printing a paragraph for each worker that dies; it has no option for that."""
    worker._worker_logs_enabled = False


@contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Keep Ray's Python code from setting a handler of SIGTERM within the block.

    Its handler would end the process before preftune has said how to resume.
    """
    theirs = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs


def raise_flag(key: str) -> None:
    """Set a flag in the key-value store of Ray's GCS, which workers on all nodes can read.

    An actor would do as well, but it would be a process more for one bit.
    """
    internal_kv._internal_kv_put(key, b"")


def flag_is_raised(key: str) -> bool:
    """Say whether a flag is set."""
    return bool(internal_kv._internal_kv_exists(key))


def put_value(key: str, value: bytes) -> None:
    """Set a value in the same key-value store."""
    internal_kv._internal_kv_put(key, value)


def value_of(key: str) -> bytes | None:
    """Return a value, or None if it is not set."""
    value: bytes | None = internal_kv._internal_kv_get(key)
    return value


def drop_value(key: str) -> None:
    """Remove a value."""
    internal_kv._internal_kv_del(key)
