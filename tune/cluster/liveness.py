"""Tell tasks that hang from tasks that work, and end those that hang.

The heartbeat of a task on a worker is a number that grows in the key-value store of Ray's GCS,
which driver and workers on all nodes reach: at its start, at each line that it logs, and before and
after each call of the judge. The driver ends a task whose number has not changed for too long.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray

from trainables.judges import Judge
from tune.ray_internals import drop_value, put_value, value_of

HEARTBEAT = "preftune-works"  # with the id of the job and the task's name: a key of the store
EVERY = 1.0  # seconds between two heartbeats, at least


class _AtEachLine(logging.Handler):
    def __init__(self, beat: Callable[[], None]) -> None:
        super().__init__()
        self.beat = beat

    def emit(self, record: logging.LogRecord) -> None:
        self.beat()


@contextmanager
def heartbeats(name: str) -> Iterator[Callable[[], None]]:
    """Show, on a worker, that a task works; within the block each line of its log does.

    Args:
        name: of the task; unique in the job while it runs.

    Yields:
        A function that shows it too.
    """
    key, last = _key(name), 0.0

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            put_value(key, str(time.time_ns()).encode())

    handler, logger = _AtEachLine(beat), logging.getLogger("trainables")
    level = logger.level
    logger.setLevel(logging.INFO)  # what is not worth a line anywhere else is a heartbeat here
    logger.addHandler(handler)
    beat()
    try:
        yield beat
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def with_heartbeats(judge: Judge, beat: Callable[[], None]) -> Judge:
    """Return a judge that shows before and after its work that the task does not hang."""

    def judged(prompts: list[str], answers: list[str]) -> list[float]:
        beat()
        scores = judge(prompts, answers)
        beat()
        return scores

    return judged


class Watch:
    """The driver's look at tasks that run."""

    def __init__(self, minutes: float) -> None:
        """Begin to watch.

        Args:
            minutes: a task without a heartbeat for so long is ended.
        """
        self.minutes = minutes
        self.heartbeats: dict[ray.ObjectRef, tuple[bytes, float]] = {}

    @property
    def cause(self) -> str:
        """Why a task was ended, for its user."""
        return (
            f"it did nothing for {self.minutes:g} minutes (search.stuck_minutes) and was ended. "
            "The judge may hang; if it needs longer, set search.stuck_minutes higher in spec.yaml"
        )

    def end_hung(self, tasks: Mapping[ray.ObjectRef, str]) -> list[ray.ObjectRef]:
        """End the tasks that hang, with their processes, and return them.

        One that still waits for a worker has no heartbeat yet, and is left alone.

        Args:
            tasks: the names of the tasks that have not ended.
        """
        hung = []
        for task, name in tasks.items():
            beat, now = value_of(_key(name)), time.monotonic()
            if beat is None:
                continue
            known = self.heartbeats.get(task)
            if known is None or known[0] != beat:
                self.heartbeats[task] = beat, now
            elif now - known[1] > 60 * self.minutes:
                ray.cancel(task, force=True)  # a cancelled task is not tried again
                hung.append(task)
        return hung

    def forget(self, task: ray.ObjectRef, name: str) -> None:
        """Forget a task."""
        self.heartbeats.pop(task, None)
        drop_value(_key(name))


def _key(name: str) -> str:
    return f"{HEARTBEAT}-{ray.get_runtime_context().get_job_id()}-{name}"
