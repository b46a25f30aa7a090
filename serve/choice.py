"""Which run or model the pages are about."""

import re
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from results.run.listing import list_runs, open_run
from results.run.run import Run
from search_spaces.errors import UserError


@dataclass(frozen=True)
class Choice:
    """What is open: a run, a model, or neither, and then why."""

    run: Run | None
    model: str | None
    problem: str | None


def literal(text: object) -> str:
    """Text that Streamlit's markdown shows as it is: nothing in it becomes a link or an image."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>$:~&])", r"\\\1", str(text))


def pick(storage: str, run: str | None, model: str | None) -> Choice:
    """Offer the runs in the sidebar and open the selected one."""
    folders = [str(summary.folder.resolve()) for summary in list_runs(storage)]
    if run and (asked := str(Path(run).expanduser().resolve())) not in folders:
        folders.insert(0, asked)
    if not folders:
        problem = f"There is no run in {storage} yet; start one with `preftune run quickstart`."
        return Choice(None, model, None if model else problem)
    wanted = str(Path(run).expanduser().resolve()) if run else folders[0]
    with st.sidebar:
        selected = st.selectbox(
            "Run",
            folders,
            index=folders.index(wanted),
            format_func=lambda folder: Path(folder).name,
            key="run",
        )
    try:
        return Choice(open_run(selected), model, None)
    except UserError as error:
        return Choice(None, model, str(error))
