"""The command line that starts the page."""

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
