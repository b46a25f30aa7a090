"""Raw rows from where a search says they are: the Hub, a folder, a file or `quickstart`."""

import difflib
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.fingerprint import generate_random_fingerprint
from datasets.naming import camelcase_to_snakecase
from huggingface_hub.errors import LocalEntryNotFoundError

from search_spaces.errors import UserError
from search_spaces.locations import QUICKSTART, is_hub_id
from trainables.artifacts import checksum
from trainables.data.pairs import COLUMNS, FORMATS
from trainables.hub import first_sentence, hub_errors, no_such_path, page, pin_dataset, unreachable

FILES = (".parquet", ".jsonl", ".jsonl.gz")
HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # JSON can spell what UTF-8 cannot hold
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def load_rows(
    path: str, name: str | None = None, split: str = "train", revision: str | None = None
) -> Dataset:
    """Load the raw rows: the columns `prompt` (where there is one), `chosen` and `rejected`.

    Args:
        path: Hub id, folder, .parquet, .jsonl or .jsonl.gz file, or `quickstart`.
        name: configuration of a Hub data set or folder.
        split: as `datasets` spells it, slices such as `train[:10%]` included.
        revision: branch, tag or commit of a Hub id.

    Raises:
        UserError: if there are no such data, they are damaged or empty, or the columns are others.
    """
    datasets.disable_progress_bars()
    where = Path(path).expanduser()
    on_hub = is_hub_id(path)
    if not on_hub and revision is not None:
        raise UserError(
            f"`dataset.revision` {revision!r} has no effect for the local data {path!r}: remove "
            "it, or give a Hub id."
        )
    if not on_hub and name is not None and not where.is_dir():
        raise UserError(f"`dataset.name` {name!r}: {path!r} has no configurations; leave it out.")
    if path == QUICKSTART:
        from trainables.quickstart.world import rows as draw

        found = DatasetDict(train=Dataset.from_list(draw()))
    elif on_hub:
        found = from_hub(path, name, revision)
    elif where.is_dir():
        found = from_folder(where, name)
    elif where.is_file():
        found = DatasetDict(train=in_memory(read_file(where)))
    else:
        raise UserError(no_such_path("dataset", path))
    rows = pick(found, split, path)
    check_columns(rows.column_names, path)
    if len(rows) == 0:
        raise UserError(f"The data set {path!r} has no rows in split {split!r}: choose another.")
    rows = rows.select_columns([column for column in COLUMNS if column in rows.column_names])
    try:
        rows.data.validate(full=True)  # parquet does not check that its texts are UTF-8
    except pa.ArrowException as error:
        reason = first_sentence(error)
        raise UserError(f"The data set {path!r} is damaged ({reason}): fetch it again.") from error
    return rows


def source_of(
    path: str, name: str | None = None, split: str = "train", revision: str | None = None
) -> dict[str, str | None]:
    """Say where rows come from, so that other rows have another answer: what a cache key needs.

    Returns:
        `path`, `name`, `split`, `revision` (the commit of a Hub id), `sha256` (of local files).

    Raises:
        UserError: if there are no such data.
    """
    source = {"path": path, "name": name, "split": split, "revision": revision, "sha256": None}
    where = Path(path).expanduser()
    if path == QUICKSTART:
        from trainables.quickstart import world

        source["sha256"] = checksum(Path(world.__file__))  # the rows are drawn by this file
    elif is_hub_id(path):
        source["revision"] = commit_of(path, name, revision)
    elif where.is_file():
        source["sha256"] = checksum(where)
    elif where.is_dir():
        files = sorted(file for file in where.rglob("*") if file.is_file())
        sums = {str(file.relative_to(where)): checksum(file) for file in files}
        source["sha256"] = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    else:
        raise UserError(no_such_path("dataset", path))
    return source


def commit_of(path: str, name: str | None, revision: str | None) -> str:
    """Return the commit of a Hub data set, or of its cached copy while the Hub is out of reach.

    Raises:
        UserError: if there is no such data set, or neither the Hub nor a copy can be reached.
    """
    commit = pin_dataset(path, revision)
    if commit is not None:
        return commit
    cached = cached_commit(path, name)
    if cached is None:
        raise unreachable("dataset", path)
    if revision not in (None, cached):
        raise UserError(
            f"The Hub cannot be reached to fetch revision {revision!r} of the data set {path!r}, "
            f"whose newest copy in the cache is of commit {cached}: check the network and "
            "HF_HUB_OFFLINE, or set dataset.revision to that commit."
        )
    return cached


def cached_commit(path: str, name: str | None) -> str | None:
    """Return the commit of the copy that `datasets` loads while the Hub is out of reach."""
    *owner, own = path.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE)
    root /= "___".join([*owner, camelcase_to_snakecase(own)])
    # One that is still being built, or was when the process died, is called `<commit>.incomplete`.
    found = root.glob(f"{name or '*'}/*/*")
    folders = [folder for folder in found if folder.is_dir() and not folder.suffix]
    newest = max(folders, key=lambda folder: folder.stat().st_mtime, default=None)
    return None if newest is None else newest.name


def from_hub(path: str, name: str | None, revision: str | None) -> DatasetDict:
    """Load a Hub data set, or its cached copy while the Hub is out of reach."""
    # `datasets` takes many retries to find out what this finds at once.
    commit = commit_of(path, name, revision)
    with hub_errors("dataset", path, revision), loading(path, name):
        try:
            found = datasets.load_dataset(path, name, revision=commit)
        except FileNotFoundError as error:
            # The Hub knows the commit and did not give a file of it; its answer is not passed on.
            if LocalEntryNotFoundError.__name__ not in str(error):
                raise
            raise UserError(
                f"The Hub did not give the files of the data set {path!r}: try again later, or see "
                f"{page('dataset', path)}."
            ) from error
    # Whatever goes wrong on the way, `datasets` takes the newest copy in its cache instead.
    held = {
        Path(file["filename"]).parent.name for rows in found.values() for file in rows.cache_files
    }
    if held - {commit}:
        raise UserError(
            f"The data set {path!r} could not be fetched at commit {commit}, and the cache holds "
            f"another ({', '.join(sorted(held))}): try again later."
        )
    return found


def from_folder(folder: Path, name: str | None) -> DatasetDict:
    """Load what `save_to_disk` wrote, or a folder of data files with their splits."""
    with loading(str(folder), name):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
            return found if isinstance(found, DatasetDict) else DatasetDict(train=found)
    try:
        with loading(str(folder), name):
            return datasets.load_dataset(str(folder), name)
    except UserError:
        for file in sorted(folder.rglob("*")):
            if file.name.endswith(FILES):
                check_file(file)  # names the file and the line, where one is to blame
        raise


@contextmanager
def loading(path: str, name: str | None) -> Iterator[None]:
    """Turn what `datasets` raises into one sentence about `path`."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the error below says it all
    try:
        yield
    except DatasetNotFoundError as error:
        raise UserError(f"The data set {path!r} cannot be had: {first_sentence(error)}") from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        # `datasets` refuses loading scripts, unknown configurations (and lists the ones there are),
        # folders without data files, and files that do not belong together.
        asked = f" (`dataset.name`: {name})" if name else ""
        cause = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"The data set {path!r}{asked} cannot be loaded: {cause}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def pick(found: DatasetDict, split: str, path: str) -> Dataset:
    """Return the rows of `split`, which may be a slice or a sum of splits.

    Raises:
        UserError: if there is no such split; it lists those there are.
    """
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(
            {name: len(rows) for name, rows in found.items()}
        )
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"The data set {path!r} has no split {split!r}: it has {', '.join(found)}, and slices "
            "such as `train[:10%]`."
        ) from error
    chosen = [
        found[part.splitname].select(range(part.from_, max(part.from_, part.to))) for part in parts
    ]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def in_memory(table: pa.Table) -> Dataset:
    """Make a data set of a table without reading it.

    The fingerprint names cached results, of which there are none here; left to itself, `datasets`
    would pickle all of the table to compute it.
    """
    return Dataset(table, fingerprint=generate_random_fingerprint())


def check_columns(found: list[str], path: str) -> None:
    """Refuse rows without answers.

    Raises:
        UserError: with the columns found, the formats understood, and the nearest names.
    """
    missing = [column for column in ("chosen", "rejected") if column not in found]
    if not missing:
        return
    near = [name for column in missing for name in difflib.get_close_matches(column, found, n=1)]
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    raise UserError(
        f"The data set {path!r} has no column {' or '.join(missing)}{hint}: it has "
        f"{', '.join(found) or 'none'}, and needs {FORMATS}."
    )


def read_file(path: Path) -> pa.Table:
    """Read one .parquet, .jsonl or .jsonl.gz file into memory; of known columns only."""
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
    found = {}
    for column in [column for column in COLUMNS if column in names]:
        texts = [value if is_text(value) else None for value in values[column]]
        talks = [talk(value) for value in values[column]]
        if sum(value is not None for value in talks) > sum(value is not None for value in texts):
            found[column] = pa.array(talks, MESSAGES)
        else:
            found[column] = pa.array(texts, pa.string())
    if not names:
        return pa.table(
            {"chosen": pa.array([], pa.string()), "rejected": pa.array([], pa.string())}
        )
    check_columns(list(names), str(path))
    return pa.table(found)


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


def talk(value: object) -> list[dict[str, str]] | None:
    """Return a list of messages with the keys Arrow is told of, or None if it is something else."""
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
