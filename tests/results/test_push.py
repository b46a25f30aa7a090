"""Publishing a model through the Hub's own client over real HTTP, to the Hub on loopback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub import Hub
from publishing import PICTURE, PUBLISHED, TOKEN, draw, published, push, pushed
from run_folder import full_verdict, write_model, write_run
from searching import HANG

from results.publish.hub_names import tag_of
from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("online"),
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_run(tmp_path / "runs", "won")
    draw(tmp_path / "runs" / "won")
    return open_run("won", tmp_path / "runs")


@pytest.fixture
def me(hub: Hub) -> Hub:
    """The Hub, which knows `me` by the token."""
    hub.add_token(TOKEN, "me", "write")
    return hub


def test_push_makes_one_commit_of_the_allowed_files_and_a_tag(me: Hub, run: Run) -> None:
    result = push(run, "me/winner", private=True, token=TOKEN, endpoint=me.endpoint)
    repository = me.repository("me/winner")
    assert repository.state["private"] is True
    assert published(repository) == PUBLISHED == list(result.files)
    weights = run.folder / "best" / "model.safetensors"
    assert repository.read("model.safetensors") == weights.read_bytes()
    assert repository.files()["model.safetensors"].lfs
    assert repository.read("front.png") == PICTURE
    assert 'model="me/winner"' in repository.read("README.md").decode()
    assert yaml.safe_load(repository.read("dpo.yaml"))["learning_rate"] == 2.1e-4
    (head, commit), first = repository.history()
    assert commit["title"] == "Publish trial 0 of preftune run won"
    assert first[1]["title"] == "initial commit"
    assert repository.state["tags"] == {"won": head}
    assert result.where == f"{me.endpoint}/me/winner"
    assert result.uploaded is not None and result.uploaded.commit == head
    for name in published(repository):
        content = repository.read(name)
        assert str(run.storage).encode() not in content, f"{name} tells a local path"
        assert TOKEN.encode() not in content


def test_second_push_changes_nothing(me: Hub, run: Run) -> None:
    first = push(run, "winner", token=TOKEN, endpoint=me.endpoint).uploaded
    second = push(run, "winner", token=TOKEN, endpoint=me.endpoint).uploaded
    assert first is not None and second is not None
    assert (first.committed, first.tagged) == (True, True)
    assert (second.committed, second.tagged) == (False, False)
    assert (second.commit, second.tag) == (first.commit, "won")
    assert me.repositories() == ["me/winner"]
    assert len(me.repository("me/winner").history()) == 2
    assert len(me.asked("PUT", "^/lfs/")) == 1  # the weights, once
    with pytest.raises(UserError, match="exists and is public"):
        push(run, "winner", private=True, token=TOKEN, endpoint=me.endpoint)


def test_stale_files_of_ours_go_and_foreign_ones_stay(me: Hub, run: Run) -> None:
    pushed(me, run)
    repository = me.repository("me/winner")
    shards = {f"model-0000{n}-of-00002.safetensors": b"old" for n in (1, 2)}
    index = {"model.safetensors.index.json": b"{}", "adapter_config.json": b"{}"}
    theirs = {"cat.png": b"cat", "extra.safetensors": b"mine", "eval/config.json": b"{}"}
    repository.commit({**shards, **index, **theirs}, title="By hand")
    pushed(me, run)
    names = published(repository)
    assert sorted({*PUBLISHED, *theirs}) == sorted(names)
    assert (
        repository.read("extra.safetensors") == b"mine" and ".gitattributes" in repository.files()
    )
    assert len(repository.history()) == 4  # the shards went in the one commit


def test_a_tag_is_never_moved(me: Hub, run: Run) -> None:
    first = pushed(me, run)
    repository = me.repository("me/winner")
    repository.commit({"cat.png": b"cat"}, title="A foreign file alone makes no new tag")
    pushed(me, run)
    assert repository.state["tags"] == {"won": first}
    shutil.rmtree(run.folder / "best")
    write_model(run.folder / "best", seed=2)
    second = pushed(me, run)
    assert second != first and repository.state["tags"] == {"won": first, "won-v2": second}
    pushed(me, run)
    assert len(repository.state["tags"]) == 2
    # Back to the first weights: the first tag stands for them.
    shutil.rmtree(run.folder / "best")
    write_model(run.folder / "best", seed=0)
    pushed(me, run)
    assert repository.state["tags"] == {"won": first, "won-v2": second}


def test_tags_are_names_that_git_takes() -> None:
    assert tag_of("won") == "won" and tag_of("won", "trial-3") == "won-trial-3"
    assert tag_of("a..b") == "a.b" and tag_of("x.lock") == "x-lock" and tag_of("x.") == "x"
    assert tag_of("mein Lauf~1^{}:?*[\\@") == "mein-Lauf-1" and tag_of("é") == "run"


def test_another_branch(me: Hub, run: Run) -> None:
    commit = pushed(me, run, revision="next/try")
    repository = me.repository("me/winner")
    assert published(repository) == [] and published(repository, "next/try") == PUBLISHED
    assert repository.state["tags"] == {"won": commit}
    for bad in ("-x", "a..b", "a b", "x.lock", "a/", "/a"):
        with pytest.raises(UserError, match="--revision .* cannot be a branch"):
            pushed(me, run, revision=bad)


def test_another_model_is_not_replaced(me: Hub, run: Run) -> None:
    theirs = me.create("me/thesis")
    theirs.commit({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UserError, match="has not pushed and would replace .config.json"):
        pushed(me, run, "me/thesis")
    assert len(theirs.history()) == 2 and theirs.state["tags"] == {}


def test_nothing_but_the_listed_kinds_leaves(me: Hub, run: Run, tmp_path: Path) -> None:
    best = run.folder / "best"
    planted = "hf_planted_in_the_folder"
    (best / "optimizer.pt").write_text("must never leave")
    (best / "optimizer.safetensors").write_bytes(b"nor this")
    (best / ".env").write_text(f"HF_TOKEN={planted}")
    (best / "token").write_text(planted)
    (best / "settings.json").write_text(json.dumps({"token": planted}))
    (best / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    (best / "x.pkl").write_bytes(b"\x80\x04pickle")
    (best / "training_args.bin").write_bytes(b"\x80\x04pickle")
    (best / "model.safetensors.bak").write_bytes(b"x")
    (best / "notes").mkdir()
    (best / "notes" / "config.json").write_text(planted)
    pushed(me, run)
    push(run, str(tmp_path / "out"))
    repository = me.repository("me/winner")
    assert published(repository) == PUBLISHED
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == PUBLISHED
    blobs = list((me.root / "blobs").iterdir())
    assert blobs and not any(planted.encode() in blob.read_bytes() for blob in blobs)


def test_links_are_not_followed(me: Hub, run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("private")
    for target in (secret, Path("optimizer.pt")):
        (run.folder / "best" / "optimizer.pt").write_text("state")
        link = run.folder / "best" / "vocab.txt"
        link.symlink_to(target)
        with pytest.raises(UserError, match=r"vocab.txt is a link to .*; put the file itself"):
            pushed(me, run)
        link.unlink()
    assert me.repositories() == []


def test_the_token_itself_is_never_published(me: Hub, run: Run) -> None:
    path = run.folder / "best" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": TOKEN}))
    with pytest.raises(UserError, match=r"generation_config.json holds the .* token") as error:
        pushed(me, run)
    assert TOKEN not in str(error.value) and me.repositories() == []


def test_the_command_says_what_it_did(me: Hub, run: Run, tmp_path: Path) -> None:
    def preftune(*words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tune", *words, "--storage", str(run.storage)],
            env={**me.environment(tmp_path / "home", token), "PATH": "/usr/bin:/bin"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANG,
        )

    done = preftune("push", "won", "me/from-env", "--dry-run", token=None)
    assert done.returncode == 0 and "trial 0 would go to me/from-env" in done.stdout, done.stderr
    assert f"{len(PICTURE)}  front.png" in done.stdout and not me.requests
    done = preftune("push", "won", "me/from-env")
    assert done.returncode == 0, done.stderr
    assert f"trial 0 published to {me.endpoint}/me/from-env (commit " in done.stdout
    assert done.stdout.endswith("\ntag won\n")
    assert published(me.repository("me/from-env")) == PUBLISHED
    again = preftune("push", "won", "me/from-env")
    assert "is in " in again.stdout and "already: nothing to commit" in again.stdout
    assert "tag won was there" in again.stdout
    assert TOKEN not in done.stdout + done.stderr + again.stdout + again.stderr
    none = preftune("push", "won", "me/from-env", token=None)
    assert none.returncode == 1 and "no Hugging Face token" in none.stderr
    assert "Traceback" not in none.stderr


def test_dry_run_touches_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    result = push(run, "me/winner", dry_run=True)
    assert list(result.files) == PUBLISHED and result.uploaded is None
    weights = run.folder / "best" / "model.safetensors"
    assert result.files["model.safetensors"] == weights.stat().st_size
    push(run, str(tmp_path / "out"), dry_run=True)
    assert not (tmp_path / "out").exists()


def test_local_folder_gets_a_plain_copy(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "models" / "winner"
    for _ in range(2):  # an earlier push is replaced
        assert push(run, str(target)).where == str(target)
        assert sorted(path.name for path in target.iterdir()) == PUBLISHED
    assert [path.name for path in target.parent.iterdir()] == ["winner"]
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not an earlier push .it holds thesis.tex"):
        push(run, str(target))
    assert (target / "thesis.tex").read_text() == "mine"
    for options in ({"private": True}, {"revision": "next"}):
        with pytest.raises(UserError, match="has no effect for the local folder"):
            push(run, str(target), **options)


def test_without_a_passing_verdict_only_by_force(me: Hub, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "lost", outcome="none")
    draw(folder)
    run = open_run(folder)
    with pytest.raises(UserError, match="no winner to publish"):
        pushed(me, run)
    with pytest.raises(UserError, match="Trial 3 .*no passing verdict.*--force"):
        pushed(me, run, trial=3)
    with pytest.raises(UserError, match="cannot be published: .* has no config.json"):
        pushed(me, run, trial=3, force=True)
    with pytest.raises(UserError, match="trained whole models and has no LoRA adapters"):
        pushed(me, run, trial=3, force=True, adapter=True)
    assert me.requests == []
    write_model(run.trial_folder(3) / "checkpoint")
    commit = pushed(me, run, trial=3, force=True)
    repository = me.repository("me/winner")
    card = repository.read("README.md").decode()
    assert "**Published without a passing verdict.**" in card
    assert "No configuration beats the reference on the test split." in card
    assert repository.state["tags"] == {"lost-trial-3": commit}


def test_a_readme_beside_foreign_files_is_not_replaced(me: Hub, run: Run) -> None:
    theirs = me.create("me/gguf")
    theirs.commit({"README.md": b"# mine", "model.gguf": b"x"})
    with pytest.raises(UserError, match="has not pushed and would replace .README.md"):
        pushed(me, run, "me/gguf")
    assert theirs.read("README.md") == b"# mine" and theirs.state["tags"] == {}
    new = me.create("me/new")
    new.commit({"README.md": b"---\nlicense: mit\n---\n"}, title="As the Hub's own form begins one")
    pushed(me, run, "me/new")
    assert published(new) == PUBLISHED


def test_a_model_without_one_of_its_parts_stays(me: Hub, run: Run) -> None:
    best = run.folder / "best"
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    (best / "model.safetensors").rename(best / first)
    with pytest.raises(UserError, match=f"has no {second}, a part of its weights"):
        pushed(me, run)
    shutil.copy(best / first, best / second)
    with pytest.raises(UserError, match=r"has no model.safetensors.index.json, a part of"):
        pushed(me, run)
    index = {"weight_map": {"a": first, "b": second}}
    (best / "model.safetensors.index.json").write_text(json.dumps(index))
    pushed(me, run)
    (best / second).unlink()
    (best / first).rename(best / "model.safetensors")
    with pytest.raises(UserError, match=f"has no {first}, a part of its weights"):
        pushed(me, run)


def test_a_branch_and_a_tag_never_share_a_name(me: Hub, run: Run) -> None:
    commit = pushed(me, run, revision="won")
    repository = me.repository("me/winner")
    assert repository.state["tags"] == {"won-v2": commit}
    with pytest.raises(UserError, match="won-v2 is a tag of me/winner"):
        pushed(me, run, revision="won-v2")
    for name in ("refs/pr/1", "refs/heads/main", "a" * 40):
        with pytest.raises(UserError, match="reads as a reference or a commit"):
            pushed(me, run, revision=name)


def test_the_card_of_a_branch_loads_that_branch(me: Hub, run: Run) -> None:
    pushed(me, run, revision="next")
    card = me.repository("me/winner").read("README.md", "next").decode()
    assert 'model="me/winner", revision="next")' in card
    assert "hf download me/winner spec.yaml --revision next --local-dir ." in card
    assert "preftune chat" not in card
    pushed(me, run, revision="main")
    assert "revision=" not in me.repository("me/winner").read("README.md").decode()


def test_what_a_failed_run_said_stays(me: Hub, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "broken", state="failed")
    draw(folder)
    told = json.loads((folder / "run.json").read_text())
    told["error"] = "/home/mallory/base on gpu-17.internal is damaged"
    (folder / "run.json").write_text(json.dumps(told))
    write_model(folder / "trials" / "3" / "checkpoint")
    pushed(me, open_run(folder), trial=3, force=True)
    card = me.repository("me/winner").read("README.md").decode()
    assert "The run failed before its verdict." in card
    assert "mallory" not in card and "gpu-17" not in card


def test_folders_that_can_be_none(run: Run, tmp_path: Path) -> None:
    for name in (f"./{'a' * 300}", f"{tmp_path}/{'a' * 300}"):
        with pytest.raises(UserError, match="cannot be written .File name too long"):
            push(run, name)
    with pytest.raises(UserError, match="is not the name of a repository"):
        push(run, "a" * 300)
    push(run, str(tmp_path / "out"))
    shutil.copytree(tmp_path / "out", run.folder / "best", dirs_exist_ok=True)
    with pytest.raises(UserError, match="is a part of run won itself; name another folder"):
        push(run, str(run.folder / "best"))


def trained_on_all(folder: Path, **fields: object) -> Run:
    """Give a run what `preftune train` leaves: another model, and what it was compared with."""
    if not (folder / "full").exists():
        write_model(folder / "full", seed=3)
    (folder / "full.json").write_text(json.dumps(full_verdict(**fields)))
    return open_run(folder)


def test_the_model_trained_on_all_pairs_is_published(me: Hub, run: Run) -> None:
    with pytest.raises(UserError, match="no model trained on all pairs. .*`preftune train won`"):
        pushed(me, run, full=True)
    run = trained_on_all(run.folder)
    commit = pushed(me, run, full=True)
    repository = me.repository("me/winner")
    for name in ("model.safetensors", "config.json"):
        assert repository.read(name) == (run.folder / "full" / name).read_bytes()
    assert repository.resolve("won-full") == commit
    card = repository.read("README.md").decode()
    assert "The model trained on all 48,733 pairs is better than the search's winner" in card
    assert "on all\n48,733 training pairs" in card and "without a passing verdict" not in card
    assert "| measure | reference | the search's winner | this model |" in card
    assert "| win_rate | 0.500 | 0.800 | 0.860 |" in card
    config = repository.read("dpo.yaml").decode()
    assert "max_steps: 3046" in config and "all 48,733 pairs" in config  # in batches of 16
    pushed(me, run, "me/search")  # the search's own winner is still there
    weights = me.repository("me/search").read("model.safetensors")
    assert weights == (run.folder / "best" / "model.safetensors").read_bytes()


def test_a_full_model_that_does_not_pass_needs_force(me: Hub, run: Run) -> None:
    worse = {"difference": 0.01, "interval": [-0.04, 0.05]}
    run = trained_on_all(run.folder, passing=False, against_reference=worse)
    with pytest.raises(UserError, match="of run won has no .*does not beat the ref.*--force"):
        pushed(me, run, full=True)
    pushed(me, run, full=True, force=True)
    card = me.repository("me/winner").read("README.md").decode()
    assert "**Published without a passing verdict.**" in card
    with pytest.raises(UserError, match=r"--full .*--trial 3 .* Remove one"):
        pushed(me, run, full=True, trial=3)
    with pytest.raises(UserError, match=r"--adapter cannot be combined with --full"):
        pushed(me, run, full=True, adapter=True)
    with pytest.raises(UserError, match=r"for its present winner\. Train it"):
        pushed(me, trained_on_all(run.folder, trial=3), full=True)
    run = trained_on_all(run.folder)
    (run.folder / "full" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"full has no \*\.safetensors.*`preftune train`"):
        pushed(me, run, full=True)
