"""The newest checkpoint of a training that is not a trial of Ray Tune, in a folder of its own.

Verification trains finalists again; `preftune train` trains the winner on all pairs. The driver and
the worker must share the path of the folder.
"""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from trainables.artifacts import damage
from trainables.trial_report import Report
from tune.cluster.preemption import save_requested


def keep(checkpoint: Path, home: Path, pairs: int) -> None:
    """Keep a checkpoint, named by the pairs seen, and remove the ones before it.

    A complete one exists at every moment: the new one gets its name when all of it is written.

    Raises:
        OSError: there is no room, or the folder cannot be reached.
    """
    if checkpoint.parent == home:
        return
    target = home / str(pairs)
    work = Path(tempfile.mkdtemp(dir=home, prefix=".new."))
    shutil.copytree(checkpoint, work, dirs_exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # a damaged one, from which training cannot resume
    work.rename(target)
    for other in home.iterdir():
        if other.is_dir() and other != target:
            shutil.rmtree(other)


def checkpoints(home: Path) -> list[Path]:
    """Return the checkpoints, newest first."""
    paths = [path for path in home.glob("*") if path.name.isdigit()]
    return sorted(paths, key=lambda path: -int(path.name))


def newest(home: Path) -> Path | None:
    """Return the newest checkpoint that is complete and undamaged, if there is one."""
    return next((path for path in checkpoints(home) if damage(path) is None), None)


def seen(home: Path) -> int:
    """Return the pairs that the newest checkpoint has seen, 0 without one."""
    return next((int(path.name) for path in checkpoints(home)), 0)


class CheckpointOnRequest:
    """Keeps a checkpoint of a training, on its worker, when the driver asks for one.

    Not before: a checkpoint of each re-run at every tenth would take the storage's room twice.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.requested = save_requested()
        self.wanted = False

    def start(self) -> Path | None:
        """Tell the driver by a folder that there is something to wait for; return where to resume.

        On a node that does not share the driver's path there is nothing.
        """
        with suppress(OSError):
            self.home.mkdir(exist_ok=True)
        return newest(self.home)

    def save_now(self) -> bool:
        """Return whether to save; once."""
        requested = self.requested() and self.home.exists()
        self.wanted = self.wanted or requested
        return requested

    def keep(self, report: Report) -> None:
        """Keep the checkpoint that was asked for."""
        if self.wanted and report.checkpoint is not None:
            self.wanted = False
            with suppress(OSError):  # without room for it the training begins again
                keep(report.checkpoint, self.home, report.pairs)
