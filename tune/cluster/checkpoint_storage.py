"""The checkpoints of a run's trials are in its folder, or in the place that `checkpoints` names.

The name of a checkpoint is a path relative to the run folder, an absolute path, or a URI. Ray Tune
writes checkpoints; this module lists, fetches and removes them. Both use pyarrow's file systems.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from pyarrow import ArrowException, fs
from ray.tune import Checkpoint

from results.run import layout
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import damage, storage_fault
from tune.record import Record, resume_command

TRIAL = "trial_"  # Ray's name of a trial is this and its number
OWN = layout.TUNE  # of the run folder, where `checkpoints` names no other place
# Seconds to wait for a server that hangs, and how often to try. With pyarrow's defaults that is a
# minute and a half for S3, and a quarter of an hour for Google's storage.
SILENCE, ATTEMPTS = 10, 3


class NotReached(UserError):
    """Checkpoints cannot be listed, read or written where they are."""


class _S3(fs.S3FileSystem):
    """Pickles as its URI, for Ray's workers and Ray's own files.

    Each process then takes the credentials from its own environment. The limit on retries, which
    pyarrow's own pickling leaves out, is set again.
    """

    uri: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _s3, (self.uri,)


def _s3(uri: str, attempts: int = ATTEMPTS) -> _S3:
    parsed, _ = fs.FileSystem.from_uri(uri)
    options = parsed.__reduce__()[1][0]  # all that the URI and AWS_ENDPOINT_URL say
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=attempts)
    limits = {"connect_timeout": 5, "request_timeout": SILENCE, "retry_strategy": retries}
    file_system = _S3(**{**options, **limits})
    file_system.uri = uri
    return file_system


def _file_system(place: str, attempts: int = ATTEMPTS) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system for an absolute path or a URI, and the path on it."""
    if urlsplit(place).scheme in ("gs", "gcs") and "retry_limit_seconds" not in place:
        place += ("&" if "?" in place else "?") + f"retry_limit_seconds={attempts * SILENCE}"
    files, path = fs.FileSystem.from_uri(place)
    return (_s3(place, attempts) if isinstance(files, fs.S3FileSystem) else files), path


def below(place: str, path: str) -> str:
    """Return what is called `path` under a folder or a URI, whose query stays at the end."""
    if "://" not in place:
        return f"{place.rstrip('/')}/{path}"
    start, mark, query = place.partition("?")
    return f"{start.rstrip('/')}/{path}{mark}{query}"


def settle(spec: Spec, record: Record) -> None:
    """Check that `checkpoints` can be used, before anything is computed, and record the place.

    It writes, reads and deletes one small file under the run's prefix, which must be unused.

    Raises:
        UserError: it cannot be used.
    """
    if spec.checkpoints is None:
        return
    resume = f"resume with `{resume_command(record.folder)}`"
    recorded = record.info.get("checkpoints")
    place = recorded or below(spec.checkpoints, record.folder.name)
    try:
        with _reaching(place):
            files, root = _file_system(place, attempts=1)
            everything = fs.FileSelector(root, allow_not_found=True, recursive=True)
            held = [] if recorded else [i for i in files.get_file_info(everything) if i.is_file]
            files.create_dir(root)
            _probe(files, f"{root}/.probe-{uuid4().hex}")
    except NotReached as error:
        way = (
            "check that the bucket exists, that AWS_ENDPOINT_URL or the URI names its endpoint, "
            "and that the credentials in the environment may list, read, write and delete"
            if "://" in place
            else "check that it is a folder in which you may write"
        )
        raise UserError(f"{error}: {way}, then {resume}") from error
    if held:
        raise UserError(
            f"{place} holds {len(held)} files of another run called {record.folder.name!r}: set "
            "another --name, or remove the files"
        )
    record.update(checkpoints=place)


def _probe(files: fs.FileSystem, path: str) -> None:
    content = b"preftune"
    with files.open_output_stream(path) as stream:
        stream.write(content)
    with files.open_input_stream(path) as stream:
        stored = stream.read()
    files.delete_file(path)
    if stored != content:
        raise OSError(f"{path} holds {len(stored)} bytes after {len(content)} were written")


@contextmanager
def _reaching(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ArrowException) as error:
        raise NotReached(f"the checkpoints in {place} cannot be reached ({said(error)})") from error


