"""A search whose model, data set and judge come from the Hub: the shipped one, from end to end.

Then what a Hub can answer instead, each one sentence that names the thing and the way out.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub import Hub
from searching import HANG, PLANTED, ROOT, preftune
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from results.run.listing import open_run
from results.run.run import Run
from results.verdict_view import verdict_sentence
from trainables.quickstart.world import BASE, rows

DATA = ROOT.parent / "shared" / "data"
MODEL = "openai-community/gpt2"
PAIRS = "argilla/ultrafeedback-binarized-preferences-cleaned"
JUDGE = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
COLUMNS = (
    "source prompt chosen chosen-rating chosen-model rejected rejected-rating rejected-model"
).split()
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
# The size of the search, and nothing else: its spec is the one that is shipped.
SMALL = {
    "dataset.split": "train[:80]",
    "dataset.validation_pairs": "16",
    "training.warmup_steps": "0",
    "budget.steps": "1",
    "search.trials": "1",
    "evaluation.prompts": "4",
    "evaluation.max_new_tokens": "4",
    "verify.finalists": "1",
    "verify.seeds": "1",
    "verify.prompts": "8",
}


def write_tokenizer(folder: Path, template: str | None = None) -> int:
    """Write GPT-2's tokenizer, or the quickstart's where that is not at hand; return its size."""
    real = DATA / "gpt2-tokenizer"
    kind, place = (GPT2TokenizerFast, real) if real.is_dir() else (AutoTokenizer, BASE)
    tokenizer = kind.from_pretrained(place)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_gpt2(folder: Path) -> Path:
    """Write a random model of GPT-2's architecture."""
    size = write_tokenizer(folder)
    torch.manual_seed(0)
    ends = {"bos_token_id": size - 1, "eos_token_id": size - 1}
    config = GPT2Config(vocab_size=size, n_layer=1, n_embd=16, n_head=2, n_positions=256, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_judge(folder: Path) -> Path:
    """Write a random reward model of Qwen3's architecture."""
    size = write_tokenizer(folder, TEMPLATE)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_labels=1,
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    return folder


def parquet_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def pairs() -> bytes:
    """Return rows of the data set, or made-up ones in its columns where those are not at hand."""
    real = DATA / "ultrafeedback-argilla" / "train.parquet"
    if real.is_file():
        return real.read_bytes()
    made = []
    for row in rows()[:400]:
        # There, an answer begins with the user's turn, and the prompt stands apart as text.
        row = {**row, "prompt": row["prompt"][0]["content"]} | {
            side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")
        }
        made.append({column: row.get(column) for column in COLUMNS})
    return parquet_of(pa.Table.from_pylist(made).select(COLUMNS))


CARD = f"""---
license: mit
configs:
- config_name: default
  data_files: [{{split: train, path: data/train-*}}]
---
# {PAIRS}
"""


def fill(hub: Hub, place: Path) -> None:
    """Publish what the shipped searches ask for."""
    hub.add_token(PLANTED, "somebody", "read")
    hub.create(MODEL).commit_folder(write_gpt2(place / "gpt2"))
    hub.create(JUDGE).commit_folder(write_judge(place / "judge"))
    rows = {"README.md": CARD.encode(), "data/train-00000-of-00001.parquet": pairs()}
    hub.create(PAIRS, "datasets").commit(rows)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path]]:
    """A Hub with model, data set and judge, and the folder beside it to work in."""
    place = tmp_path_factory.mktemp("from-hub")
    with Hub(place / "hub") as hub:
        fill(hub, place)
        yield hub, place


@pytest.fixture(scope="module")
def searched(filled: tuple[Hub, Path]) -> tuple[Run, str, dict[str, str]]:
    """The run of the shipped search, what it printed, and the commits that the Hub had then."""
    hub, place = filled
    sizes = [f"{key}={value}" for key, value in SMALL.items()]
    printed = preftune(
        place,
        *("run", "gpt2_ultrafeedback_original", "--name", "original"),
        *(word for size in sizes for word in ("--set", size)),
        settings=hub.environment(place / "home"),
    )
    commits = {
        "model": hub.repository(MODEL).resolve("main"),
        "dataset": hub.repository(PAIRS, "datasets").resolve("main"),
        "judge": hub.repository(JUDGE).resolve("main"),
    }
    return open_run("original", place / "runs"), printed, commits


