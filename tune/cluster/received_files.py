"""The files of runs on a node that does not have the driver's: private, checked, removed in time.

<temporary folder>/preftune-files-<uid>/<run>/<SHA-256>         each content once
<temporary folder>/preftune-files-<uid>/<run>/<key>.view/...    hard links, by the files' names
"""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from filelock import FileLock

from trainables.artifacts import checksum, key_of
from tune.cluster.checkpoint_storage import NotReached
from tune.cluster.connection import host

MODE = 0o700
AGE = 24 * 3600  # seconds without use, after which the files of a run that crashed are removed


def home() -> Path:
    """Return the folder of all runs of this user on this node."""
    return Path(tempfile.gettempdir()) / f"preftune-files-{os.getuid()}"


def private(folder: Path) -> Path:
    """Return a folder that nobody but this user can read or write; make it if it is not there.

    Its path can be guessed, and others may write beside it: what is there already is not trusted.

    Raises:
        NotReached: what is there is not a folder, belongs to another user, or is open to others.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=MODE)
    status = folder.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or mode != MODE:
        raise NotReached(
            f"{folder} on node {host()} must be a folder of user {os.getuid()} with mode 0700, and "
            f"it is {stat.filemode(status.st_mode)} of user {status.st_uid}. Remove it, or set "
            "TMPDIR to another folder for Ray's processes there"
        )
    return folder


@cache  # an unchanged file is read once in a process, whatever the number of trials
def _checksum(path: Path, inode: int, size: int, modified: int) -> str:
    return checksum(path)


def sound(path: Path, digest: str) -> bool:
    """Return whether a path is a file of this user's alone, with this content."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        return False
    return _checksum(path, status.st_ino, status.st_size, status.st_mtime_ns) == digest


def received(
    run: str, name: str, digests: Mapping[str, str], content: Callable[[str], np.ndarray]
) -> Path:
    """Return where a file or folder is on this node; write what is missing or not sound.

    Args:
        run: the name of the run's own folder.
        name: the last part of the path that is returned.
        digests: SHA-256 by path inside of the folder; for a file its path is `.`.
        content: returns the bytes of a digest.

    Raises:
        NotReached: the folder cannot be trusted, or what arrives has another content.
    """
    private(home())
    _remove_old(but=run)
    root = private(home() / run)
    with FileLock(root / ".lock", mode=0o600):
        _use(root)
        os.utime(root)
        for digest in set(digests.values()):
            if not sound(root / digest, digest):
                _write(root / digest, digest, content(digest))
        view = private(root / f"{key_of({'name': name, 'files': dict(digests)})}.view")
        for inside, digest in digests.items():
            _link(root / digest, view / name / PurePosixPath(inside))
    return view / name


def remove(run: str) -> None:
    """Remove a run's files from this node, and those that crashed runs have left long ago."""
    with suppress(NotReached, OSError):
        private(home())
        shutil.rmtree(home() / run, ignore_errors=True)
        _remove_old(but=run)


def _write(path: Path, digest: str, content: np.ndarray) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            content.tofile(file)
        if checksum(Path(partial)) != digest:
            raise NotReached(
                f"a file arrived on node {host()} with another content than was sent (SHA-256 "
                f"{digest[:12]}...)"
            )
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _link(file: Path, target: Path) -> None:
    """Make `target` a hard link to `file`, unless it is one."""
    with suppress(FileNotFoundError):
        if os.path.samestat(target.lstat(), file.lstat()):
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, target)


@cache
def _use(root: Path) -> int:
    """Hold a lock that says, as long as this process lives, that the files are in use."""
    descriptor = os.open(root / ".used", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _remove_old(*, but: str) -> None:
    """Remove the files of runs that ended without doing so."""
    for root in home().iterdir():
        with suppress(OSError):
            if root.name != but and time.time() - root.lstat().st_mtime > AGE and _unused(root):
                shutil.rmtree(root, ignore_errors=True)


def _unused(root: Path) -> bool:
    descriptor = os.open(root / ".used", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
