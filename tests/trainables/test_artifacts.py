"""Prepared folders: made once, whole or not at all, checked on every use."""

import errno
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from searching import HANG, environment

from trainables.artifacts import (
    build_once,
    damage,
    json_text,
    key_of,
    seal,
    storage_fault,
    write_json,
)

INPUTS = {"source": "rows", "seed": 1}


def build(out: Path) -> None:
    (out / "tokenizer").mkdir()
    (out / "tokenizer" / "vocab.json").write_text("{}")
    (out / "train.parquet").write_bytes(b"pairs")


def never(out: Path) -> None:
    raise AssertionError("there was no need to build it again")


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.endswith(".lock")]


def test_built_once_and_named_by_what_went_in(tmp_path: Path) -> None:
    folder = build_once(tmp_path, "data", INPUTS, build)
    assert folder.name == f"data-{key_of(INPUTS)}"
    assert build_once(tmp_path, "data", INPUTS, never) == folder
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["inputs"] == INPUTS and set(meta["files"]) == {
        "tokenizer/vocab.json",
        "train.parquet",
    }
    assert build_once(tmp_path, "data", {**INPUTS, "seed": 2}, build) != folder


def test_key_does_not_depend_on_the_order_of_the_inputs() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: os.truncate(folder / "train.parquet", 3), "train.parquet has changed"),
        (lambda folder: (folder / "train.parquet").unlink(), "train.parquet is missing"),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json cannot be read"),
        (lambda folder: (folder / "meta.json").unlink(), "is not complete"),
    ],
)  # fmt: skip
def test_damage_is_named_and_the_folder_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: object, words: str
) -> None:
    folder = build_once(tmp_path, "data", INPUTS, build)
    assert callable(harm)
    harm(folder)
    assert words in (damage(folder) or "")
    with caplog.at_level(logging.WARNING):
        assert build_once(tmp_path, "data", INPUTS, build) == folder
    assert words in caplog.text and "computing it again" in caplog.text
    assert damage(folder) is None


@pytest.mark.parametrize("error", [ValueError("a bad row"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def fail(out: Path) -> None:
        build(out)
        raise error

    with pytest.raises(type(error)):
        build_once(tmp_path, "data", INPUTS, fail)
    assert leftovers(tmp_path) == []
    assert damage(build_once(tmp_path, "data", INPUTS, build)) is None


def test_two_processes_build_it_once(tmp_path: Path) -> None:
    """Each waits for the other to be there, so both ask while the folder is not."""
    code = f"""
import sys, time
from pathlib import Path
from trainables.artifacts import build_once
root, me, other = Path({str(tmp_path)!r}), sys.argv[1], sys.argv[2]
def build(out):
    time.sleep(0.5)
    (out / "builder").write_text(me)
(root / (me + ".lock")).touch()
while not (root / (other + ".lock")).exists():
    time.sleep(0.01)
print((build_once(root, "data", {{"seed": 1}}, build) / "builder").read_text())
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *names],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in (("one", "two"), ("two", "one"))
    ]
    builders = {process.communicate(timeout=HANG)[0].strip() for process in processes}
    assert len(builders) == 1 and builders <= {"one", "two"}
    assert len(leftovers(tmp_path)) == 1


def test_write_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()  # what a file cannot replace
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "run.json", {"state": "searching"})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_seal_covers_every_file(tmp_path: Path) -> None:
    build(tmp_path)
    seal(tmp_path, step=7)
    assert damage(tmp_path) is None
    (tmp_path / "tokenizer" / "vocab.json").write_text("{ }")
    assert "vocab.json has changed" in (damage(tmp_path) or "")


def chained(cause: Exception) -> Exception:
    try:
        raise RuntimeError("the checkpoint could not be copied") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device: /x"),
        (chained(OSError(errno.EROFS, os.strerror(errno.EROFS))), "Read-only file system"),
        # As tokenizers (Rust) and Ray's wrapped tracebacks say it.
        (Exception("No space left on device (os error 28)"), "No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "data.jsonl"), None),
        (ValueError("a bad row"), None),
    ],
)  # fmt: skip
def test_storage_fault_tells_a_full_disk_from_a_missing_file(
    error: Exception, words: str | None
) -> None:
    assert storage_fault(error) == words


def test_numbers_that_json_has_not_are_null() -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf], "c": (True, "x", None)}
    assert json.loads(json_text(value)) == {"a": None, "b": [1.5, None], "c": [True, "x", None]}
