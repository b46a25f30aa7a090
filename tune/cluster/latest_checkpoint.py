"""The newest checkpoint of a training that is not a trial of Ray Tune, in a folder of its own.

Verification trains finalists again; `preftune train` trains the winner on all pairs. The driver and
the worker must share the path of the folder.
"""

import shutil
import tempfile
from pathlib import Path

from trainables.artifacts import damage


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
