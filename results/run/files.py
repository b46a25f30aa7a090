"""Reading and writing single files of a run folder: tolerant where a crash explains the damage."""

import json
import os
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import yaml
from pydantic import BaseModel

from search_spaces.errors import UserError

Arguments = TypeVarTuple("Arguments")
Parsed = TypeVar("Parsed")
Version = tuple[int, int, int] | None


def version(path: Path) -> Version:
    """What changes when a file does: inode, size and time; None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def parse_once(
    maxsize: int,
) -> Callable[[Callable[[*Arguments], Parsed]], Callable[[*Arguments], Parsed]]:
    """Remember what a function makes of files until one of them changes.

    A page that refreshes itself then reads only what is new. Every `Path` among the function's
    positional arguments is such a file. Its results are shared: nobody may change them.

    Args:
        maxsize: results that are remembered.
    """

    def decorate(parse: Callable[[*Arguments], Parsed]) -> Callable[[*Arguments], Parsed]:
        @lru_cache(maxsize)
        def remembered(_: tuple[Version, ...], arguments: tuple[*Arguments]) -> Parsed:
            return parse(*arguments)

        @wraps(parse)
        def parsed(*arguments: *Arguments) -> Parsed:
            # Taken before the file is read: what is written meanwhile is read the next time.
            versions = tuple(version(item) for item in arguments if isinstance(item, Path))
            return remembered(versions, arguments)

        return parsed

    return decorate


@parse_once(256)
def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file.

    Raises:
        UserError: the file is there but does not hold a JSON object.
    """
    return _mapping(path, json.loads, "JSON object")


@parse_once(64)
def read_yaml(path: Path) -> dict[str, Any] | None:
    """Read a YAML mapping; None where there is no such file.

    Raises:
        UserError: the file is there but does not hold a YAML mapping.
    """
    return _mapping(path, yaml.safe_load, "YAML mapping")


def _mapping(path: Path, parse: Callable[[str], Any], kind: str) -> dict[str, Any] | None:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read ({reason}); restore it, or open another run."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a {kind}; restore it, or open another run.")
    return value


def read_lines(path: Path, model: type[BaseModel]) -> tuple[list[dict[str, Any]], list[int]]:
    """Read a `.jsonl` file that may still grow.

    Args:
        path: the file.
        model: what each line must be.

    Returns:
        The records, and the numbers (from 1) of complete lines that are not such records. An
        unfinished last line is somebody's write in progress and counts as neither.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [], []
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            model.model_validate(record)
        except (ValueError, RecursionError):  # pydantic's error is a `ValueError`
            damaged.append(number)
        else:
            records.append(record)
    return records, damaged


# For files that are small and read again and again; the answers of all trials would fill memory.
read_records = parse_once(4096)(read_lines)


@parse_once(4096)
def damaged_lines(path: Path, model: type[BaseModel]) -> list[int]:
    """Return the numbers of the lines that `read_lines` leaves out."""
    return read_lines(path, model)[1]


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
