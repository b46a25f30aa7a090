"""What tests of whole searches share: the real command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"}


def preftune(place: Path, *arguments: str, code: int = 0) -> str:
    """Run the command; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tune", *arguments],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr
