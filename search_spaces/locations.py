"""What `model`, `dataset.path` and `judge` mean: `quickstart`, a file, a folder or a Hub id."""

import os
from pathlib import Path
from typing import Any, Literal

from search_spaces.errors import Problem

QUICKSTART = "quickstart"
LOCAL_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".py")

Meaning = Literal["quickstart", "file", "folder", "hub", "missing"]


def meaning_of(value: str) -> Meaning:
    """Return what a location means on this machine now.

    A path on the disk comes before a Hub id of the same name. `missing` is a path that does not
    exist, or text that can be neither a path nor a Hub id.
    """
    if value == QUICKSTART:
        return "quickstart"
    if "\0" in value:  # which no path and no Hub id holds
        return "missing"
    path = os.path.expanduser(value)
    if os.path.exists(path):
        return "folder" if os.path.isdir(path) else "file"
    return "missing" if is_local(value) or not _valid_repo_id(value) else "hub"


def is_hub_id(value: str | Path) -> bool:
    """Tell whether a location can only be on the Hub; a `Path` never is."""
    return not isinstance(value, Path) and meaning_of(value) == "hub"


def is_local(value: str) -> bool:
    """Tell whether a location can only be a file or a folder, whether it exists or not."""
    return value.startswith(("./", "../", "/", "~")) or value.endswith(LOCAL_ENDINGS)


def location_problem(key: str, value: str) -> Problem | None:
    """Return what is wrong with a resolved location, as far as can be said without the Hub."""
    if meaning_of(value) != "missing":
        return None
    reason = (
        "no such file or folder; paths start from the spec's folder, in --set from yours"
        if is_local(value)
        else "neither a file or folder that exists nor a Hub id; write owner/name or a path"
    )
    return Problem(key, value, reason)


def resolve_paths(data: dict[str, Any], folder: Path, only: str | None = None) -> None:
    """Make `model`, `dataset.path` and `judge` absolute paths, in place, where `folder` has them.

    What does not exist stays as it is: a Hub id, or a wrong path that `location_problem` names.
    """
    for key in ("model", "dataset.path", "judge"):
        if only is not None and key != only and not key.startswith(only + "."):
            continue
        section = data.get("dataset") if key == "dataset.path" else data
        name = key.rpartition(".")[2]
        if not isinstance(section, dict) or not isinstance(section.get(name), str):
            continue
        value = section[name]
        if value in ("", QUICKSTART) or "\0" in value:  # no path holds a NUL
            continue
        path = os.path.join(folder, os.path.expanduser(value))
        if os.path.exists(path):
            section[name] = os.path.normpath(path)


def _valid_repo_id(value: str) -> bool:
    # Inside, because it takes 0.3 s, which `preftune list` should not.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True
