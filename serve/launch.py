"""The process that serves the page: `python -m serve.launch HOST PORT [PAGE ARGUMENTS]`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

APP = Path(__file__).with_name("app.py")


def command(host: str, port: int, arguments: Sequence[str]) -> list[str]:
    """Return the command line of a process that serves board and chat.

    Args:
        host: an address of this machine; 127.0.0.1 can be reached from this machine only.
        port: of the page.
        arguments: of the page; `serve/app.py` reads them.
    """
    streamlit = [sys.executable, "-m", "streamlit", "run", str(APP)]
    streamlit += ["--server.address", host, "--server.port", str(port)]
    streamlit += ["--server.headless", "true", "--server.fileWatcherType", "none"]
    return [*streamlit, "--browser.gatherUsageStats", "false", "--", *arguments]


def main() -> None:
    """Replace this process by the page's."""
    _, host, port, *arguments = sys.argv
    line = command(host, int(port), arguments)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
