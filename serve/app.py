"""Streamlit entry: the arguments and the navigation, nothing else."""

import argparse
import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).resolve().parent.parent
# Streamlit puts this folder first on the path; its modules would be found by their bare names.
sys.path[:] = [str(ROOT), *(p for p in sys.path if p not in (str(ROOT), str(ROOT / "serve")))]

from serve import board, chat, choice  # noqa: E402


def main() -> None:
    """Show the page that the navigation selects."""
    parser = argparse.ArgumentParser(prog="preftune chat")
    parser.add_argument("--run", help="a run's folder")
    parser.add_argument("--model", help="a model's folder or Hub id, instead of a run's winner")
    parser.add_argument("--storage", default="runs", help="where run folders live")
    arguments = parser.parse_args()
    st.set_page_config(page_title="preftune", layout="wide")
    picked = choice.pick(arguments.storage, arguments.run, arguments.model)
    pages = [
        st.Page(lambda: chat.page(picked), title="Chat", url_path="chat", default=True),
        st.Page(lambda: board.page(picked), title="Board", url_path="board"),
    ]
    st.navigation(pages, position="top").run()


main()
