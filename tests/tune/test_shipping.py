"""Files that go to other nodes: what is trusted there, who can read them, when they go."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from searching import HANG, environment
from test_faults import RayNode, cluster  # noqa: F401  (a fixture)

from tune.cluster.checkpoint_storage import NotReached
from tune.cluster.received_files import AGE, home, received, remove

CONTENTS = {hashlib.sha256(text).hexdigest(): text for text in (b"weights", b"config")}
MODEL = dict(zip(("model.safetensors", "sub/config.json"), CONTENTS, strict=True))


class Source:
    """What Ray's object store is to a node; counts how often each content is asked for."""

    def __init__(self, contents: Mapping[str, bytes] = CONTENTS) -> None:
        self.contents, self.asked = contents, list[str]()

    def __call__(self, digest: str) -> np.ndarray:
        self.asked.append(digest)
        return np.frombuffer(self.contents[digest], dtype=np.uint8)


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def read(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_content_arrives_once_in_a_run_and_nobody_else_can_read_it() -> None:
    source = Source()
    folder = received("a-1", "gpt2", MODEL, source)
    assert folder.name == "gpt2"
    assert read(folder) == {"model.safetensors": b"weights", "sub/config.json": b"config"}
    assert sorted(source.asked) == sorted(CONTENTS)
    (config,) = [digest for digest, text in CONTENTS.items() if text == b"config"]
    alone = received("a-1", "copy.json", {".": config}, source)  # the same content, another name
    assert alone.name == "copy.json" and alone.read_bytes() == b"config"
    assert received("a-1", "gpt2", MODEL, source) == folder
    assert len(source.asked) == 2
    assert {path.lstat().st_mode & 0o777 for path in (home(), home() / "a-1")} == {0o700}
    assert not any(path.lstat().st_mode & 0o077 for path in (home() / "a-1").glob("*"))
    received("b-2", "gpt2", MODEL, source)
    assert len(source.asked) == 4


@pytest.mark.parametrize("kind", ["other content", "cut short", "symlink", "readable by others"])
def test_a_file_that_is_there_already_is_used_only_if_it_is_sound(kind: str, node: Path) -> None:
    source = Source()
    folder = received("a-1", "gpt2", MODEL, source)
    digest = MODEL["model.safetensors"]
    planted = home() / "a-1" / digest
    match kind:
        case "other content":
            planted.write_bytes(b"poison!")  # of the same length
        case "cut short":
            planted.write_bytes(b"weig")
        case "symlink":
            (node / "elsewhere").write_bytes(b"weights")
            planted.unlink()
            planted.symlink_to(node / "elsewhere")
        case "readable by others":
            planted.chmod(0o644)
    again = received("a-1", "gpt2", MODEL, source)
    assert again == folder and read(again)["model.safetensors"] == b"weights"
    assert source.asked.count(digest) == 2
    assert not planted.is_symlink() and planted.lstat().st_mode & 0o777 == 0o600


def test_a_view_whose_file_was_replaced_is_made_anew(node: Path) -> None:
    folder = received("a-1", "gpt2", MODEL, Source())
    (node / "elsewhere").write_bytes(b"poison")
    (folder / "sub/config.json").unlink()
    (folder / "sub/config.json").symlink_to(node / "elsewhere")
    assert read(received("a-1", "gpt2", MODEL, Source()))["sub/config.json"] == b"config"
    assert (node / "elsewhere").read_bytes() == b"poison"


@pytest.mark.parametrize("where", ["", "a-1"])
@pytest.mark.parametrize("kind", ["mode", "symlink", "file", "owner"])
def test_a_folder_that_somebody_planted_is_refused(kind: str, where: str, node: Path) -> None:
    if where:
        home().mkdir(mode=0o700)
    planted = home() / where
    match kind:
        case "mode":
            planted.mkdir()
            planted.chmod(0o777)
        case "symlink":
            (node / "elsewhere").mkdir(mode=0o700)
            planted.symlink_to(node / "elsewhere")
        case "file":
            planted.write_bytes(b"")
        case "owner":
            if os.getuid():
                pytest.skip("only root can make another user's folder")
            planted.mkdir(mode=0o700)
            os.chown(planted, 12345, 12345)
    with pytest.raises(NotReached, match=r"must be a folder of user \d+ with mode 0700.*TMPDIR"):
        received("a-1", "gpt2", MODEL, Source())
    remove("a-1")
    assert where or planted.lstat()  # not ours to remove
    assert kind != "symlink" or not any((node / "elsewhere").iterdir())


def test_what_arrives_with_another_content_is_refused_and_leaves_nothing() -> None:
    spoilt = Source(dict.fromkeys(CONTENTS, b"something else"))
    with pytest.raises(NotReached, match="another content than was sent"):
        received("a-1", "gpt2", MODEL, spoilt)
    assert set(read(home() / "a-1")) == {".lock", ".used"}


def test_files_go_at_the_end_of_their_run_and_of_crashed_runs_by_age() -> None:
    for run in ("mine", "young", "old", "old but in use"):
        received(run, "gpt2", MODEL, Source())
    long_ago = time.time() - AGE - 60
    # This process holds what it has received; another one's files are in use as long as it lives.
    holder = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH)"
    for run in ("old", "old but in use"):
        (home() / run / ".used").rename(home() / run / ".mine")
        (home() / run / ".used").touch(0o600)
    with subprocess.Popen(
        [sys.executable, "-c", f"{holder}; print(1, flush=True); sys.stdin.read()"]
        + [str(home() / "old but in use" / ".used")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        for run in ("old", "old but in use"):
            os.utime(home() / run, (long_ago, long_ago))
        remove("mine")
        assert {path.name for path in home().iterdir()} == {"young", "old but in use"}
        process.communicate()
    remove("mine")
    assert {path.name for path in home().iterdir()} == {"young"}


CODE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import ray
from tune.cluster.connection import connected
from tune.cluster.shipping import shipping

def look(sent, path):  # on the other node
    found = sent.here(path)
    stored = [p for p in found.parent.parent.iterdir() if len(p.name) == 64]
    return found.read_text(), str(found), len(stored), found.lstat().st_mode & 0o777

def run(folder, end):
    record = SimpleNamespace(folder=Path(folder), info={"created": "then"})
    with connected(sys.argv[1]) as cluster, shipping(cluster, record) as sent:
        elsewhere = ray.remote(num_cpus=1, runtime_env={})(look)
        (one, two), texts = [Path("one").absolute(), Path("two").absolute()], []
        for path in (one, two):  # a stage each; both files have the same content
            texts.append(ray.get(elsewhere.remote(sent.add([path]), path)))
        ref = sent.files[str(one)].content
        assert sent.files[str(two)].content is ref
        print(*texts[0], *texts[1], sep="|")
        if end:
            raise end
    assert not sent.files

run("runs/mine", None)
try:
    run("runs/mine", KeyboardInterrupt())
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_second_node_gets_a_content_once_and_loses_it_at_the_end_of_the_run(
    tmp_path: Path,
    cluster: tuple[str, list[RayNode]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver's node is the head, which computes nothing; the others have their own folders."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    address, (_, first, second) = cluster
    second.kill()  # so that both tasks run on one node, and an end does not wait for a dead one
    (tmp_path / "one").write_text("same")
    (tmp_path / "two").write_text("same")
    code = CODE.replace("sys.argv[1]", repr(address))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended, interrupted, last = done.stdout.splitlines()
    for line in (ended, interrupted):
        text, path, stored, mode, *other = line.split("|")
        assert (text, stored, mode) == ("same", "1", str(0o600))
        assert Path(path).is_relative_to(first.temporary) and Path(path).name == "one"
        assert other[0] == "same" and other[1].endswith("/two") and other[2] == "1"
        assert Path(path).exists() == (line == interrupted)
    # The interrupted run was the same one, so its resume would find the very files.
    assert last == "interrupted" and ended == interrupted