@pytest.mark.searches
def test_the_shipped_search_comes_to_a_verdict(
    filled: tuple[Hub, Path], searched: tuple[Run, str, dict[str, str]]
) -> None:
    hub, _ = filled
    run, printed, commits = searched
    verdict = run.verdict()
    assert run.info["state"] == "done" and verdict is not None
    assert verdict_sentence(run).split()[0] in printed
    assert run.info["revisions"] == commits
    report = json.loads((run.folder / "data_report.json").read_text())
    assert report["source"]["revision"] == commits["dataset"]
    assert run.info["model"] == {
        "path": MODEL,
        "revision": commits["model"],
        "folder": run.info["model"]["folder"],
    }
    assert run.info["dataset"] == {"license": "mit"}  # the model's card says nothing
    ended = [trial for trial in run.trials() if trial.measures]
    assert [trial.measures["judge_score"] is not None for trial in ended] == [True]
    assert not [request for request in hub.requests if request.status == 500]
    assert not hub.asked("POST", "") and not hub.asked("PUT", "")
    for file in run.folder.rglob("*"):
        assert not file.is_file() or PLANTED.encode() not in file.read_bytes(), file


RECORDED = """
import sys
from pathlib import Path
from search_spaces.spec import load
from tune.prepare import recorded
from tune.record import Record
folder = Path(sys.argv[1])
print(recorded(load(str(folder / "spec.yaml")), Record(folder)).search.judge_revision)
"""


