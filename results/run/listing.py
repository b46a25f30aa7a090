"""The runs of a storage folder: find one, list them all."""

import os
from dataclasses import dataclass
from pathlib import Path

from results.run import layout
from results.run.files import read_json
from results.run.run import Run, check_info
from results.verdict_view import verdict_sentence
from search_spaces.errors import UserError


@dataclass(frozen=True)
class RunSummary:
    """What a list of runs shows, from `run.json` and `verdict.json` alone."""

    name: str
    folder: Path
    state: str
    created: str | None
    model: str | None
    outcome: str | None
    winner: int | None
    sentence: str  # the verdict, or why there is none


def open_run(path_or_name: str | Path | None = None, storage: str | Path = "runs") -> Run:
    """Open a run by its name in `storage`, by its path, or the newest one (None or `latest`).

    Raises:
        UserError: there is no such run, the folder is not a run, or a newer preftune wrote it.
    """
    storage = Path(storage)
    if path_or_name is None or str(path_or_name) == "latest":
        runs = list_runs(storage)
        if not runs:
            raise UserError(
                f"There is no run in {storage} yet; start one with `preftune run quickstart`."
            )
        folder = runs[0].folder
    else:
        named = storage / str(path_or_name)
        # `Path.expanduser` raises where `~name` names no user.
        folder = named if named.is_dir() else Path(os.path.expanduser(path_or_name))
    if not folder.is_dir():
        names = ", ".join(run.name for run in list_runs(storage)[:5]) or "none"
        raise UserError(f"There is no run {str(path_or_name)!r} in {storage}; there are: {names}.")
    info = read_json(folder / layout.INFO)
    if info is None and not (folder / layout.JOURNAL).is_file():
        raise UserError(
            f"{folder} is not a run of preftune: it has no run.json; see `preftune list`."
        )
    check_info(folder, info or {})
    return Run(folder.resolve(), info or {})


def list_runs(storage: str | Path = "runs") -> list[RunSummary]:
    """Every run in `storage`, newest first; a run that cannot be read says so in its sentence.

    Raises:
        UserError: the storage is a file.
    """
    storage = Path(storage)
    if storage.exists() and not storage.is_dir():
        raise UserError(f"--storage {storage} is a file: name the folder that run folders live in.")
    folders = sorted(path.parent for path in storage.glob(f"*/{layout.INFO}"))
    summaries = [_summary(folder) for folder in folders if folder.name != layout.PREPARED]
    return sorted(summaries, key=lambda run: run.created or "", reverse=True)


def _summary(folder: Path) -> RunSummary:
    try:
        info = read_json(folder / layout.INFO) or {}
        check_info(folder, info)
        run = Run(folder, info)
        verdict = run.verdict() or {}
        sentence = verdict_sentence(run)
    except UserError as error:
        return RunSummary(folder.name, folder, "unreadable", None, None, None, None, str(error))
    return RunSummary(
        name=folder.name,
        folder=folder,
        state=run.state,
        created=info.get("created"),
        model=(info.get("model") or {}).get("path"),
        outcome=verdict.get("outcome"),
        winner=verdict.get("winner"),
        sentence=sentence,
    )
