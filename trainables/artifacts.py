"""Prepared folders: named by what went into them, made once, checked on every use."""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

META = "meta.json"
# What a file system says when it is full, broken, gone or closed to writing.
STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
)


def storage_fault(error: BaseException) -> str | None:
    """Return what the file system said, if an exception comes from one that is full or broken.

    By its words too: libraries in Rust or C++, and Ray, pass them on as errors of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in STORAGE_ERRORS:
            return f"{seen.strerror}: {seen.filename}" if seen.filename else seen.strerror
        for number in STORAGE_ERRORS:
            if os.strerror(number) in str(seen):
                return os.strerror(number)
        seen = seen.__cause__ or seen.__context__
    return None


def key_of(inputs: Mapping[str, object]) -> str:
    """Return the name of a content: 16 hexadecimal digits of the SHA-256 of its sorted JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or what stood there before."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(
            name, 0o644
        )  # mkstemp makes it private; a run folder is shared like any other file
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write_bytes(path, text.encode())


def json_text(value: object, indent: int | None = None) -> str:
    """Return `value` as JSON; numbers that are not finite, which JSON has not, as null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json_text(value, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """Say what is wrong with a prepared folder, or return None when every file has its checksum."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        files: dict[str, str] = dict(meta["files"])
    except FileNotFoundError:
        return f"{folder} is not complete ({META} is missing)"
    except (ValueError, KeyError, TypeError):
        return f"{folder / META} cannot be read"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if checksum(path) != expected:
            return f"{path} has changed since it was written"
    return None


def seal(folder: Path, **facts: object) -> None:
    """Write `meta.json`, which holds the facts and checksums, and marks the folder as complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != META)
    sums = {str(path.relative_to(folder)): checksum(path) for path in files}
    write_json(folder / META, {**facts, "files": sums})


def build_once(
    root: Path, stage: str, inputs: Mapping[str, object], build: Callable[[Path], None]
) -> Path:
    """Return the prepared folder of `inputs`, calling `build` only where there is none yet.

    Args:
        root: the `prepared` folder.
        stage: `checked`, `data`, `sft`, `reference` or `answers`.
        inputs: everything that the content depends on; JSON values only.
        build: fills the empty folder that it is given.

    A lock keeps a second process waiting for the first one's result. A folder whose checksums do
    not hold is made again, with a warning that names the file.
    """
    root.mkdir(parents=True, exist_ok=True)
    key = key_of(inputs)
    folder = root / f"{stage}-{key}"
    with FileLock(root / f".{folder.name}.lock"):
        if folder.exists():
            fault = damage(folder)
            if fault is None:
                return folder
            log.warning("%s: computing it again", fault)
            shutil.rmtree(folder)
        started = time.monotonic()
        work = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder.name}."))
        try:
            build(work)
            seal(
                work,
                stage=stage,
                key=key,
                inputs=dict(inputs),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - started, 1),
            )
            work.chmod(0o755)
            work.rename(folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return folder