@pytest.mark.searches
def test_a_resumed_run_keeps_its_commits(
    filled: tuple[Hub, Path], searched: tuple[Run, str, dict[str, str]]
) -> None:
    hub, place = filled
    run, _, commits = searched
    # Everything moves on, to what could not be used.
    hub.repository(MODEL).commit({"config.json": b"{}"})
    hub.repository(JUDGE).commit({"config.json": b"{}"})
    hub.repository(PAIRS, "datasets").commit({}, ("data/",))
    moved = {hub.repository(name).resolve("main") for name in (MODEL, JUDGE)}
    seen = len(hub.requests)
    # What was prepared is taken as it is, without a question to the Hub, and so is the judge.
    offline = {**os.environ, **hub.environment(place / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RECORDED, run.folder],
        env={**offline, "PYTHONPATH": str(ROOT)},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.stdout.split() == [commits["judge"]], done.stderr
    assert len(hub.requests) == seen
    # Another machine, without the prepared folders and with an empty cache.
    shutil.rmtree(run.storage / "prepared")
    shutil.rmtree(place / "home")
    preftune(
        place, *("resume", "original", "--trials", "+1"), settings=hub.environment(place / "home")
    )
    again = open_run("original", place / "runs")
    assert len([trial for trial in again.trials() if trial.measures]) == 2
    assert again.info["revisions"] == commits
    assert again.info["prepared"] == run.info["prepared"]
    for request in hub.requests[seen:]:
        assert not any(commit in request.path for commit in moved), request


# What the Hub can answer instead of a model or rows. A client reads where its Hub is once, when it
# is imported, so that each Hub takes a process, which asks for many things.

SENTENCES = """
import json, sys
from search_spaces.errors import UserError
from trainables.hub import snapshot
from trainables.models import load_model
from trainables.data.sources import load_rows, source_of
said = []
for function, *arguments in json.load(sys.stdin):
    try:
        globals()[function](*arguments)
        said.append("nothing")
    except UserError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def sentences(settings: dict[str, str], *asked: tuple[str | None, ...]) -> list[str]:
    """Return what is said of each of several calls, in one process of a client."""
    done = subprocess.run(
        [sys.executable, "-c", SENTENCES],
        input=json.dumps(asked),
        env={**os.environ, "HF_TOKEN": "", **settings, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout.splitlines()[-1])
    assert not any("\n" in sentence or "Traceback" in sentence for sentence in said)
    return said


@pytest.fixture
def small(hub: Hub, tmp_path: Path) -> Hub:
    """A Hub with a model and rows that anybody may read."""
    hub.add_token(PLANTED, "somebody", "read")
    hub.create("lab/base").commit_folder(BASE)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    content = parquet_of(pa.Table.from_pylist(rows))
    hub.create("lab/Pairs", "datasets").commit({"data/train-00000-of-00001.parquet": content})
    return hub


def test_what_the_hub_does_not_give_is_named(small: Hub, tmp_path: Path) -> None:
    hub = small
    for kind in ("models", "datasets"):
        terms = hub.create("lab/terms", kind)
        terms.commit({"config.json": b"{}"})
        terms.change(gated="manual")
    hub.create("lab/secret", private=True)
    hub.create("lab/secret", "datasets", private=True)
    hub.create("lab/pickle").commit({"config.json": b"{}", "pytorch_model.bin": b"..."})
    hub.create("lab/empty", "datasets").commit({"README.md": b"# Nothing\n"})
    other = parquet_of(pa.Table.from_pylist([{"question": "a", "best_answer": "b"}]))
    hub.create("lab/other", "datasets").commit({"data/train.parquet": other})
    hub.fail("GET", "/api/models/lab/busy", 429, headers={"Retry-After": "1"})
    hub.fail("GET", "/api/datasets/lab/busy", 429, headers={"Retry-After": "1"})
    hub.fail("GET", "/api/models/lab/broken", 503)
    hub.fail("GET", "/api/datasets/lab/broken", 500)
    hub.fail("GET", "/api/models/lab/blocked", 403)
    hub.create("lab/locked", "datasets").commit({"data/train.parquet": other})
    hub.fail("*", "/datasets/lab/locked/resolve/", 403)
    hub.create("lab/gguf").commit({"model.gguf": b"..."})
    page = hub.endpoint
    expected = [
        (("snapshot", "lab/terms"), ["'lab/terms' is gated", f"{page}/lab/terms,", "hf auth"]),
        (("source_of", "lab/terms"), ["'lab/terms' is gated", f"{page}/datasets/lab/terms,"]),
        (("snapshot", "lab/secret"), ["no model 'lab/secret'", "if it is private"]),
        (("source_of", "lab/secret"), ["no data set 'lab/secret'", "if it is private"]),
        (("snapshot", "lab/gone"), ["no model 'lab/gone'", "check the spelling"]),
        (("source_of", "lab/gone"), ["no data set 'lab/gone'", "check the spelling"]),
        (("snapshot", "lab/base", "v9"), ["'lab/base' has no revision 'v9'", f"{page}/lab/base."]),
        (("source_of", "lab/Pairs", None, "train", "v9"), ["'lab/Pairs' has no revision 'v9'"]),
        (("load_model", "lab/pickle"), ["'lab/pickle' has no .safetensors", "convert it"]),
        (("load_rows", "lab/empty"), ["'lab/empty' cannot be loaded", "data files"]),
        (("load_rows", "lab/other"), ["'lab/other' has no column", "it has question, best_answer"]),
        (("load_rows", "lab/Pairs", None, "dev"), ["'lab/Pairs' has no split 'dev'", "has train"]),
        (("load_rows", "lab/Pairs", "v2"), ["`dataset.name`: v2", "['default']"]),
        (("snapshot", "lab/busy"), ["too many requests", "'lab/busy'", "(429)", "some minutes"]),
        (("source_of", "lab/busy"), ["too many requests", "'lab/busy'", "(429)"]),
        (("snapshot", "lab/broken"), ["refused the model 'lab/broken' (503)", "try again later"]),
        (("source_of", "lab/broken"), ["refused the data set 'lab/broken' (500)"]),
        (("snapshot", "lab/blocked"), ["refused the model 'lab/blocked' (403)"]),
        (("load_rows", "lab/locked"), ["files of the data set 'lab/locked'", "try again"]),
        (("snapshot", "lab/gguf"), ["'lab/gguf' on the Hub has none of the files", ".safetensors"]),
    ]  # fmt: skip
    said = sentences(hub.environment(tmp_path / "home"), *(asked for asked, _ in expected))
    for (asked, words), sentence in zip(expected, said, strict=True):
        assert all(word in sentence for word in words), (asked, sentence)


def test_a_token_that_the_hub_does_not_know(small: Hub, tmp_path: Path) -> None:
    settings = small.environment(tmp_path / "home", "hf_of_yesterday")
    for sentence in sentences(settings, ("snapshot", "lab/base"), ("source_of", "lab/Pairs")):
        assert "does not accept this machine's token" in sentence and "HF_TOKEN" in sentence
        assert "hf_of_yesterday" not in sentence


def test_renamed_repositories_are_followed(small: Hub, tmp_path: Path) -> None:
    small.rename("lab/base", "lab/base-v2")
    small.moved("base", "lab/base-v2")  # as `gpt2` leads to openai-community/gpt2
    small.rename("lab/Pairs", "lab/pairs-v2", "datasets")
    said = sentences(
        small.environment(tmp_path / "home"),
        *(("load_model", "lab/base"), ("load_model", "base"), ("load_rows", "lab/Pairs")),
    )
    assert said == ["nothing"] * 3


def test_what_fails_once_is_tried_again(small: Hub, tmp_path: Path) -> None:
    small.fail("GET", "/cdn/", cut_after=1000, times=2)
    small.fail("GET", "/resolve/.*/config.json", 429, headers={"Retry-After": "0"}, times=1)
    small.fail("GET", "/tree/", 503, times=1)
    said = sentences(
        small.environment(tmp_path / "home"), ("load_model", "lab/base"), ("load_rows", "lab/Pairs")
    )
    assert said == ["nothing"] * 2


def test_out_of_reach_with_a_cache_and_without(small: Hub, tmp_path: Path) -> None:
    first = small.repository("lab/Pairs", "datasets").resolve("main")
    ours = small.environment(tmp_path / "home")
    asked = [("load_model", "lab/base"), ("load_rows", "lab/Pairs")]
    assert sentences(ours, *asked) == ["nothing"] * 2
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = {**ours, "HF_ENDPOINT": f"http://127.0.0.1:{unused.getsockname()[1]}"}
        offline = {**ours, "HF_HUB_OFFLINE": "1"}
        pinned = ("load_rows", "lab/Pairs", None, "train")
        # `datasets` asks for rows again and again for 23 seconds before it takes its copy: only
        # what is found out before that is asked of a Hub that is down.
        fast = [("load_model", "lab/base"), ("source_of", "lab/Pairs")]
        for settings, calls in ((down, fast), (offline, [*asked, (*pinned, first)])):
            *said, other = sentences(settings, *calls, (*pinned, "f" * 40))
            assert said == ["nothing"] * len(calls)
            assert f"revision '{'f' * 40}'" in other and f"of commit {first}" in other
        assert sentences({**down, "HF_HOME": str(tmp_path / "new")}, *asked) == [
            f"The Hub cannot be reached at {down['HF_ENDPOINT']} to fetch the {what}, which is "
            "neither on this machine nor whole in the cache: check the network and "
            "HF_HUB_OFFLINE, or give a local path."
            for what in ("model 'lab/base'", "data set 'lab/Pairs'")
        ]


def test_rows_of_another_commit_are_not_taken_instead(small: Hub, tmp_path: Path) -> None:
    ours = small.environment(tmp_path / "home")
    assert sentences(ours, ("load_rows", "lab/Pairs")) == ["nothing"]
    second = small.repository("lab/Pairs", "datasets").commit({"README.md": b"# Rows\n"})
    small.fail("*", "/resolve/", 403)
    (said,) = sentences(ours, ("load_rows", "lab/Pairs"))
    assert f"could not be fetched at commit {second}" in said and "holds another" in said
    assert said.endswith("try again later.")


def test_the_command_ends_with_the_sentence(small: Hub, tmp_path: Path) -> None:
    small.repository("lab/base").change(gated="manual")
    settings = small.environment(tmp_path / "home")
    said = preftune(
        tmp_path,
        *("run", "quickstart", "--name", "gated", "--set", "model=lab/base"),
        code=1,
        settings=settings,
    )
    told = f"The model 'lab/base' is gated: accept its terms on {small.endpoint}/lab/base,"
    assert told in " ".join(said.split())
    info = json.loads((tmp_path / "runs" / "gated" / "run.json").read_text())
    assert info["state"] == "failed" and info["error"].startswith(told)
