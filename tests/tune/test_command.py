"""The command on what a user may get wrong: exit code, one clear sentence, nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from searching import HANG, environment

from search_spaces.errors import UserError
from search_spaces.spec import validate
from tune import cli
from tune.inputs import look_up

ROOT = Path(__file__).parents[2]


def preftune(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tune", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *fragments: str) -> None:
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert "Traceback" not in printed
    for fragment in fragments:
        assert fragment in printed, printed


GOOD = {
    "model": "quickstart",
    "dataset": {"path": "quickstart"},
    "judge": "quickstart",
    "space": {"beta": {"choice": [0.1, 0.3]}},
    "training": {"max_length": 128},
}


def written(folder: Path, **changes: object) -> str:
    (folder / "spec.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    return "spec.yaml"


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"]])
def test_help_and_list_answer_within_a_second(tmp_path: Path, arguments: list[str]) -> None:
    """CPU seconds, which a busy machine does not stretch."""
    before = os.times()
    done = preftune(*arguments, cwd=tmp_path)
    after = os.times()
    assert done.returncode == 0, done.stderr
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 1.0


def test_help_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line of each command is a whole sentence, in its own help and in the list."""
    monkeypatch.setenv("COLUMNS", "80")

    def page(*arguments: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["preftune", *arguments, "--help"])
        with pytest.raises(SystemExit) as ended:
            cli.app()
        assert not ended.value.code
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        return lines

    overview = page()
    commands = [line.split() for line in overview[overview.index("Commands:") + 1 :] if line]
    assert len(commands) >= 10
    for name, *sentence in commands:
        first = page(name)[2].strip()
        assert first == " ".join(sentence) and first[0].isupper() and first.endswith(".")
        assert not first.endswith("..")


def test_list_without_runs_says_how_to_start_one(tmp_path: Path) -> None:
    done = preftune("list", cwd=tmp_path)
    assert done.returncode == 0 and "preftune run quickstart" in done.stdout


def test_every_problem_of_a_spec_at_once(tmp_path: Path) -> None:
    spec = written(
        tmp_path,
        space={"learning_rat": {"choice": [1e-4]}, "beta": {"choice": [0.1]}},
        objective={"metric": "accuracy"},
        serch={"trials": 3},
    )
    done = preftune("run", spec, "--set", "budget.pairs=-1", cwd=tmp_path)
    refused(done, 2, "learning_rat", "learning_rate", "accuracy", "serch", "search", "budget.pairs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "fragments"),
    [
        (["run", "quickstrat"], 2, ["quickstrat", "quickstart"]),
        (["run", "missing.yaml"], 2, ["missing.yaml"]),
        (["run", "quickstart", "--set", "search.trials"], 2, ["search.trials", "="]),
        (["run", "quickstart", "--name", "a/b"], 1, ["a/b"]),
        (["run"], 2, ["SPEC"]),
        (["rnu", "quickstart"], 2, ["rnu"]),
        (["show", "nothing"], 1, ["nothing"]),
        (["show"], 1, ["preftune run quickstart"]),
        (["resume", "nothing"], 1, ["nothing"]),
        (["stop", "nothing"], 1, ["nothing"]),
        (["push", "nothing", "./there"], 1, ["nothing"]),
        (["push", "nothing"], 2, ["REPO"]),
        (["chat", "--port", "99999"], 1, ["99999", "--port"]),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, arguments: list[str], code: int, fragments: list[str]
) -> None:
    refused(preftune(*arguments, cwd=tmp_path), code, *fragments)
    assert not (tmp_path / "runs").exists()


def test_run_that_fails_keeps_its_folder_which_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    spec = written(tmp_path, model="./empty")
    done = preftune("run", spec, "--name", "bad", cwd=tmp_path)
    refused(done, 1, "empty", "config.json")
    info = json.loads((tmp_path / "runs" / "bad" / "run.json").read_text())
    assert info["state"] == "failed" and "config.json" in info["error"]
    shown = preftune("show", "bad", cwd=tmp_path)
    assert shown.returncode == 0 and "config.json" in shown.stdout
    assert "failed" in preftune("list", cwd=tmp_path).stdout


# Nothing listens there: what a machine without the internet sees.
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}


def test_unreachable_hub(tmp_path: Path) -> None:
    spec = written(tmp_path, model="someone/never-was-here")
    done = preftune("run", spec, cwd=tmp_path, HF_HOME=str(tmp_path), **UNREACHABLE)
    refused(done, 1, "someone/never-was-here", "The Hub cannot be reached")


@pytest.mark.parametrize(
    "changes", [{"dataset": {"path": "someone/no-such"}}, {"judge": "someone/no-such"}]
)
def test_all_that_a_spec_names_is_looked_up_before_the_start(changes: dict[str, object]) -> None:
    """With the same sentence; tests run with HF_HUB_OFFLINE."""
    with pytest.raises(UserError, match=r"The Hub cannot be reached .* 'someone/no-such'"):
        look_up(validate({**GOOD, **changes}))


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = written(tmp_path, storage="./file")
    refused(preftune("run", spec, cwd=tmp_path), 1, "file", "storage")


def test_run_of_that_name_is_there_already(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    spec = written(tmp_path)
    done = preftune("run", spec, "--name", "mine", cwd=tmp_path)
    refused(done, 1, "mine", "--name", "preftune resume mine")


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    spec = written(tmp_path)
    done = preftune("run", spec, "--address", "127.0.0.1:9", cwd=tmp_path)
    refused(done, 1, "127.0.0.1:9", "--address")


@pytest.mark.parametrize("words", ["list", "run quickstart", "push won me/model"])
def test_address_of_a_hub_that_is_none_is_told(tmp_path: Path, words: str) -> None:
    """The Hub client could not even be imported with it."""
    done = subprocess.run(
        [sys.executable, "-m", "tune", *words.split()],
        env={**environment(), "HF_ENDPOINT": "http://127.0.0.1:port"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "address 'http://127.0.0.1:port' is not valid" in done.stderr
    assert "fix or unset HF_ENDPOINT" in done.stderr and list(tmp_path.iterdir()) == []
