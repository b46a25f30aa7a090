"""The newest checkpoint of a training that is no trial of Ray Tune's, in a folder of its own.

Verification trains finalists again, `preftune train` the winner on all pairs. The folder has to be
on a path that the driver and the worker share.
"""

import shutil
import tempfile
from pathlib import Path

from trainables.artifacts import damage


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
