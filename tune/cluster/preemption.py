"""Trials save a checkpoint when the cluster announces that it takes the machine away.

Only the driver gets SIGTERM. It asks the trials by an entry in the key-value store of Ray's GCS,
which workers on all nodes reach, whatever their storage is. It ends once each trial has reported
the checkpoint that it saved.
"""

import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

import ray

from tune.cluster.signals import NOTICES, handled
from tune.ray_internals import flag_is_raised, raise_flag

ASKED = "preftune-save-now"  # and the id of the job: later drivers on the same cluster have others
PATIENCE = 20  # seconds for all of them: Slurm and Kubernetes kill thirty after their notice
EVERY = 1.0  # seconds between two times that a trial looks
AGAIN = 1.0  # a terminal that closes sends SIGHUP twice: only what comes later is a second signal


class Preemption:
    """What a search does between the notice and its end.

    Attributes:
        announced: the notice has come.
        late: the time for checkpoints is up.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.announced = self.late = False
        self.say = say
        self.owing: set[str] | None = None  # trials that have not reported since

    def leave(self, running: Collection[str]) -> None:
        """Ask for checkpoints the first time; later calls check which trials still owe one.

        Args:
            running: ids of the trials whose processes run now.

        Raises:
            KeyboardInterrupt: every trial has reported, or the time is up.
        """
        if self.owing is None:
            self.owing = set(running)
            if running:
                raise_flag(_key())
                self.say(
                    f"asked to end: running trials ({len(running)}) save a checkpoint first, "
                    f"within {PATIENCE} seconds; a second signal ends this at once"
                )
        self.owing &= set(running)
        if self.late or not self.owing:
            raise KeyboardInterrupt

    def saved(self, trial: str) -> None:
        """Note that a trial has reported a checkpoint."""
        if self.owing is not None:
            self.owing.discard(trial)


@contextmanager
def preemptible(say: Callable[[str], None]) -> Iterator[Preemption]:
    """Treat SIGTERM and SIGHUP as a notice within the block; a second signal interrupts.

    Raises:
        KeyboardInterrupt: the notice was given and the block has ended; a second signal came; or
            `PATIENCE` seconds went by.
    """
    preemption = Preemption(say)
    since = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if not preemption.announced:
            preemption.announced, since = True, time.monotonic()
            # Again each second: Python drops what is raised while an object is being finalised.
            signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1)
        elif time.monotonic() - since > AGAIN:
            raise KeyboardInterrupt

    def give_up(number: int, frame: FrameType | None) -> None:
        preemption.late = True
        raise KeyboardInterrupt

    with handled(give_up, signal.SIGALRM):
        try:
            with handled(note, *NOTICES):
                yield preemption
        finally:
            if preemption.announced:
                signal.setitimer(signal.ITIMER_REAL, 0)
    if preemption.announced:
        raise KeyboardInterrupt


def save_requested() -> Callable[[], bool]:
    """Return a function that is true once, on a trial's worker: when it is asked to save."""
    key = _key()
    last, answered = time.monotonic(), False

    def look() -> bool:
        nonlocal last, answered
        if answered or time.monotonic() - last < EVERY:
            return False
        answered = flag_is_raised(key)
        last = time.monotonic()
        return answered

    return look


def _key() -> str:
    return f"{ASKED}-{ray.get_runtime_context().get_job_id()}"
