"""What was pushed, as others meet it: downloaded by transformers, and by `preftune chat`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clean import python
from hub import Hub
from publishing import ASKED, READ, TOKEN, draw, published, push, pushed
from run_folder import write_run
from searching import HANG

from results.publish.card import published_texts
from results.publish.target import Target
from results.run.listing import open_run
from results.run.run import Run
from trainables.quickstart.world import BASE

pytestmark = [
    # huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("online"),
]
ROOT = Path(__file__).resolve().parents[2]
TALK = """
import json, sys
from serve.engine import load
engine = load(sys.argv[1])
print(json.dumps("".join(engine.stream(json.loads(sys.argv[2]), temperature=0, max_new_tokens=24))))
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose winner can talk: the quickstart's base model stands in for a trained one."""
    folder = write_run(tmp_path / "runs", "won")
    shutil.rmtree(folder / "best")
    shutil.copytree(BASE, folder / "best")
    draw(folder)
    return open_run(folder)


@pytest.fixture
def me(hub: Hub) -> Hub:
    hub.add_token(TOKEN, "me", "write")
    return hub


def test_downloaded_it_says_what_best_says(me: Hub, run: Run, tmp_path: Path) -> None:
    pushed(me, run)
    asked = json.dumps(ASKED)
    here = json.loads(python(me, tmp_path / "here", READ, str(run.folder / "best"), asked))
    there = json.loads(python(me, tmp_path / "there", READ, "me/winner", asked))
    assert there == here
    tokens, said = there
    assert len(tokens) > 20 and said["role"] == "assistant" and "Paris" in said["content"]


def test_the_hub_has_the_bytes_that_a_local_folder_gets(me: Hub, run: Run, tmp_path: Path) -> None:
    pushed(me, run)
    push(run, str(tmp_path / "out"))
    repository = me.repository("me/winner")
    assert published(repository) == sorted(path.name for path in (tmp_path / "out").iterdir())
    card = published_texts(run, target=Target("me/winner"), figure=True)[
        "README.md"
    ]  # names its own place
    (tmp_path / "out" / "README.md").write_text(card, encoding="utf-8")
    for path in (tmp_path / "out").iterdir():
        assert repository.read(path.name) == path.read_bytes(), path.name
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"):
        assert repository.read(name) == (BASE / name).read_bytes()


def test_preftune_chat_talks_to_it(me: Hub, run: Run, tmp_path: Path) -> None:
    """The page's own engine, in a process that knows the Hub by HF_ENDPOINT alone."""
    pushed(me, run)
    environment = {**me.environment(tmp_path / "hf"), "PATH": "/usr/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TALK, "me/winner", json.dumps(ASKED)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in json.loads(done.stdout.splitlines()[-1])
    assert me.asked("GET", "/me/winner/resolve/|^/cdn/")


def chat(me: Hub, place: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tune", "chat", name, "--port", "0"],
        env={**os.environ, **me.environment(place / "hf"), "PYTHONPATH": str(ROOT)},
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_name_without_an_owner_is_asked_for_on_the_hub(me: Hub, tmp_path: Path) -> None:
    me.add_token("hf_old", "openai-community")
    me.create("openai-community/gpt2").commit_folder(BASE)
    me.moved("gpt2", "openai-community/gpt2")  # as the Hub leads its old names on
    page = chat(me, tmp_path, "gpt2")
    assert page.stdout is not None
    try:
        said = page.stdout.readline()
        assert said.startswith("chat at http://127.0.0.1:"), (said, page.communicate())
    finally:
        page.terminate()
        page.communicate(timeout=20)
    unknown = chat(me, tmp_path, "gpt22")
    _, said = unknown.communicate(timeout=HANG)
    assert unknown.returncode == 1 and "Traceback" not in said
    assert "'gpt22' is neither a run nor a model" in said
    assert "the Hub has no model 'gpt22'" in said
    me.fail("GET", "/api/models/gpt22")
    unreached = chat(me, tmp_path, "gpt22")
    _, said = unreached.communicate(timeout=HANG)
    assert unreached.returncode == 1 and "the Hub cannot be asked for 'gpt22' now" in said


REFUSED = """
import sys
from search_spaces.errors import UserError
from serve.engine import load
for name in sys.argv[1:]:
    try:
        load(name)
    except UserError as error:
        print(error)
"""


def test_what_cannot_be_chatted_with_is_one_sentence(me: Hub, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in BASE.iterdir() if path.is_file()}
    me.create("lab/gated").commit(files)
    me.repository("lab/gated").change(gated="manual")
    me.create("lab/private", private=True).commit(files)
    weights = files.pop("model.safetensors")
    me.create("lab/pickle").commit({**files, "pytorch_model.bin": b"\x80\x04"})
    custom = {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}
    code = {"config.json": json.dumps(custom).encode(), "own.py": b"print('it ran')"}
    me.create("lab/code").commit({**files, **code, "model.safetensors": weights})
    names = ["gated", "private", "missing", "pickle", "code"]
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *(f"lab/{name}" for name in names)],
        env={**me.environment(tmp_path / "hf"), "PATH": "/usr/bin", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    gated, private, missing, pickled, custom_code = done.stdout.splitlines()
    assert f"lab/gated is gated: accept its terms on {me.endpoint}/lab/gated, then log" in gated
    assert "no model lab/private on the Hub: check the spelling, or log in with" in private
    assert "no model lab/missing on the Hub: check the spelling, or log in with" in missing
    assert "lab/pickle cannot be loaded" in pickled and "safetensors" in pickled
    assert "lab/code cannot be loaded" in custom_code
    assert not me.asked("GET", "/discussions"), "somebody was asked to convert it"
