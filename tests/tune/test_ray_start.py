"""Ray that does not start or cannot be reached: a sentence with the way out, and nothing left."""

import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from searching import HANG, ROOT, environment

from search_spaces.errors import UserError
from tune.cluster.connection import _reason, connected

START = """
import ray._private.node, ray._private.services
from search_spaces.errors import UserError
from tune.cluster.connection import connected
{fault}
try:
    with connected(None, cpus=1):
        print("started")
except UserError as error:
    print(error)
"""
# The overloaded machine: its raylet has not registered when the half minute of Ray is over.
LATE = """
import time, types
moments = iter(range(0, 10**6, 100))
clock = types.SimpleNamespace(**{**vars(time), "monotonic": lambda: next(moments)})
def unknown(*arguments):
    raise RuntimeError("no such node")
ray._private.node.time = clock
ray._private.services.get_node = unknown
"""


def started(place: Path, fault: str, **settings: str) -> str:
    """Return what a process prints that starts Ray; its whole family must be gone by then."""
    mark = f"PREFTUNE_TEST={uuid.uuid4().hex}"
    done = subprocess.run(
        [sys.executable, "-c", START.format(fault=fault)],
        cwd=place,
        env={**environment(), **settings, **dict([mark.split("=")])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr

    def inherited(process: psutil.Process) -> bool:
        try:
            return mark in map("=".join, process.environ().items())
        except psutil.Error:
            return False

    left = [process for process in psutil.process_iter() if inherited(process)]
    assert psutil.wait_procs(left, timeout=60)[1] == []
    return done.stdout


def test_node_that_is_late(tmp_path: Path) -> None:
    """Ray raises a bare `Exception` for it."""
    printed = started(tmp_path, LATE)
    assert printed.startswith("Ray does not start here (The current node timed out during startup")
    assert "try again when the machine has less to do" in printed


def test_temporary_folder_that_sockets_cannot_be_in(tmp_path: Path) -> None:
    printed = started(tmp_path, "", RAY_TMPDIR=str(tmp_path / ("long" * 30)))
    assert "AF_UNIX path length cannot exceed" in printed and "set RAY_TMPDIR" in printed
    assert f"make room in {tmp_path / ('long' * 30)}, which RAY_TMPDIR names" in printed


def test_temporary_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    printed = started(tmp_path, "", RAY_TMPDIR=str(tmp_path / "file"))
    assert printed.startswith("Ray does not start here (") and "set RAY_TMPDIR" in printed


@pytest.mark.parametrize(
    ("address", "fragment"),
    [
        ("127.0.0.1:9", "Connection refused"),
        ("127.0.0.1:99999", ""),
        ("[::1]:9", ""),
        ("nonsense", "Invalid address"),
        (f"{'x' * 70}.org:1", ""),
        ("ray://127.0.0.1:10001", "Ray client server"),
    ],
)
def test_address_is_checked_where_it_was_set(
    monkeypatch: pytest.MonkeyPatch, address: str, fragment: str
) -> None:
    with pytest.raises(UserError, match="check --address$") as refused, connected(address):
        pass
    assert fragment in str(refused.value) and repr(address) in str(refused.value)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="check RAY_ADDRESS$"), connected(None):
        pass


VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.9.3
    Python: 3.10.4
This process on Node: 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.2
"""


@pytest.mark.parametrize(
    ("error", "address", "fragments"),
    [
        (RuntimeError(VERSIONS), "10.0.0.1:6379", ["Ray: 2.9.3 Python: 3.10.4", "install the"]),
        (OSError(28, "No space left on device"), None, ["No space left", "make room in /here"]),
        (PermissionError(13, "Permission denied", "/here/ray"), None, ["set RAY_TMPDIR to"]),
        (ValueError("The size exceeds /dev/shm size."), None, ["--shm-size"]),
        (KeyError("RAY_TLS_SERVER_CERT"), None, ["KeyError 'RAY_TLS_SERVER_CERT'"]),
        (Exception(""), None, ["(Exception)", "/here/ray/session_latest/logs"]),
        (Exception("\nline 1\nline 2\n"), None, ["(line 1 line 2)"]),
    ],
)
def test_errors_of_ray_are_sentences(
    monkeypatch: pytest.MonkeyPatch, error: Exception, address: str | None, fragments: list[str]
) -> None:
    """Those that this machine cannot be brought to raise."""
    monkeypatch.setenv("RAY_TMPDIR", "/here")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sentence = _reason(error, address)
    assert "\n" not in sentence and all(fragment in sentence for fragment in fragments), sentence


SHADOWED = """
import sys
sys.path[:0] = [{root!r}]

def seen():
    import datasets, trainables.artifacts, tune.worker
    return [module.__file__ for module in (datasets, trainables, tune)]

if __name__ == "__main__":
    import ray
    from tune.cluster.connection import connected
    with connected(None, cpus=1):
        print(*ray.get(ray.remote(seen).remote()), sep="\\n")
"""


def test_files_of_the_user_shadow_no_module(tmp_path: Path) -> None:
    """Where the command is given there are files of the names of packages."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir(), elsewhere.mkdir()
    for name in ("tune", "trainables", "datasets", "results"):
        (here / f"{name}.py").write_text("raise RuntimeError('a file of the user was imported')\n")
    (elsewhere / "driver.py").write_text(SHADOWED.format(root=str(ROOT)))
    done = subprocess.run(
        [sys.executable, str(elsewhere / "driver.py")],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    files = done.stdout.splitlines()
    assert len(files) == 3 and not any(str(here) in file for file in files)
