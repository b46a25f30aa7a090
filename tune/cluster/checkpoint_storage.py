"""Where the checkpoints of a run's trials are: in its folder, or where `checkpoints` says.

A checkpoint is named by a path from the run folder on, an absolute path, or a URI. Ray Tune writes
them; here they are found, fetched and removed. Both work on pyarrow's file systems.
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
# A server that hangs is given up after so many seconds, so often; pyarrow's own defaults come to
# a minute and a half for S3, and a quarter of an hour for Google's.
SILENCE, ATTEMPTS = 10, 3


class NotReached(UserError):
    """Checkpoints cannot be listed, read or written where they are."""


class _S3(fs.S3FileSystem):
    """Goes to Ray's workers, and into Ray's own files, as its URI.

    So each process takes the credentials from its own environment, and the limit on retries, which
    pyarrow's own way of pickling leaves out, goes along.
    """

    uri: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _s3, (self.uri,)


def _s3(uri: str, attempts: int = ATTEMPTS) -> _S3:
    found, _ = fs.FileSystem.from_uri(uri)
    options = found.__reduce__()[1][0]  # all that the URI and AWS_ENDPOINT_URL say
    patience = fs.AwsStandardS3RetryStrategy(max_attempts=attempts)
    ours = {"connect_timeout": 5, "request_timeout": SILENCE, "retry_strategy": patience}
    made = _S3(**{**options, **ours})
    made.uri = uri
    return made


def _file_system(place: str, attempts: int = ATTEMPTS) -> tuple[fs.FileSystem, str]:
    """Return pyarrow's file system for an absolute path or a URI, and the path on it."""
    if urlsplit(place).scheme in ("gs", "gcs") and "retry_limit_seconds" not in place:
        place += ("&" if "?" in place else "?") + f"retry_limit_seconds={attempts * SILENCE}"
    found, path = fs.FileSystem.from_uri(place)
    return (_s3(place, attempts) if isinstance(found, fs.S3FileSystem) else found), path


def below(place: str, path: str) -> str:
    """Return what is called `path` under a folder or a URI, whose query stays at the end."""
    if "://" not in place:
        return f"{place.rstrip('/')}/{path}"
    start, mark, query = place.partition("?")
    return f"{start.rstrip('/')}/{path}{mark}{query}"


def settle(spec: Spec, record: Record) -> None:
    """Find out whether `checkpoints` can be used, before anything is computed; note the place.

    By one small write, read and delete under the run's own prefix, which no other run may hold.

    Raises:
        UserError: it cannot be used.
    """
    if spec.checkpoints is None:
        return
    go_on = f"go on with `{resume_command(record.folder)}`"
    noted = record.info.get("checkpoints")
    place = noted or below(spec.checkpoints, record.folder.name)
    try:
        with _reaching(place):
            files, root = _file_system(place, attempts=1)
            everything = fs.FileSelector(root, allow_not_found=True, recursive=True)
            held = [] if noted else [i for i in files.get_file_info(everything) if i.is_file]
            files.create_dir(root)
            _probe(files, f"{root}/.probe-{uuid4().hex}")
    except NotReached as error:
        way = (
            "see that the bucket is there, that its endpoint is what AWS_ENDPOINT_URL or the URI "
            "says, and that the credentials in the environment may list, read, write and delete"
            if "://" in place
            else "see that it is a folder in which you may write"
        )
        raise UserError(f"{error}: {way}, then {go_on}") from error
    if held:
        raise UserError(
            f"{place} holds {len(held)} files of another run called {record.folder.name!r}: choose "
            "another --name, or remove them"
        )
    record.update(checkpoints=place)


def _probe(files: fs.FileSystem, path: str) -> None:
    content = b"preftune"
    with files.open_output_stream(path) as stream:
        stream.write(content)
    with files.open_input_stream(path) as stream:
        found = stream.read()
    files.delete_file(path)
    if found != content:
        raise OSError(f"{path} holds {len(found)} bytes after {len(content)} were written")


@contextmanager
def _reaching(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ArrowException) as error:
        raise NotReached(f"the checkpoints in {place} cannot be reached ({said(error)})") from error


def said(error: BaseException) -> str:
    """Return what a file system said, without what it tells about its own calls."""
    first = str(error).strip().partition("\n")[0]
    name, _, told = first.rpartition("AWS Error ")[2].partition(" operation: ")
    if not told:
        return storage_fault(error) or first.partition(" To create buckets")[0].rstrip(".")
    # `ACCESS_DENIED during PutObject operation: Access Denied. (Request ID: ...)`
    told = told.rpartition("Details: ")[2].partition(" (Request ID")[0]
    return f"{name.partition(' ')[0]}: {told.rstrip('.')}"


@contextmanager
def opened(checkpoint: str | Checkpoint) -> Iterator[Path]:
    """Give a checkpoint as a folder of this machine: itself, or a copy for as long as this lasts.

    One that is gone is an empty folder, which `damage` has words for.

    Args:
        checkpoint: an absolute path, a URI, or what Ray gives a trial to go on from.

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
        folder = Path(f"{scratch}/{path}")  # what is said of damage names the whole of it
        folder.mkdir(parents=True)
        with _reaching(place), suppress(FileNotFoundError):
            fs.copy_files(path, str(folder), source_filesystem=files)
        yield folder


def trouble(place: str) -> str | None:
    """Say what is wrong with a checkpoint, or return None when every file has its checksum.

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
        """Raises:
        NotReached: the run has them in a place that pyarrow cannot open.
        """
        kept = record.info.get("checkpoints")
        self.place = kept or str((record.folder / OWN).absolute())
        self.named = kept or OWN
        with _reaching(self.place):
            self.file_system, self.root = _file_system(self.place)

    def name(self, path: str) -> str:
        """Return the name of a checkpoint, given its path on the file system."""
        return below(self.named, str(Path(path).relative_to(self.root)))

    def add(self, folder: Path, path: str) -> str:
        """Put a checkpoint in at `path` below the others; return its name."""
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
        """Return how many Tuners have written here."""
        with _reaching(self.place):
            here = fs.FileSelector(self.root, allow_not_found=True)
            return len(self.file_system.get_file_info(here))

    def remove(self, unwanted: Callable[[int, str], bool]) -> None:
        """Remove the checkpoints that are unwanted, by their trial's number and their name."""
        with _reaching(self.place):
            everything = fs.FileSelector(self.root, allow_not_found=True, recursive=True)
            found = [Path(info.path) for info in self.file_system.get_file_info(everything)]
        for path in found:
            if path.match(f"{TRIAL}*/checkpoint_*"):
                # Ray adds to the name where it has given a trial up and got it again.
                number = int(path.parent.name.removeprefix(TRIAL).partition("_")[0])
                if unwanted(number, self.name(str(path))):
                    with suppress(OSError):  # the next time, then
                        self.file_system.delete_dir(str(path))


def _link(folder: Path, target: Path) -> None:
    """Copy a folder; by hard links where there are any, so that nothing is held twice."""
    shutil.rmtree(target, ignore_errors=True)  # half a copy, of a driver that was killed
    try:
        shutil.copytree(folder, target, copy_function=os.link)
    except (OSError, shutil.Error):  # another file system
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
