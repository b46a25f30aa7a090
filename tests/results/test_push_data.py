"""A search's trials and the chat's votes as a data set, read back by `datasets` and by preftune."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from publishing import TOKEN, published
from run_folder import write_lines, write_run
from searching import HANG

from results.publish.push import Access
from results.publish.push_data import push_data
from results.publish.votes import votes
from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError

pytestmark = [
    # huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("online"),
]
ROOT = Path(__file__).resolve().parents[2]
VOTES: list[dict[str, Any]] = [
    {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No.", "time": "2026-01-31T10:00:00+00:00"},
    {
        "prompt": [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three"},
        ],
        "chosen": "Four",
        "rejected": "<b>Six</b>",
        "time": "2026-01-31T10:01:00+00:00",
        "model": "best",
    },
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = write_run(tmp_path / "runs", "won")
    write_lines(folder / "votes.jsonl", VOTES)
    return open_run(folder)


@pytest.fixture
def me(hub: Hub) -> Hub:
    hub.add_token(TOKEN, "me", "write")
    return hub


READ = """
import json
from datasets import load_dataset
from trainables.data.sources import load_rows
trials = load_dataset("me/trials", "trials", split="train")
curves = load_dataset("me/trials", "curves", split="train")
votes = load_dataset("me/trials", "preferences", split="train")
rows = load_rows("me/trials", name="preferences").data
from trl.data_utils import is_conversational
print(json.dumps([load_dataset("me/trials")["train"].num_rows, trials.to_list(), curves.to_list(),
    votes.to_list(), rows.to_list(), is_conversational(votes[0])]))
