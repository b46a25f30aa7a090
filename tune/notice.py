"""A cluster's notice that it takes the machine away: what runs keeps a checkpoint first.

SIGTERM tells the driver alone. It asks the trials by a file in Ray's experiment folder, which
workers on all nodes reach, and ends once each has reported what it saved.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import ray.tune
from pyarrow import ArrowException, fs
from ray.tune.experiment import Trial as RayTrial

from tune.last_words import NOTICES, handled

ASKED = "save_now"  # the file; a later driver has an experiment folder of its own
PATIENCE = 20  # seconds for all of them: Slurm and Kubernetes kill thirty after their notice
EVERY = 1.0  # seconds between two looks of a trial at the file


class Notice:
    """What a search does between the notice and its end.

    Attributes:
        given: the notice has come; no trial is to be started any more.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.given = False
        self.say = say
        self.owing: set[str] | None = None  # Ray's ids of trials that have not reported since

    def leave(self, trials: list[RayTrial]) -> None:
        """Ask for checkpoints, the first time; call it again until there is nobody to wait for.

        Args:
            trials: those whose processes run now.

        Raises:
            KeyboardInterrupt: every one has reported.
        """
        running = {trial.trial_id for trial in trials}
        if self.owing is None:
            self.owing = running
            if running:
                self.say(
                    f"told to end: {len(running)} running trials save a checkpoint first, in "
                    f"{PATIENCE} seconds at most; told again, it ends at once"
                )
                storage: Any = trials[0].storage
                with suppress(OSError, ArrowException):  # what was saved before has to do, then
                    path = f"{storage.experiment_fs_path}/{ASKED}"
                    with storage.storage_filesystem.open_output_stream(path) as stream:
                        stream.write(b"")
        self.owing &= running
        if not self.owing:
            raise KeyboardInterrupt

    def saved(self, trial: RayTrial) -> None:
        """Note that a trial has reported a checkpoint."""
        if self.owing is not None:
            self.owing.discard(trial.trial_id)


@contextmanager
def notice(say: Callable[[str], None]) -> Iterator[Notice]:
    """Take SIGTERM and SIGHUP as a notice within the block; a second one interrupts.

    Raises:
        KeyboardInterrupt: a second signal came, or `PATIENCE` seconds went by since the first.
    """
    given = Notice(say)

    def note(number: int, frame: FrameType | None) -> None:
        if given.given:
            raise KeyboardInterrupt
        given.given = True
        signal.alarm(PATIENCE)

    def give_up(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield given
        return
    with handled(note, *NOTICES), handled(give_up, signal.SIGALRM):
        try:
            yield given
        finally:
            signal.alarm(0)


def asked() -> Callable[[], bool]:
    """Return what tells a trial, on its worker, that it has been asked; once."""
    storage: Any = ray.tune.get_context().get_storage()
    path = f"{storage.experiment_fs_path}/{ASKED}"
    looked, told = time.monotonic(), False

    def look() -> bool:
        nonlocal looked, told
        if told or time.monotonic() - looked < EVERY:
            return False
        looked = time.monotonic()
        with suppress(OSError, ArrowException):  # a checkpoint that is due will say so
            told = storage.storage_filesystem.get_file_info(path).type is fs.FileType.File
        return told

    return look
