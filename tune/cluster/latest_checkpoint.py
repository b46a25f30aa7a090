"""The newest checkpoint of a training that is no trial of Ray Tune's, in a folder of its own.

Verification trains finalists again, `preftune train` the winner on all pairs. The folder has to be
on a path that the driver and the worker share.
"""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from trainables.artifacts import damage
from trainables.trial_report import Report
from tune.cluster.preemption import asked


def keep(checkpoint: Path, home: Path, pairs: int) -> None:
    """Keep a checkpoint, named by the pairs seen, instead of the ones before it.

    There is a complete one at every moment: it gets its name when all of it is there.

    Raises:
        OSError: there is no room, or the folder is not to be reached.
    """
    if checkpoint.parent == home:
        return
    kept = home / str(pairs)
    work = Path(tempfile.mkdtemp(dir=home, prefix=".new."))
    shutil.copytree(checkpoint, work, dirs_exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)  # a damaged one, which training could not go on from
    work.rename(kept)
    for other in home.iterdir():
        if other.is_dir() and other != kept:
            shutil.rmtree(other)


def checkpoints(home: Path) -> list[Path]:
    """Return the checkpoints, newest first."""
    found = [path for path in home.glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: -int(path.name))


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
        self.asked = asked()
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
        requested = self.asked() and self.home.exists()
        self.wanted = self.wanted or requested
        return requested

    def keep(self, report: Report) -> None:
        """Keep the checkpoint that was asked for."""
        if self.wanted and report.checkpoint is not None:
            self.wanted = False
            with suppress(OSError):  # without room for it the training begins again
                keep(report.checkpoint, self.home, report.pairs)
