"""Rows from one data file, or a sentence about what is wrong with it."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.features.features import generate_from_arrow_type
from datasets.fingerprint import generate_random_fingerprint

from search_spaces.errors import UserError
from trainables.data.columns import KNOWN, Reading, check_columns
from trainables.data.texts import NOT_TEXT, is_text

FILES = (".parquet", ".jsonl", ".jsonl.gz")


def in_memory(table: pa.Table) -> Dataset:
    """Make a data set of a table without reading it.

    The fingerprint names cached results, of which there are none here; left to itself, `datasets`
    would pickle all of the table to compute it.
    """
    return Dataset(table, fingerprint=generate_random_fingerprint())


def read_file(path: Path, reading: Reading) -> tuple[pa.Table, list[str]]:
    """Read a .parquet, .jsonl or .jsonl.gz file into memory.

    Returns:
        The columns that may hold a part of a pair, and the names of the others.

    Raises:
        UserError: the file cannot be read, or lacks columns.
    """
    if path.name.endswith(".parquet"):
        return read_parquet(path, reading)
    if path.name.endswith(FILES):
        return read_jsonl(path, reading)
    raise UserError(f"The data file {str(path)!r} is none of {', '.join(FILES)}: convert it.")


def split_names(names: Iterable[str], reading: Reading) -> tuple[list[str], list[str]]:
    """Return the names of columns that may hold a part of a pair, and the others."""
    may = {*KNOWN, *reading.named()}
    names = list(names)
    return [name for name in names if name in may], [name for name in names if name not in may]


def read_parquet(path: Path, reading: Reading) -> tuple[pa.Table, list[str]]:
    """Read the columns of a parquet file that may hold a part of a pair."""
    check_file(path)
    schema = pq.read_schema(path)
    check_columns(schema.names, str(path), reading)
    known, others = split_names(schema.names, reading)
    # A batch at a time: reading it all at once takes several times the memory of its content.
    try:
        with pq.ParquetFile(path) as file:
            batches = list(file.iter_batches(1000, columns=known, use_threads=False))
    except (pa.ArrowException, OSError) as error:  # pages between an undamaged head and foot
        raise damaged_parquet(path) from error
    table = pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in known]))
    for index, field in enumerate(table.schema):
        if not readable(field.type):
            values = as_json(table.column(index), field.name, path)
            table = table.set_column(index, field.name, values)
    return table, others


def readable(kind: pa.DataType) -> bool:
    """Say whether `datasets` has a type for a column of Arrow's."""
    try:
        generate_from_arrow_type(kind)
    except (ValueError, NotImplementedError, TypeError):
        return False
    return True


def as_json(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    """Return a column of a type that `datasets` does not know as JSON.

    Raises:
        UserError: its values are not text, numbers, lists and mappings.
    """
    try:
        return pa.array([NOT_TEXT + json.dumps(_plain(v)) for v in column.to_pylist()], pa.string())
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"The column {name!r} of {str(path)!r} has the type {column.type}, which "
            "cannot be read: write it as text or as lists of {role, content} messages."
        ) from error


def _plain(value: object) -> object:
    """Return Arrow's value as JSON has it; a map, which is a list of pairs, as a mapping."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        pairs = [item for item in value if isinstance(item, tuple) and len(item) == 2]
        if value and len(pairs) == len(value):
            return {key: _plain(item) for key, item in pairs}
        return [_plain(item) for item in value]
    return value


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


def read_jsonl(path: Path, reading: Reading) -> tuple[pa.Table, list[str]]:
    """Read JSON lines: texts as they are, anything else as JSON behind `NOT_TEXT`."""
    values: dict[str, list[str | None]] = {}
    names: dict[str, None] = {}
    may = {*KNOWN, *reading.named()}
    rows = 0
    for row in read_lines(path):
        names.update(dict.fromkeys(row))
        for column in may & row.keys():
            before = values.setdefault(column, [])
            before += [None] * (rows - len(before))
            before.append(_stored(row[column]))
        rows += 1
    if not names:
        return pa.table({name: pa.array([], pa.string()) for name in ("chosen", "rejected")}), []
    check_columns(list(names), str(path), reading)
    known, others = split_names(names, reading)
    for column in known:
        values[column] += [None] * (rows - len(values[column]))
    return pa.table({name: pa.array(values[name], pa.string()) for name in known}), others


def _stored(value: object) -> str | None:
    if isinstance(value, str):
        return value if is_text(value) and not value.startswith(NOT_TEXT) else NOT_TEXT + "0"
    return None if value is None else NOT_TEXT + json.dumps(value)


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
