"""Tell tasks that hang from tasks that work, and end those that hang.

A task on a worker shows that it works by a number that grows in the key-value store of Ray's GCS,
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

SIGN = "preftune-works"  # with the id of the job and the task's name: a key of the store
EVERY = 1.0  # seconds between two signs, at least


class _Heard(logging.Handler):
    def __init__(self, sign: Callable[[], None]) -> None:
        super().__init__()
        self.sign = sign

    def emit(self, record: logging.LogRecord) -> None:
        self.sign()


@contextmanager
def signs_of_work(name: str) -> Iterator[Callable[[], None]]:
    """Show, on a worker, that a task works; within the block each line of its log does.

    Args:
        name: of the task; unique in the job while it runs.

    Yields:
        A function that shows it too.
    """
    key, last = _key(name), 0.0

    def sign() -> None:
        nonlocal last
        if time.monotonic() - last > EVERY:
            last = time.monotonic()
            put_value(key, str(time.time_ns()).encode())

    handler, logger = _Heard(sign), logging.getLogger("trainables")
    level = logger.level
    logger.setLevel(logging.INFO)  # what is not worth a line anywhere else is a sign of work here
    logger.addHandler(handler)
    sign()
    try:
        yield sign
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def with_signs(judge: Judge, sign: Callable[[], None]) -> Judge:
    """Return a judge that shows before and after its work that the task does not hang."""

    def judged(prompts: list[str], answers: list[str]) -> list[float]:
        sign()
        scores = judge(prompts, answers)
        sign()
        return scores

    return judged


class Watch:
    """The driver's look at tasks that run."""

    def __init__(self, minutes: float) -> None:
        """Begin to watch.

        Args:
            minutes: a task without a sign of work for so long is ended.
        """
        self.minutes = minutes
        self.signs: dict[ray.ObjectRef, tuple[bytes, float]] = {}

    @property
    def cause(self) -> str:
        """Why a task was ended, for its user."""
        return (
            f"it did nothing for {self.minutes:g} minutes (search.stuck_minutes) and was ended. "
            "The judge may hang; if it needs longer, set search.stuck_minutes higher in spec.yaml"
        )

    def end_hung(self, tasks: Mapping[ray.ObjectRef, str]) -> list[ray.ObjectRef]:
        """End the tasks that hang, with their processes, and return them.

        One that still waits for a worker has shown no sign, and is left alone.

        Args:
            tasks: the names of the tasks that have not ended.
        """
        hung = []
        for task, name in tasks.items():
            sign, now = value_of(_key(name)), time.monotonic()
            if sign is None:
                continue
            known = self.signs.get(task)
            if known is None or known[0] != sign:
                self.signs[task] = sign, now
            elif now - known[1] > 60 * self.minutes:
                ray.cancel(task, force=True)  # a cancelled task is not tried again
                hung.append(task)
        return hung

    def forget(self, task: ray.ObjectRef, name: str) -> None:
        """Forget a task."""
        self.signs.pop(task, None)
        drop_value(_key(name))


def _key(name: str) -> str:
    return f"{SIGN}-{ray.get_runtime_context().get_job_id()}-{name}"
