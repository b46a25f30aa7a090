"""What tests of whole searches share: the real command in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from results.run.run import Run

ROOT = Path(__file__).parent.parent
HANG = 1800  # seconds: a time-out ends what hangs, not what is slow on a busy machine
PLANTED = "hf_planted_and_never_to_be_written_down"  # the token that every search is given


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "140", "HF_TOKEN": PLANTED}


def preftune(
    place: Path, *arguments: str, code: int = 0, settings: Mapping[str, str] | None = None
) -> str:
    """Run the command, with other environment variables if need be; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tune", *arguments],
        cwd=place,
        env={**environment(), **(settings or {})},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


def heed_signals() -> None:
    """Ignore no signal: a shell has background jobs ignore Ctrl-C, nohup a hang-up."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command and leave it to run."""
    return subprocess.Popen(
        [sys.executable, "-m", "tune", *arguments],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_signals,
    )


def end_with_family(process: "subprocess.Popen[str]") -> None:
    """Kill a driver and all that it started, as a machine that goes down does."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate()


def left_running(family: list[psutil.Process], patience: float) -> list[psutil.Process]:
    """Return what a driver has left behind after so many seconds."""
    psutil.wait_procs(family, timeout=patience)
    left = []
    for child in family:
        with suppress(psutil.NoSuchProcess):
            left += [child] if child.is_running() and child.status() != "zombie" else []
    return left


def drives(process: "subprocess.Popen[str]", folder: Path) -> bool:
    """Whether a driver has taken a run by now."""
    path = folder / "run.json"
    return path.exists() and json.loads(path.read_text())["pid"] == process.pid


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert process.poll() is None, f"ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def story(run: Run) -> dict[str, Any]:
    """Everything about a search but its times, its places and the memory that it took.

    And but for the mean loss of a process's steps: one that went on had fewer.
    """

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            varying = ("time", "seconds", "peak_memory_mb", "train_loss")
            return {k: timeless(v) for k, v in value.items() if k not in varying}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    trials = [(t.number, t.state, t.params, t.value) for t in run.trials()]
    return {
        "trials": trials,
        "decisions": timeless(run.decisions()),
        "verdict": timeless(run.verdict()),
    }
