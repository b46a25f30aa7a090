"""Raw rows from where a search says they are: the Hub, a folder, a file or `quickstart`."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.naming import camelcase_to_snakecase
from huggingface_hub.errors import LocalEntryNotFoundError

from search_spaces.errors import UserError
from search_spaces.locations import QUICKSTART, is_hub_id
from trainables.artifacts import checksum
from trainables.data.columns import Reading, check_columns
from trainables.data.files import FILES, check_file, in_memory, read_file, split_names
from trainables.hub import first_sentence, hub_errors, no_such_path, page, pin_dataset, unreachable


class Rows(NamedTuple):
    """Raw rows: the columns that may hold a part of a pair, and the names of the others."""

    data: Dataset
    unread: list[str]


def load_rows(
    path: str,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    reading: Reading | None = None,
) -> Rows:
    """Load the raw rows.

    Args:
        path: Hub id, folder, .parquet, .jsonl or .jsonl.gz file, or `quickstart`.
        name: configuration of a Hub data set or folder.
        split: as `datasets` writes it, slices such as `train[:10%]` included.
        revision: branch, tag or commit of a Hub id.
        reading: how the search says they are to be read.

    Raises:
        UserError: if there are no such data, they are damaged or empty, or the columns are others.
    """
    datasets.disable_progress_bars()
    reading = reading or Reading()
    unread: list[str] = []
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

        splits = DatasetDict(train=Dataset.from_list(draw()))
    elif on_hub:
        splits = from_hub(path, name, revision)
    elif where.is_dir():
        splits = from_folder(where, name)
    elif where.is_file():
        table, unread = read_file(where, reading)
        splits = DatasetDict(train=in_memory(table))
    else:
        raise UserError(no_such_path("dataset", path))
    rows = pick(splits, split, path)
    check_columns([*rows.column_names, *unread], path, reading)
    if len(rows) == 0:
        raise UserError(f"The data set {path!r} has no rows in split {split!r}: choose another.")
    known, others = split_names(rows.column_names, reading)
    rows = rows.select_columns(known)
    try:
        rows.data.validate(full=True)  # parquet does not check that its texts are UTF-8
    except pa.ArrowException as error:
        reason = first_sentence(error)
        raise UserError(f"The data set {path!r} is damaged ({reason}): fetch it again.") from error
    return Rows(rows, [*others, *unread])


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
    entries = root.glob(f"{name or '*'}/*/*")
    folders = [folder for folder in entries if folder.is_dir() and not folder.suffix]
    newest = max(folders, key=lambda folder: folder.stat().st_mtime, default=None)
    return None if newest is None else newest.name


def from_hub(path: str, name: str | None, revision: str | None) -> DatasetDict:
    """Load a Hub data set, or its cached copy while the Hub is out of reach."""
    # `datasets` takes many retries to find out what this finds at once.
    commit = commit_of(path, name, revision)
    with hub_errors("dataset", path, revision), loading(path, name):
        try:
            splits = datasets.load_dataset(path, name, revision=commit)
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
        Path(file["filename"]).parent.name for rows in splits.values() for file in rows.cache_files
    }
    if held - {commit}:
        raise UserError(
            f"The data set {path!r} could not be fetched at commit {commit}, and the cache holds "
            f"another ({', '.join(sorted(held))}): try again later."
        )
    return splits


def from_folder(folder: Path, name: str | None) -> DatasetDict:
    """Load what `save_to_disk` wrote, or a folder of data files with their splits."""
    with loading(str(folder), name):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
            return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
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
        raise UserError(
            f"The data set {path!r} cannot be fetched: {first_sentence(error)}"
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        # `datasets` refuses loading scripts, unknown configurations (and lists the ones there are),
        # folders without data files, and files that do not belong together.
        asked = f" (`dataset.name`: {name})" if name else ""
        cause = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"The data set {path!r}{asked} cannot be loaded: {cause}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def pick(splits: DatasetDict, split: str, path: str) -> Dataset:
    """Return the rows of `split`, which may be a slice or a sum of splits.

    Raises:
        UserError: if there is no such split; it lists those there are.
    """
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(
            {name: len(rows) for name, rows in splits.items()}
        )
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"The data set {path!r} has no split {split!r}: it has {', '.join(splits)}, and slices "
            "such as `train[:10%]`."
        ) from error
    chosen = [
        splits[part.splitname].select(range(part.from_, max(part.from_, part.to))) for part in parts
    ]
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)