"""


def test_datasets_and_preftune_read_what_was_pushed(me: Hub, run: Run, tmp_path: Path) -> None:
    done = push_data(run, "trials", access=Access(TOKEN, me.endpoint)).uploaded
    assert done is not None and done.committed and done.tag == "won"
    repository = me.repository("me/trials", "datasets")
    files = ["README.md", "curves.parquet", "preferences.parquet", "trials.parquet"]
    assert published(repository) == files
    read = subprocess.run(
        [sys.executable, "-c", READ],
        env={**me.environment(tmp_path / "home"), "PATH": "/usr/bin", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert read.returncode == 0, read.stderr
    default, trials, curves, cast, rows, conversational = json.loads(read.stdout.splitlines()[-1])
    assert default == len(trials) == 6
    first = trials[0]
    assert (first["number"], first["state"], first["winner"]) == (0, "complete", True)
    assert (first["params_learning_rate"], first["win_rate"], first["pairs"]) == (
        2.1e-4,
        0.81,
        1600,
    )
    assert json.loads(first["params_loss_type"]) == ["sigmoid", "sft"]
    assert trials[5]["state"] == "failed" and trials[5]["win_rate"] is None
    assert [row["pairs"] for row in curves if row["number"] == 0] == [178, 533, 1600]
    assert cast == rows and conversational is True
    assert cast[0] == {
        "prompt": [{"role": "user", "content": "Hi?"}],
        "chosen": [{"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    assert [turn["content"] for turn in cast[1]["prompt"]] == ["One", "Two", "Three"]
    # A second push changes nothing.
    again = push_data(run, "trials", access=Access(TOKEN, me.endpoint)).uploaded
    assert again is not None and (again.committed, again.tagged) == (False, False)
    # Without votes there are no preferences, and the earlier ones go.
    (run.folder / "votes.jsonl").unlink()
    push_data(run, "trials", access=Access(TOKEN, me.endpoint))
    assert published(repository) == ["README.md", "curves.parquet", "trials.parquet"]
    assert b"preferences" not in repository.read("README.md")


def test_nothing_private_leaves(me: Hub, run: Run) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(run.folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=storage)
    trial = study.ask()
    trial.suggest_categorical("optim_args", ["/home/eve/args.txt"])
    trial.set_user_attr("node", "gpu-17.internal")
    trial.set_user_attr("checkpoint", "s3://eve-bucket/won/01")
    trial.set_user_attr("cause", "/home/eve/judge.py raised")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    home = run.folder / "trials" / "6"
    home.mkdir()
    write_lines(home / "measures.jsonl", [{"pairs": 178, "kl": 1.0, "host": "gpu-17.internal"}])
    push_data(open_run(run.folder), "trials", access=Access(TOKEN, me.endpoint))
    import pyarrow.parquet as pq

    repository = me.repository("me/trials", "datasets")
    told = repository.read("README.md").decode()
    for name in ("trials.parquet", "curves.parquet"):
        table = pq.read_table(me.blobs.path(repository.files()[name].sha256))
        told += json.dumps(table.to_pylist())
    assert '"params_optim_args": "args.txt"' in told
    for private in ("eve", "gpu-17", "s3://", str(run.storage), TOKEN):
        assert private not in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it must be a JSON object"),
        ('{"chosen": "a", "rejected": "b", "time": "t"}', "`prompt` must be text, or"),
        (
            '{"prompt": " ", "chosen": "a", "rejected": "b", "time": "t"}',
            "`prompt` must be text, or",
        ),
        (
            '{"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"}',
            "messages that end with the user's",
        ),
        ('{"prompt": "p", "chosen": 1, "rejected": "b", "time": "t"}', "`chosen` must be text"),
        ('{"prompt": "p", "chosen": "a", "rejected": "", "time": "t"}', "`rejected` must be text"),
        ('{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}', "`chosen` must be text"),
        ('{"prompt": "p", "chosen": "a", "rejected": "a", "time": "t"}', "are the same"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b"}', "`time` must be text"),
    ],
)
def test_votes_are_read_strictly(run: Run, line: str, words: str) -> None:
    path = run.folder / "votes.jsonl"
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=rf"Line 3 of .*votes.jsonl is not a vote: .*{words}"):
        votes(run)


def test_a_vote_being_written_waits(run: Run) -> None:
    with (run.folder / "votes.jsonl").open("a") as file:
        file.write('\n{"prompt": "p", "cho')
    assert len(votes(run)) == 2
    (run.folder / "votes.jsonl").unlink()
    assert votes(run) == []


def test_card_and_dry_run(me: Hub, run: Run) -> None:
    from huggingface_hub import DatasetCard

    result = push_data(run, "me/trials", dry_run=True)
    assert list(result.files)[:2] == ["README.md", "trials.parquet"] and not me.requests
    push_data(run, "me/trials", private=True, access=Access(TOKEN, me.endpoint))
    repository = me.repository("me/trials", "datasets")
    assert repository.state["private"] is True
    card = DatasetCard(repository.read("README.md").decode())
    configs = card.data.to_dict()["configs"]
    assert [config["config_name"] for config in configs] == ["trials", "curves", "preferences"]
    assert "| `preferences` | 2 |" in card.text
    with pytest.raises(UserError, match="not the name of a repository .* `name/repo`$"):
        push_data(run, "./here", access=Access(TOKEN, me.endpoint))


def test_failures_read_as_those_of_push(me: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.publish.upload.WAITS", (0.0,))
    me.fail("POST", "/commit/main", 500)
    with pytest.raises(UserError, match=r"refused me/trials .500.*--type dataset` removes it"):
        push_data(run, "me/trials", access=Access(TOKEN, me.endpoint))
    theirs = me.create("me/rows", "datasets")
    theirs.commit({"preferences.parquet": b"x"})
    with pytest.raises(UserError, match="has not pushed and would replace .preferences.parquet"):
        push_data(run, "me/rows", access=Access(TOKEN, me.endpoint))


def test_figures_that_no_column_holds(run: Run) -> None:
    from results.publish.trial_data import curve_rows, parquet, trial_rows

    lines = [{"pairs": 178, "kl": 10**30}, {"pairs": "many", "kl": 1}]
    write_lines(run.trial_folder(0) / "measures.jsonl", lines)
    opened = open_run(run.folder)
    assert opened.trial(0).pairs == 1600
    assert parquet(trial_rows(opened)) and parquet(curve_rows(opened))
