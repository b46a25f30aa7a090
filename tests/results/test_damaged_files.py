"""Every key of every file of a run, removed or with a value of another kind, under each reader."""

import json
import logging
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from publishing import draw, push
from rich.console import Console
from run_folder import full_verdict, write_model, write_run

from results.publish.push_data import data_files
from results.report.page import page
from results.run.listing import list_runs, open_run
from results.run.run import Run
from results.tables import (
    data_report_table,
    leaderboard_table,
    runs_table,
    trial_detail,
    verdict_panel,
)
from search_spaces.errors import UserError
from serve import board

REMOVED = object()
CASES = 5  # damages to a file
Place = tuple[str | int, ...]


def printed(run: Run) -> None:
    console = Console(width=120, force_terminal=False)
    with console.capture():
        console.print(data_report_table(run), leaderboard_table(run), verdict_panel(run))
        for number in range(len(run.trials())):
            console.print(trial_detail(run, number))
        console.print(runs_table(list_runs(run.storage)))


READERS: dict[str, Callable[[Run], object]] = {
    "show": printed,
    "report": page,
    "board": board._run,
    "push": lambda run: push(run, "me/tuned", dry_run=True),
    "push --full": lambda run: push(run, "me/tuned", dry_run=True, full=True),
    "push-data": lambda run: data_files(run, "me/trials"),
}


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Yield the path of every key, and of the first item of every list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def damaged(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the value with each of its keys removed, then with other kinds of values there."""
    for place in places(value):
        for other in (REMOVED, "word", 7.5, [1], {"a": 1}):
            changed = deepcopy(value)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if other is REMOVED:
                del inner[place[-1]]
            else:
                inner[place[-1]] = other
            shown = "removed" if other is REMOVED else repr(other)
            yield f"{'.'.join(map(str, place))} {shown}", changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs"), "won")
    write_model(folder / "full", seed=3)
    (folder / "full.json").write_text(json.dumps(full_verdict()))
    return folder


NAMES = (
    "run.json",
    "spec.yaml",
    "data_report.json",
    "verdict.json",
    "full.json",
    "decisions.jsonl",
    "trials/0/measures.jsonl",
    "trials/0/samples.jsonl",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_traceback(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of all damages, others for each file: all of them take minutes."""
    # What is slow and comes from the journal, or from plotly, alone.
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    monkeypatch.setattr("results.report.plots.of_study", lambda run: {})
    path = folder / name
    whole = path.read_text()
    lines = whole.splitlines()
    by_line = name.endswith(".jsonl")
    value = json.loads(lines[-1]) if by_line else yaml.safe_load(whole)
    cases = list(damaged(value))
    tracebacks = []
    logging.disable(logging.WARNING)  # Streamlit's, which has no page here
    try:
        for what, changed in random.Random(name).sample(cases, min(CASES, len(cases))):
            text = json.dumps(changed)
            path.write_text("\n".join([*lines[:-1], text, ""]) if by_line else text)
            draw(folder)
            for reader, read in READERS.items():
                try:
                    read(open_run(folder))
                except UserError as error:
                    assert str(error)
                except Exception as error:
                    tracebacks.append(f"{reader}: {what}: {error!r}")
    finally:
        path.write_text(whole)
        logging.disable(logging.NOTSET)
    assert not tracebacks, "\n".join(tracebacks)
