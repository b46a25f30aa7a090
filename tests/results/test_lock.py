"""Who drives a run is asked of its lock: a process number may be another process's by now."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_folder import crash, write_run
from searching import environment

from results.run import layout
from results.run.listing import list_runs, open_run
from results.run.lock import driven
from tune.record import claim


@contextmanager
def driver(folder: Path) -> Iterator[None]:
    """Another process that holds the run's lock within the block."""
    code = f"""
import sys
from pathlib import Path
from tune.record import claim
lock = claim(Path({str(folder)!r}))
print("claimed", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "claimed\n"
        yield
        process.kill()


@pytest.mark.parametrize("state", layout.ACTIVE)
def test_run_is_crashed_although_its_number_is_a_living_process(tmp_path: Path, state: str) -> None:
    folder = write_run(tmp_path, "torn", state=state)  # `run.json` names this process
    crash(folder)
    assert open_run(folder).state == list_runs(tmp_path)[0].state == "crashed"
    assert not open_run(folder).active
    (folder / layout.LOCK).unlink()  # a copy of the folder may lack it
    assert open_run(folder).state == "crashed"
    assert not (folder / layout.LOCK).exists()


def test_run_is_active_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    """Whatever number and host `run.json` names: a container that moves has others."""
    folder = write_run(tmp_path, "live", state="verifying")
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    crash(folder)
    assert open_run(folder).state == "crashed"
    with driver(folder):
        assert open_run(folder).state == list_runs(tmp_path)[0].state == "verifying"
    assert open_run(folder).state == "crashed"


def test_run_that_ended_stays_so_while_its_winner_is_trained(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "won")
    with driver(folder):
        assert driven(folder) and open_run(folder).state == "done"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may read; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="preftune-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_reader_without_rights_changes_nothing_and_believes_run_json(public: Path) -> None:
    """Another user, and a folder in which nobody may write: a lock that can be read tells."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")
    folder = write_run(public, "theirs", state="searching")
    code = f"""
import os
from pathlib import Path
from results.run.lock import driven
os.setuid(65534)
print(driven(Path({str(folder)!r})))
"""

    def ask() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    os.chmod(folder, 0o555)
    before = sorted(folder.rglob("*"))
    assert ask() == "True"
    crash(folder)
    assert ask() == "False"
    os.chmod(folder / layout.LOCK, 0o600)
    assert ask() == "True"
    assert sorted(folder.rglob("*")) == before


def test_readers_never_keep_a_driver_from_starting(tmp_path: Path) -> None:
    claim(tmp_path).release()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            driven(tmp_path)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(50):
            claim(tmp_path).release()
    finally:
        ended.set()
        for reader in readers:
            reader.join()