def said(error: BaseException) -> str:
    """Return the message of a file system's error, without the details of its own calls."""
    first = str(error).strip().partition("\n")[0]
    name, _, message = first.rpartition("AWS Error ")[2].partition(" operation: ")
    if not message:
        return storage_fault(error) or first.partition(" To create buckets")[0].rstrip(".")
    # `ACCESS_DENIED during PutObject operation: Access Denied. (Request ID: ...)`
    message = message.rpartition("Details: ")[2].partition(" (Request ID")[0]
    return f"{name.partition(' ')[0]}: {message.rstrip('.')}"


@contextmanager
def opened(checkpoint: str | Checkpoint) -> Iterator[Path]:
    """Give a checkpoint as a folder of this machine: itself, or a copy within the block.

    A checkpoint that is gone is an empty folder, which `damage` describes.

    Args:
        checkpoint: an absolute path, a URI, or the checkpoint from which Ray resumes a trial.

    Raises:
        NotReached: it is elsewhere, and cannot be fetched.
    """
    place = checkpoint if isinstance(checkpoint, str) else checkpoint.path
    with _reaching(place):
        files, path = (
            _file_system(checkpoint)
            if isinstance(checkpoint, str)
            else (checkpoint.filesystem, checkpoint.path)
        )
    if isinstance(files, fs.LocalFileSystem):
        yield Path(path)
        return
    prefix = "preftune-checkpoint-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as scratch:
        folder = Path(f"{scratch}/{path}")  # messages about damage name the whole path
        folder.mkdir(parents=True)
        with _reaching(place), suppress(FileNotFoundError):
            fs.copy_files(path, str(folder), source_filesystem=files)
        yield folder


def trouble(place: str) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file has its checksum.

    Raises:
        NotReached: it is elsewhere, and cannot be fetched.
    """
    with opened(place) as folder:
        return damage(folder)


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        place: the folder or URI that holds them.
        file_system, root: the same for pyarrow.
    """

    def __init__(self, record: Record) -> None:
        """Open the place that the run records.

        Raises:
            NotReached: pyarrow cannot open it.
        """
        recorded = record.info.get("checkpoints")
        self.place = recorded or str((record.folder / OWN).absolute())
        self.named = recorded or OWN
        with _reaching(self.place):
            self.file_system, self.root = _file_system(self.place)

    def name(self, path: str) -> str:
        """Return the name of a checkpoint, given its path on the file system."""
        return below(self.named, str(Path(path).relative_to(self.root)))

    def add(self, folder: Path, path: str) -> str:
        """Add a checkpoint at `path`, relative to the root; return its name."""
        target = f"{self.root}/{path}"
        if isinstance(self.file_system, fs.LocalFileSystem):
            _link(folder, Path(target))
        else:
            with _reaching(self.place):
                self.file_system.create_dir(target)
                # Like Ray: pyarrow's uploads in threads can wait for each other
                # (apache/arrow#32372).
                fs.copy_files(
                    str(folder),
                    target,
                    destination_filesystem=self.file_system,
                    use_threads=False,
                )
        return self.name(target)

    def attempts(self) -> int:
        """Return how many experiments of Ray Tune are stored here."""
        with _reaching(self.place):
            here = fs.FileSelector(self.root, allow_not_found=True)
            return len(self.file_system.get_file_info(here))

    def remove(self, unwanted: Callable[[int, str], bool]) -> None:
        """Remove the checkpoints that are unwanted, by their trial's number and their name."""
        with _reaching(self.place):
            everything = fs.FileSelector(self.root, allow_not_found=True, recursive=True)
            paths = [Path(info.path) for info in self.file_system.get_file_info(everything)]
        for path in paths:
            if path.match(f"{TRIAL}*/checkpoint_*"):
                # Ray extends the name of a trial that it abandoned and started again.
                number = int(path.parent.name.removeprefix(TRIAL).partition("_")[0])
                if unwanted(number, self.name(str(path))):
                    with suppress(OSError):  # it is removed the next time
                        self.file_system.delete_dir(str(path))


def _link(folder: Path, target: Path) -> None:
    """Copy a folder by hard links where the file system has them: nothing is stored twice."""
    shutil.rmtree(target, ignore_errors=True)  # half a copy, from a driver that was killed
    try:
        shutil.copytree(folder, target, copy_function=os.link)
    except (OSError, shutil.Error):  # another file system
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
