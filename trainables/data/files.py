"""Rows from one data file, or a sentence about what is wrong with it."""

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

from search_spaces.errors import UserError

FORMATS = (
    "`prompt`, `chosen` and `rejected`, or `chosen` and `rejected` that begin with the same "
    "prompt; each of them text or a list of {role, content} messages"
)
COLUMNS = ("prompt", "chosen", "rejected")
FILES = (".parquet", ".jsonl", ".jsonl.gz")
HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # JSON can hold what UTF-8 cannot
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def in_memory(table: pa.Table) -> Dataset:
    """Make a data set of a table without reading it.

    The fingerprint names cached results, of which there are none here; left to itself, `datasets`
    would pickle all of the table to compute it.
    """
    return Dataset(table, fingerprint=generate_random_fingerprint())


def check_columns(columns: list[str], path: str) -> None:
    """Refuse rows without answers.

    Raises:
        UserError: with the columns there are, the formats understood, and the nearest names.
    """
    missing = [column for column in ("chosen", "rejected") if column not in columns]
    if not missing:
        return
    near = [name for column in missing for name in difflib.get_close_matches(column, columns, n=1)]
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    raise UserError(
        f"The data set {path!r} has no column {' or '.join(missing)}{hint}: it has "
        f"{', '.join(columns) or 'none'}, and needs {FORMATS}."
    )


def read_file(path: Path) -> pa.Table:
    """Read the known columns of a .parquet, .jsonl or .jsonl.gz file into memory."""
    if path.name.endswith(".parquet"):
        check_file(path)
        schema = pq.read_schema(path)
        check_columns(schema.names, str(path))
        known = [column for column in COLUMNS if column in schema.names]
        # A batch at a time: reading it all at once takes several times the memory of its content.
        try:
            with pq.ParquetFile(path) as file:
                batches = list(file.iter_batches(1000, columns=known, use_threads=False))
        except (pa.ArrowException, OSError) as error:  # pages between an undamaged head and foot
            raise damaged_parquet(path) from error
        return pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in known]))
    if path.name.endswith(FILES):
        return read_jsonl(path)
    raise UserError(f"The data file {str(path)!r} is none of {', '.join(FILES)}: convert it.")


def check_file(path: Path) -> None:
    """Refuse a damaged file by name.

    Raises:
        UserError: for JSON lines, with the number of the line.
    """
    if not path.name.endswith(".parquet"):
        for _ in read_lines(path):
            pass
        return
    try:
        pq.ParquetFile(path).close()
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(path) from error


def damaged_parquet(path: Path) -> UserError:
    """Name a parquet file that cannot be read."""
    return UserError(f"The parquet file {str(path)!r} is damaged: fetch it again.")


def read_jsonl(path: Path) -> pa.Table:
    """Read JSON lines, each known column as text or as messages, whichever most of its values are.

    A value of the other kind becomes null, and its row is counted as malformed later.
    """
    values: dict[str, list[object]] = {column: [] for column in COLUMNS}
    names: dict[str, None] = {}
    for row in read_lines(path):
        names.update(dict.fromkeys(row))
        for column in COLUMNS:
            values[column].append(row.get(column))
    arrays = {}
    for column in [column for column in COLUMNS if column in names]:
        texts = [value if is_text(value) else None for value in values[column]]
        conversations = [messages(value) for value in values[column]]
        if texts.count(None) > conversations.count(None):
            arrays[column] = pa.array(conversations, MESSAGES)
        else:
            arrays[column] = pa.array(texts, pa.string())
    if not names:
        return pa.table(
            {"chosen": pa.array([], pa.string()), "rejected": pa.array([], pa.string())}
        )
    check_columns(list(names), str(path))
    return pa.table(arrays)


def read_lines(path: Path) -> Iterator[dict[str, object]]:
    """Yield the objects of a file of JSON lines; blank lines are skipped.

    Raises:
        UserError: with the number of the line that is not a JSON object.
    """
    number = 0
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 (the handlers below name it)
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield row
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"The file {str(path)!r} is damaged after line {number}: fetch it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"Line {number} of {str(path)!r} is not a JSON object: fix or remove it."
        ) from error


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether `value` is a text that Arrow can hold."""
    return isinstance(value, str) and HALF_A_PAIR.search(value) is None


def messages(value: object) -> list[dict[str, str]] | None:
    """Return messages with the keys of `MESSAGES`, or None if the value is something else."""
    if not isinstance(value, list):
        return None
    turns = []
    for message in value:
        if not isinstance(message, dict):
            return None
        role, content = message.get("role"), message.get("content")
        if not is_text(role) or not is_text(content):
            return None
        turns.append({"role": role, "content": content})
    return turns
