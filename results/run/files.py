"""Reading and writing single files of a run folder: tolerant where a crash explains the damage."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from search_spaces.errors import UserError


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file.

    Raises:
        UserError: the file is there but holds no JSON object.
    """
    return _mapping(path, json.loads, "JSON object")


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Read a YAML mapping; None where there is no such file.

    Raises:
        UserError: the file is there but holds no YAML mapping.
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
        raise UserError(f"{path} holds no {kind}; restore it, or open another run.")
    return value


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Read a `.jsonl` file that may still grow.

    Returns:
        The records, and the numbers (from 1) of complete lines that are not JSON objects. An
        unfinished last line is somebody's write in progress and counts as neither.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [], []
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip():
            damaged.append(number)
    return records, damaged


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
