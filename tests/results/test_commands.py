"""Command lines that are printed can be pasted into a shell."""

import shlex
from pathlib import Path

import pytest

from results.run.commands import command_line
from tune.record import resume_command


def test_command_of_a_run_below_runs_needs_no_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path("runs/won"), tmp_path / "runs" / "won"):
        assert resume_command(folder) == "preftune resume won"
    assert command_line("show", Path("won")) == "preftune show won --storage ."


@pytest.mark.parametrize("storage", ["my runs", "a'b", "$HOME", "x;rm -rf y", "~runs"])
def test_paths_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    monkeypatch.chdir(tmp_path)
    expected = ["preftune", "push", "won", "me/model", "--storage", storage]
    assert shlex.split(command_line("push", tmp_path / storage / "won", "me/model")) == expected
    assert shlex.split(resume_command(Path("/elsewhere") / storage / "won"))[-1] == (
        f"/elsewhere/{storage}"
    )
