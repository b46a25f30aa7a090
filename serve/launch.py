"""The command line that starts the page; `python -m serve.launch` becomes that process."""

import argparse
import os
import sys
from pathlib import Path

APP = Path(__file__).with_name("app.py")


def command(
    run: str | None, model: str | None, storage: str, port: int, host: str = "127.0.0.1"
) -> list[str]:
    """Return the arguments of a process that serves board and chat.

    Args:
        run: a run's folder; None leaves the choice to the page.
        model: a model's folder or Hub id to chat with instead of a run's winner.
        storage: where run folders live.
        port: of the page.
        host: an address of this machine; the default can be reached from this machine only.
    """
    arguments = [sys.executable, "-m", "streamlit", "run", str(APP)]
    arguments += ["--server.address", host, "--server.port", str(port)]
    arguments += ["--server.headless", "true", "--server.fileWatcherType", "none"]
    arguments += ["--browser.gatherUsageStats", "false", "--", "--storage", storage]
    arguments += ["--run", run] if run else []
    arguments += ["--model", model] if model else []
    return arguments


def main() -> None:
    """Replace this process by the page's."""
    parser = argparse.ArgumentParser(prog="python -m serve.launch")
    parser.add_argument("--run", help="a run's folder")
    parser.add_argument("--model", help="a model's folder or Hub id, instead of a run's winner")
    parser.add_argument("--storage", default="runs", help="where run folders live")
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine")
    parser.add_argument("--port", type=int, default=8501)
    asked = parser.parse_args()
    line = command(asked.run, asked.model, asked.storage, asked.port, asked.host)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
