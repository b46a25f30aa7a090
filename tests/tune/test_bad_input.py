"""What a user can get wrong, a row each: the exit code, one sentence that leads out, nothing left.

A row is a layout of the working folder, a command line, its exit code and what its message says.
Commands run inside this process, which costs milliseconds instead of seconds; those that compute
share one Ray. The last test runs the command by itself, where its processes are what matters.
"""

# ruff: noqa: E501 - one refusal a row reads better than four lines each

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import streamlit.logger
import yaml
from run_folder import write_model, write_run
from searching import HANG, environment
from streamlit.testing.v1 import AppTest

import tune.cluster.connection
import tune.run
from tune import cli
from tune.prepare import recorded
from tune.record import claim
from tune.resume import reopened

Layout = Callable[[Path], Any]
APP = Path(__file__).parents[2] / "serve" / "app.py"

GOOD: dict[str, Any] = {
    "model": "quickstart",
    "dataset": {"path": "quickstart", "validation_pairs": 16},
    "judge": "quickstart",
    "space": {"beta": {"choice": [0.1, 0.3]}},
    "training": {"max_length": 128},
    "evaluation": {"prompts": 8, "max_new_tokens": 8},
    "budget": {"pairs": 32},
    "search": {"trials": 1},
    "verify": {"finalists": 1, "seeds": 1, "prompts": 8},
    "resources": {"gpu": 0},
}
PAIRS = [{"prompt": f"Q{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(80)]


# Layouts: what a row writes into its folder.


def nothing(here: Path) -> None:
    """Lay out an empty folder."""


def text(name: str, content: str | bytes) -> Layout:
    def lay(here: Path) -> None:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return lay


def both(*layouts: Layout) -> Layout:
    def lay(here: Path) -> None:
        for one in layouts:
            one(here)

    return lay


def spec(**changes: Any) -> Layout:
    return text("spec.yaml", yaml.safe_dump({**GOOD, **changes}))


def folder(name: str) -> Layout:
    return lambda here: (here / name).mkdir(parents=True)


def link(name: str, target: str) -> Layout:
    return lambda here: (here / name).symlink_to(target)


def data(content: str | bytes | list[Any], name: str = "pairs.jsonl", **changes: Any) -> Layout:
    """A spec whose data are one file; a list is a row for each line."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    dataset = {**GOOD["dataset"], "path": f"./{name}"}
    return both(text(name, content), spec(**{"dataset": dataset, **changes}))


def parquet(rows: list[Any], keep: int | None = None) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())[:keep]


def model(edit: Layout = nothing) -> Layout:
    """A spec whose model is a small folder, which `edit` spoils."""

    def lay(here: Path) -> None:
        write_model(here / "model")
        edit(here / "model")
        spec(model="./model")(here)

    return lay


def without(*names: str) -> Layout:
    return lambda here: [(here / name).unlink() for name in names]


def cut(name: str, keep: int = 200) -> Layout:
    def lay(here: Path) -> None:
        content = (here / name).read_bytes()
        assert len(content) > keep
        (here / name).write_bytes(content[:keep])

    return lay


def pickled(here: Path) -> None:
    (here / "model.safetensors").rename(here / "pytorch_model.bin")


def encoder(here: Path) -> None:
    from transformers import BertConfig, BertModel

    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=400, intermediate_size=8, **tiny)).save_pretrained(here)


def judge(code: str | bytes, **changes: Any) -> Layout:
    """A spec with few pairs and a judge of the user's own."""
    return both(text("mine.py", code), data(PAIRS, judge="./mine.py", **changes))


def changed(name: str, **changes: Any) -> Layout:
    """Change keys of a JSON file; None takes one out."""

    def lay(here: Path) -> None:
        kept = {**json.loads((here / name).read_text()), **changes}
        (here / name).write_text(json.dumps({k: v for k, v in kept.items() if v is not None}))

    return lay


def held(here: Path) -> Any:
    """Another driver has the run; the lock is the operating system's, whoever holds it."""
    return claim(here / "runs" / "live")


SPECS = [
    ("empty file", text("spec.yaml", ""), "run spec.yaml", 2, ["spec.yaml: the file is empty", "quickstart"]),
    ("words", text("spec.yaml", "tune my model"), "run spec.yaml", 2, ["a spec is a mapping", "`model:`"]),
    ("list", text("spec.yaml", "- model"), "run spec.yaml", 2, ["a spec is a mapping"]),
    ("not YAML", text("spec.yaml", "model: [a\n"), "run spec.yaml", 2, ["not valid YAML", "line 2"]),
    ("two documents", text("spec.yaml", "a: 1\n---\nb: 2\n"), "run spec.yaml", 2, ["another document", "line 2"]),
    ("aliases", text("spec.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"), "run spec.yaml", 2, ["aliases are not supported", "line 2"]),
    ("deep nesting", text("spec.yaml", "[" * 2000), "run spec.yaml", 2, ["not valid YAML"]),
    ("key twice", text("spec.yaml", "model: a\nmodel: b\n"), "run spec.yaml", 2, ["`model` is there twice", "line 2"]),
    ("code in YAML", text("spec.yaml", "model: !!python/object/apply:os.system [id]\n"), "run spec.yaml", 2, ["not valid YAML"]),
    ("half of a character", text("spec.yaml", 'model: "\\ud800"\n'), "run spec.yaml", 2, ["model: holds half of a character"]),
    ("keys that steer a terminal", text("spec.yaml", '"a\\e[31mb\\nc": 1\n'), "run spec.yaml", 2, ["a\\x1b[31mb\\nc = 1: no such key"]),
    ("binary", text("spec.yaml", b"\x89PNG\r\n\x1a\n\0\xff"), "run spec.yaml", 2, ["not a text file in UTF-8"]),
    ("UTF-16", text("spec.yaml", "model: a".encode("utf-16")), "run spec.yaml", 2, ["save it as one"]),
    ("directory", folder("spec.yaml"), "run spec.yaml", 2, ["spec.yaml: cannot be read", "Is a directory"]),
    ("unreadable", link("spec.yaml", "spec.yaml"), "run spec.yaml", 2, ["cannot be read", "check the path"]),
    ("no such file", nothing, "run mine.yaml", 2, ["mine.yaml: there is no such file", "quickstart"]),
    ("no such name", nothing, "run quickstrat", 2, ["no shipped spec has this name", "`quickstart`"]),
    ("folder as a spec", nothing, "run .", 2, ["a path ending in .yaml"]),
    ("misspelt key", spec(serch={"trials": 3}), "run spec.yaml", 2, ["serch", "no such key", "`search`"]),
    ("key missing", text("spec.yaml", "model: quickstart\n"), "run spec.yaml", 2, ["dataset: needed", "space: needed"]),
    ("unknown field", spec(training={"learning_rte": 1e-4}), "run spec.yaml", 2, ["DPOConfig has no such field", "`learning_rate`"]),
    ("unknown constraint", spec(objective={"constraints": {"kll": {"max": 1}}}), "run spec.yaml", 2, ["constraints.kll", "`kl`"]),
    ("unknown metric", spec(objective={"metric": "rewards/margins"}), "run spec.yaml", 2, ["factor beta", "win_rate"]),
    ("constant in the space", spec(space={"beta": 0.1}), "run spec.yaml", 2, ["space.beta = 0.1", "`training`"]),
    ("wrong type", spec(search={"trials": "many"}), "run spec.yaml", 2, ['search.trials = "many"', "integer"]),
    ("beyond every number", spec(budget={"pairs": 10**30}), "run spec.yaml", 2, ["budget.pairs", "less than"]),
    ("every problem at once", spec(serch={}, budget={"pairs": -1}, judge=5), "run spec.yaml", 2, ["serch", "budget.pairs", "judge"]),
    ("storage is nothing", spec(storage=""), "run spec.yaml", 2, ["storage", "names no folder"]),
    ("storage with a NUL", spec(storage="a\0b"), "run spec.yaml", 2, ["storage", "names no folder"]),
    ("storage of nobody", spec(storage="~no-such-user/runs"), "run spec.yaml", 2, ["~no-such-user", "names no folder"]),
    ("model with a NUL", spec(model="~a\0b"), "run spec.yaml", 2, ["model", "no such file or folder"]),
    ("storage is a file", both(spec(storage="./taken"), text("taken", "")), "run spec.yaml", 1, ["cannot write to the storage", "set storage"]),
    ("--set without a value", nothing, "run quickstart --set search.trials", 2, ["--set search.trials", "key.path=value"]),
    ("--set without a key", nothing, "run quickstart --set =8", 2, ["--set =8", "key.path=value"]),
    ("--set of no YAML", nothing, "run quickstart --set 'search.trials=[8'", 2, ["--set search.trials=[8", "not valid YAML"]),
    ("--set below a value", nothing, "run quickstart --set model.path=x", 2, ["`model` holds no keys", "model={...}"]),
    ("--set unknown key", nothing, "run quickstart --set search.trils=8", 2, ["search.trils", "`trials`"]),
]  # fmt: skip

DATA = [
    ("missing file", spec(dataset={"path": "./gone.jsonl"}), 2, ["gone.jsonl", "no such file or folder"]),
    ("empty", data(""), 1, ["no rows", "pairs.jsonl"]),
    ("no usable columns", data([{"question": "a", "choosen": "b"}]), 1, ["no column chosen or rejected", "did you mean choosen", "`prompt`"]),
    ("truncated parquet", data(parquet(PAIRS, keep=-30), "pairs.parquet"), 1, ["pairs.parquet", "damaged", "fetch it again"]),
    ("parquet of no UTF-8", data(parquet(PAIRS).replace(b"yes", b"\xff\xff\xff"), "pairs.parquet"), 1, ["pairs.parquet", "Invalid UTF8", "fetch it again"]),
    ("damaged pages", data(b"PAR1" + b"\xff" * 200 + parquet(PAIRS)[204:], "pairs.parquet"), 1, ["pairs.parquet", "damaged", "fetch it again"]),
    ("not parquet", data("PAR1", "pairs.parquet"), 1, ["pairs.parquet", "damaged"]),
    ("parquet of other columns", data(parquet([{"a": 1}]), "pairs.parquet"), 1, ["no column chosen or rejected", "it has a"]),
    ("line of no JSON", data(json.dumps(PAIRS[0]) + "\n\n{'prompt': 1}\n"), 1, ["Line 3 of", "pairs.jsonl", "fix or remove it"]),
    ("line that is a list", data([PAIRS[0], [1, 2]]), 1, ["Line 2 of", "not a JSON object"]),
    ("not UTF-8", data('{"prompt": "é"}\n'.encode("latin-1")), 1, ["Line 1 of", "pairs.jsonl"]),
    ("no gzip", data(PAIRS, "pairs.jsonl.gz"), 1, ["pairs.jsonl.gz", "damaged", "fetch it again"]),
    ("truncated gzip", data(gzip.compress(json.dumps(PAIRS).encode())[:-20], "pairs.jsonl.gz"), 1, ["pairs.jsonl.gz", "damaged"]),
    ("wrong types in rows", data([{"prompt": i, "chosen": [i], "rejected": {}} for i in range(80)]), 1, ["0 can be used", "neither texts nor lists"]),
    ("all equal", data([{**row, "rejected": row["chosen"]} for row in PAIRS]), 1, ["because both answers are the same", "fix the data"]),
    ("all empty", data([{**row, "chosen": " "} for row in PAIRS]), 1, ["because an answer has no visible character", "fix the data"]),
    ("fewer rows than validation_pairs", data(PAIRS[:12]), 1, ["12 rows", "16 validation pairs", "dataset.validation_pairs lower"]),
    ("one prompt throughout", data([{**row, "prompt": "Q?"} for row in PAIRS]), 1, ["validation split", "is also in train", "dataset.validation_pairs"]),
    ("max_length that drops all", data(PAIRS, training={"max_length": 3}), 1, ["the prompt alone fills max_length", "training.max_length"]),
    ("max_length beyond the model", data(PAIRS, training={"max_length": 100_000}), 1, ["100000", "positions", "set training.max_length to"]),
    ("no such split", data(PAIRS, dataset={**GOOD["dataset"], "path": "./pairs.jsonl", "split": "dev"}), 1, ["no split 'dev'", "it has train"]),
    ("no configurations", data(PAIRS, dataset={**GOOD["dataset"], "path": "./pairs.jsonl", "name": "x"}), 1, ["`dataset.name` 'x'", "leave it out"]),
    ("other suffix", data("a,b\n", "pairs.csv"), 1, ["pairs.csv", ".parquet", "convert it"]),
    ("empty folder", both(folder("d"), spec(dataset={**GOOD["dataset"], "path": "./d"})), 1, ["/d' cannot be loaded", "any data files"]),
    ("damaged line in a folder", both(text("d/train.jsonl", "{}\n{"), spec(dataset={**GOOD["dataset"], "path": "./d"})), 1, ["Line 2", "train.jsonl"]),
]  # fmt: skip

MODELS = [
    ("missing folder", spec(model="./gone"), 2, ["./gone", "no such file or folder"]),
    ("no Hub id", spec(model="a b"), 2, ["a b", "owner/name"]),
    ("file", both(text("model.bin", ""), spec(model="./model.bin")), 1, ["no model folder", "model.bin"]),
    ("out of reach", spec(model="someone/never-was-here"), 1, ["someone/never-was-here", "The Hub cannot be reached", "local path"]),
    ("no config", model(without("config.json")), 1, ["no config.json", "`save_pretrained`"]),
    ("no weights", model(without("model.safetensors")), 1, ["no .safetensors weights", "convert it"]),
    ("pickle only", model(pickled), 1, ["no .safetensors weights", "a pickle can run code"]),
    ("truncated weights", model(cut("model.safetensors", 5000)), 1, ["weights of the model", "damaged", "fetch them again"]),
    ("no tokenizer", model(without("tokenizer.json", "tokenizer_config.json")), 1, ["no tokenizer files", "copy tokenizer.json"]),
    ("damaged tokenizer", model(cut("tokenizer.json")), 1, ["tokenizer of", "cannot be loaded"]),
    ("damaged config", model(cut("config.json", 20)), 1, ["cannot be loaded", "config.json"]),
    ("encoder", model(encoder), 1, ["no weights for", "language-model head"]),
    ("template that fails", model(text("chat_template.jinja", "{{ raise_exception('no') }}")), 1, ["chat template", "cannot be used", "put a plain one"]),
    ("template of no Jinja", model(text("chat_template.jinja", "{% for")), 1, ["chat template", "cannot be used"]),
]  # fmt: skip

JUDGES = [
    ("missing file", spec(judge="./gone.py"), 2, ["gone.py", "no such file or folder"]),
    ("syntax error", judge("def judge(prompts, answers):\n    return [\n"), 1, ["mine.py", "not valid Python", "line 2", "Fix it"]),
    ("binary", judge(b"\0\xff"), 1, ["mine.py", "Fix it"]),
    ("no judge()", judge("def jugde(prompts, answers): ...\n"), 1, ["defines no function `judge`", "def judge(prompts"]),
    ("one argument", judge("def judge(pairs): return []\n"), 1, ["line 1: judge(pairs)", "def judge(prompts"]),
    ("three arguments", judge("def judge(a, b, c): return []\n"), 1, ["judge(a, b, c)", "def judge(prompts"]),
    ("neither code nor model", both(text("mine.txt", ""), spec(judge="./mine.txt")), 1, ["mine.txt", "neither a .py file", "quickstart"]),
    ("missing import", judge("import no_such_module\ndef judge(p, a): return [0.0] * len(a)\n"), 1, ["line 1", "No module named 'no_such_module'"]),
    ("too few scores", judge("def judge(p, a): return [1.0]\n"), 1, ["returned 1 scores for", "one number for each"]),
    ("another world's data", data(PAIRS), 1, ["quickstart", "`judge`"]),
]  # fmt: skip

FLAGS = [
    ("unknown command", nothing, "rnu quickstart", 2, ["No such command 'rnu'", "Did you mean 'run'"]),
    ("unknown option", nothing, "run quickstart --nme x", 2, ["No such option: --nme", "--name"]),
    ("no spec", nothing, "run", 2, ["Missing argument 'SPEC'", "preftune run --help"]),
    ("no repository", nothing, "push won", 2, ["Missing argument 'REPO'"]),
    ("one word too many", nothing, "run quickstart again", 2, ["extra argument", "again"]),
    ("name with a slash", nothing, "run quickstart --name a/b", 1, ["--name 'a/b'", "one plain folder name"]),
    ("name of nothing", nothing, "run quickstart --name ''", 1, ["--name ''", "one plain folder name"]),
    ("name of two words", nothing, "run quickstart --name 'a b'", 1, ["--name 'a b'", "one plain folder name"]),
    ("name like an option", nothing, "run quickstart --name=-x", 1, ["--name '-x'", "begins with"]),
    ("name that means the newest", nothing, "run quickstart --name latest", 1, ["--name 'latest'", "is not prepared or latest"]),
    ("name too long", nothing, f"run quickstart --name {'x' * 300}", 1, ["--name", "at most 100"]),
    ("name that is taken", nothing, "run quickstart --name won", 1, ["a run called 'won'", "preftune resume won"]),
    ("file name that is no run's", text("my spec.yaml", yaml.safe_dump(GOOD)), "run 'my spec.yaml'", 1, ["'my spec' cannot be a run's name", "--name"]),
    ("warm start without a run", nothing, "run quickstart --set search.warm_start=gone", 1, ["search.warm_start", "no run 'gone'"]),
    ("warm start of the newest, without any", nothing, "run quickstart --set search.warm_start=latest --set storage=empty", 1, ["search.warm_start", "no run in empty"]),
    ("warm start of a run that is running", held, "run quickstart --set search.warm_start=live", 1, ["search.warm_start", "run live is running", "preftune stop live"]),
    ("warm start of another search", nothing, "run quickstart --set search.warm_start=won", 1, ["search.warm_start", "another dataset", "leave warm_start out"]),
    ("warm start of a folder", folder("runs/junk"), "run quickstart --set search.warm_start=junk", 1, ["search.warm_start", "not a run"]),
    ("no such run", nothing, "show nothing", 1, ["no run 'nothing'", "there are:", "won"]),
    ("no run at all", nothing, "show --storage empty", 1, ["no run in empty", "preftune run quickstart"]),
    ("run of nobody", nothing, "show '~no-such-user/x'", 1, ["no run '~no-such-user/x'"]),
    ("not a run", folder("runs/junk"), "show junk", 1, ["runs/junk is not a run", "preftune list"]),
    ("storage is a file", text("taken", ""), "list --storage taken", 1, ["--storage taken is a file", "name the folder"]),
    ("no such trial", nothing, "show won --trial 99", 1, ["no trial 99", "0 to 5"]),
    ("negative trial", nothing, "show won --trial -1", 1, ["no trial -1", "0 to 5"]),
    ("trial by name", nothing, "show won --trial best", 2, ["--trial", "integer"]),
    ("trials that are none", nothing, "resume won --trials many", 1, ["--trials many", "such as +10"]),
    ("no trials", nothing, "resume won --trials 0", 1, ["--trials 0", "such as +10"]),
    ("fewer trials", nothing, "resume won --trials -3", 1, ["--trials -3", "such as +10"]),
    ("half a trial", nothing, "resume won --trials 1.5", 1, ["--trials 1.5", "whole number"]),
    ("more trials than numbers", nothing, f"resume won --trials +{10**30}", 1, ["--trials", "whole number"]),
    ("nothing to stop", nothing, "stop won", 1, ["is not running", "'done'"]),
    ("address that refuses", spec(), "run spec.yaml --name a --address 127.0.0.1:9", 1, ["127.0.0.1:9", "Connection refused", "check --address"]),
    ("address of no host", spec(), "run spec.yaml --name a --address host.invalid:1", 1, ["host.invalid:1", "check --address"]),
    ("address of nothing", spec(), "run spec.yaml --name a --address nonsense", 1, ["nonsense", "check --address"]),
    ("train without a verdict", nothing, "train lost", 1, ["no winner to train", "No configuration beats the reference"]),
    ("train before the end", nothing, "train cut", 1, ["has not ended", "preftune resume cut"]),
    ("train while it runs", held, "train live", 1, ["run live is running", "preftune stop live"]),
    ("resume while it runs", held, "resume live", 1, ["run live is running (process", "preftune stop live"]),
    ("push without a winner", nothing, "push lost me/model", 1, ["no winner to publish", "--trial"]),
    ("push without a token", nothing, "push won me/model", 1, ["no Hugging Face token", "hf auth login"]),
    ("push to no name", nothing, "push won a/b/c", 1, ["'a/b/c' is not the name of a repository", "name/repo"]),
    ("push to an address", nothing, "push won https://huggingface.co/me/x --dry-run", 1, ["is not the name of a repository", "name/repo"]),
    ("push to a bad name", nothing, "push won 'me/..' --dry-run", 1, ["is not the name of a repository", "name/repo"]),
    ("push to nothing", nothing, "push won ''", 1, ["'' is not the name of a repository"]),
    ("push into a file", text("taken", ""), "push won ./taken", 1, ["is a file", "name a folder"]),
    ("push below a file", text("taken", ""), "push won ./taken/model", 1, ["cannot be written", "name a folder"]),
    ("push into another's folder", text("full/x", ""), "push won ./full", 1, ["not empty", "name a new or an empty folder"]),
    ("push of no trial", nothing, "push won me/model --trial 99", 1, ["no trial 99", "0 to 5"]),
    ("push without weights", nothing, "push won ./out --trial 3", 1, ["no config.json", "best few trials only"]),
    ("push without passing", nothing, "push won ./out --trial 1", 1, ["no passing verdict", "--force"]),
    ("chat with nothing", nothing, "chat nothing", 1, ["'nothing' is neither a run nor a model", "won", "owner/name"]),
    ("chat with a folder", folder("full"), "chat ./full", 1, ["neither a run nor a model", "config.json"]),
    ("chat with no name", nothing, "chat 'a b'", 1, ["neither a run nor a model"]),
    ("port too large", nothing, "chat --port 99999", 1, ["99999", "choose another --port"]),
    ("no such host", nothing, "chat --host host.invalid --port 0", 1, ["host.invalid", "cannot listen"]),
]  # fmt: skip

DAMAGE = [
    ("run.json cut", cut("won/run.json", 50), "show won", 1, ["won/run.json cannot be read", "restore it"]),
    ("run.json binary", text("won/run.json", b"\xff\0"), "resume won", 1, ["won/run.json cannot be read", "restore it"]),
    ("run.json a list", text("won/run.json", "[]"), "train won", 1, ["won/run.json must hold a JSON object", "restore it"]),
    ("run.json nested", text("won/run.json", "[" * 100_000), "show won", 1, ["won/run.json cannot be read"]),
    ("run.json a folder", both(without("won/run.json"), folder("won/run.json")), "report won", 1, ["won/run.json cannot be read", "Is a directory"]),
    ("run.json of other kinds", changed("won/run.json", model="x"), "push won ./out", 1, ["won/run.json", "`model` is 'x'", "a mapping belongs there"]),
    ("run.json of a newer preftune", changed("won/run.json", format=2), "show won", 1, ["format 2", "reads up to 1", "update preftune"]),
    ("list with a damaged run", cut("won/run.json", 50), "list", 0, ["won", "unreadable", "lost"]),
    ("spec.yaml not YAML", text("cut/spec.yaml", "model: [\n"), "resume cut", 2, ["spec.yaml", "not valid YAML"]),
    ("spec.yaml empty", text("cut/spec.yaml", ""), "resume cut", 2, ["spec.yaml", "the file is empty"]),
    ("spec.yaml gone", without("cut/spec.yaml"), "resume cut", 1, ["run cut has no spec.yaml", "start a new run"]),
    ("spec.yaml gone, to train", without("won/spec.yaml"), "train won", 1, ["run won has no spec.yaml"]),
    ("spec.yaml of other kinds", text("won/spec.yaml", "space: 3\n"), "show won", 1, ["spec.yaml", "`space` is 3", "restore it"]),
    ("journal of nothing", text("cut/study.journal", bytes(range(256)) * 9), "resume cut", 1, ["study.journal", "damaged from line 1", "restore it from a copy"]),
    ("journal cut in the middle", lambda here: (here / "cut/study.journal").write_bytes((here / "cut/study.journal").read_bytes().replace(b'"op_code":5', b'"op_c', 1)), "resume cut", 1, ["study.journal is damaged at line", "cut the file off before that line"]),
    ("journal of another program", text("won/study.journal", '{"a": 1}\n'), "show won", 1, ["study.journal", "damaged from line 1"]),
    ("journal of other records", text("won/study.journal", '{"op_code": 4, "worker_id": "a", "study_id": 7}\n'), "report won", 1, ["no study called 'search'", "restore it"]),
    ("journal gone", without("cut/study.journal"), "resume cut", 1, ["study.journal holds no trials", "restore it"]),
    ("decisions of no JSON", text("cut/decisions.jsonl", '{"time": \n'), "resume cut", 1, ["decisions.jsonl is damaged at line 1", "restore it"]),
    ("decisions of other keys", text("cut/decisions.jsonl", '{"a": 1}\n'), "resume cut", 1, ["decisions.jsonl is damaged at line 1"]),
    ("decisions binary", text("cut/decisions.jsonl", b"\xff\xfe\n"), "resume cut", 1, ["decisions.jsonl is damaged at line 1"]),
    ("verdict cut", cut("won/verdict.json", 50), "train won", 1, ["verdict.json cannot be read", "restore it"]),
    ("verdict without its winner", changed("won/verdict.json", winner=None), "train won", 1, ["verdict.json", "`winner` is missing"]),
    ("verdict of other kinds", changed("won/verdict.json", finalists=[3]), "show won", 1, ["verdict.json", "`finalists.0` is 3", "a mapping belongs there"]),
    ("verdict of a trial that is not there", changed("won/verdict.json", winner=99), "push won ./out", 1, ["no trial 99", "0 to 5"]),
    ("data report of other kinds", text("won/data_report.json", '{"splits": 3}'), "report won", 1, ["data_report.json", "`splits` is 3"]),
    ("full.json of nothing", text("won/full.json", "{}1"), "train won", 1, ["full.json cannot be read"]),
    ("full.json without its words", text("won/full.json", '{"trial": 0}'), "train won", 1, ["full.json", "is missing"]),
    ("report of a run without anything", text("bare/run.json", "{}"), "report bare", 0, ["report.html"]),
    ("show of a run without anything", text("bare/run.json", "{}"), "show bare", 0, ["data_report.json is missing", "there are no trials"]),
    ("prepared data gone", lambda here: shutil.rmtree(here / "prepared"), "train won", 1, ["prepared", "is gone or has changed", "start a new run"]),
    ("prepared data changed", lambda here: [path.write_text("x") for path in here.glob("prepared/data-*/train.parquet")], "train won", 1, ["is gone or has changed"]),
    ("measurement gone", without("won/verify/0-own.json"), "train won", 1, ["verify/0-own.json is missing", "restore it"]),
    ("measurement damaged", text("won/verify/0-own.json", '{"gains": ['), "train won", 1, ["0-own.json is damaged", "restore it"]),
    ("best gone, to push", lambda here: shutil.rmtree(here / "won" / "best"), "push won ./out", 1, ["cannot be published", "no config.json"]),
    ("weights cut, to push", cut("won/best/model.safetensors", 5000), "push won ./out", 1, ["model.safetensors is damaged", "--trial"]),
    ("weights of nothing, to push", text("won/best/model.safetensors", ""), "push won me/model --dry-run", 1, ["model.safetensors is damaged"]),
    ("tokenizer cut, to push", cut("won/best/tokenizer.json"), "push won ./out", 1, ["tokenizer.json is damaged"]),
    ("tokenizer gone, to push", lambda here: [path.unlink() for path in here.glob("*/*/tokenizer*.json")] and shutil.rmtree(here / "prepared"), "push won ./out", 1, ["no a tokenizer"]),
    ("weights cut, to chat", cut("won/best/model.safetensors", 5000), "chat won --port 0", 0, ["cannot be loaded", "choose another model"]),
    ("tokenizer cut, to chat", cut("won/best/tokenizer.json"), "chat won --port 0", 0, ["The tokenizer of", "cannot be loaded"]),
    ("config cut, to chat", cut("won/best/config.json", 20), "chat won --port 0", 0, ["cannot be loaded"]),
]  # fmt: skip

ROWS: dict[str, tuple[Layout, str, int, list[str]]] = {
    **{f"spec: {name}": row for name, *row in SPECS},  # type: ignore[misc]
    **{f"data: {name}": (lay, "run spec.yaml --name a", *row) for name, lay, *row in DATA},
    **{f"model: {name}": (lay, "run spec.yaml --name a", *row) for name, lay, *row in MODELS},
    **{f"judge: {name}": (lay, "run spec.yaml --name a", *row) for name, lay, *row in JUDGES},
    **{f"flags: {name}": row for name, *row in FLAGS},
    **{f"damage: {name}": row for name, *row in DAMAGE},
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs as a search leaves them: with a winner, without, running, and interrupted."""
    root: Path = tmp_path_factory.mktemp("storage")
    write_run(root, "won")
    write_run(root, "lost", outcome="none")
    write_run(root, "live", state="searching")
    write_run(root, "cut", state="interrupted")
    return root


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where temporary files of this process and of Ray's workers go; Ray's own stay in /tmp."""
    place: Path = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(place))
        patch.setenv("RAY_TMPDIR", "/tmp")  # its sockets need a short path
        patch.setattr(tempfile, "tempdir", None)
        yield place


@pytest.fixture(scope="module")
def connected(temporary: Path) -> Iterator[Callable[..., Any]]:
    """What `connected` is, but one Ray for all rows that name no address."""
    before, real, stack = dict(os.environ), tune.cluster.connection.connected, ExitStack()
    started: list[tune.cluster.connection.Cluster] = []

    @contextmanager
    def shared(address: str | None) -> Iterator[tune.cluster.connection.Cluster]:
        if address is not None:
            with real(address) as cluster:
                yield cluster
            return
        if not started:
            started.append(stack.enter_context(real(None, cpus=1)))
        yield started[0]

    with stack:
        yield shared
    os.environ.clear()
    os.environ.update(before)


class Opened(BaseException):
    """The process would have become the page."""


def page(executable: str, line: list[str]) -> None:
    """Show the page that the command would become, and print its errors."""
    streamlit.logger.set_log_level("error")  # it warns of every thread that is no browser's
    sys.argv = [str(APP), *line[5:]]  # after `python -m serve.launch HOST PORT`
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.exception and app.error
    cli.console.print(*(error.value.replace("\\", "") for error in app.error), soft_wrap=True)
    raise Opened


@pytest.fixture
def command(
    tmp_path: Path,
    temporary: Path,
    connected: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[[str], tuple[int, str, str]]:
    """The command inside this process: its exit code, and what it printed on the two streams."""
    monkeypatch.setattr(tune.run, "connected", connected)
    monkeypatch.setattr(os, "execv", page)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    token = str(tmp_path / "no-token")  # whoever runs this may have one
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", token)
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["preftune", *shlex.split(line)])
        code: Any = 0
        capfd.readouterr()  # what the layout printed
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        except Opened:
            pass
        return int(code or 0), *capfd.readouterr()

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


OF_OTHERS = ("pymp-", "torchinductor_")  # temporary folders of Ray's dashboard and of torch
# Of a run that began: its folder, finished stages of the preparation, and the lock of each stage.
OF_A_RUN = re.compile(
    r"runs(/a(/(trials|spec\.yaml|run\.json|data_report\.json|\.driver\.lock))?)?"
    r"|runs/prepared(/(checked|data|reference)-[0-9a-f]{16}(/[^./][^/]*)*|/\.(checked|data|reference|answers)-[0-9a-f]{16}\.lock)?"
)


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_is_refused_in_words_and_leaves_nothing(
    name: str,
    tmp_path: Path,
    storage: Path,
    temporary: Path,
    command: Callable[[str], tuple[int, str, str]],
) -> None:
    lay, line, code, fragments = ROWS[name]
    if name.startswith(("flags", "damage")):
        shutil.copytree(storage, tmp_path / "runs")
    kept = lay(tmp_path / "runs" if name.startswith("damage") else tmp_path)
    before, family = contents(tmp_path), set(psutil.Process().children())

    found, printed, told = command(line)

    assert found == code, printed + told
    assert "Traceback" not in printed + told
    for fragment in fragments:
        assert fragment in printed + told, printed + told
    if code == 1:
        assert len(told.strip().splitlines()) == 1, told
    after = contents(tmp_path)
    assert {path: after.get(path) for path in before} == before
    new = {path for path in after if path not in before}
    if code == 1 and re.search("--name a( |$)", line):  # a run began: it says why it ended
        info = json.loads(after["runs/a/run.json"])
        assert (info["state"], info["error"]) == ("failed", told.strip())
        new = {path for path in new if not OF_A_RUN.fullmatch(path)}
    elif line.startswith("report") and code == 0:
        new -= {"runs/bare/report.html"}
    elif line.startswith(("resume", "train")):
        new = {path for path in new if not path.endswith("/.driver.lock")}
    assert not new
    assert not [path for path in temporary.iterdir() if not path.name.startswith(OF_OTHERS)]
    started = [one for one in psutil.Process().children() if one not in family]
    assert not [one for one in started if "ray" not in " ".join(one.cmdline())]
    del kept  # a lock that the row held


def test_command_of_its_own_ends_with_all_its_processes(tmp_path: Path) -> None:
    """A whole process with a Ray of its own, whose data turn out damaged: the family goes too."""
    data(PAIRS, "pairs.jsonl.gz")(tmp_path)
    temporary = Path(tempfile.mkdtemp(prefix="t"))  # a socket in it needs a short path
    mark = f"PREFTUNE_TEST={uuid.uuid4().hex}"
    places = {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-m", "tune", "run", "spec.yaml", "--name", "a"],
        cwd=tmp_path,
        env={**environment(), **places, **dict([mark.split("=")])},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "pairs.jsonl.gz" in done.stderr and "fetch it again" in done.stderr

    def family() -> list[int]:
        """Every process that inherited the mark, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                found += [process.pid] if mark in map("=".join, process.environ().items()) else []
        return found

    deadline = time.monotonic() + 20  # Ray's own processes notice within seconds
    while family() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not family()
    unknown = {path for path in contents(tmp_path) if not OF_A_RUN.fullmatch(path)}
    assert unknown == {"spec.yaml", "pairs.jsonl.gz"}
    assert not [path for path in temporary.iterdir() if not path.name.startswith(OF_OTHERS)]
    shutil.rmtree(temporary)


def test_run_that_lost_its_run_json_opens_to_go_on(tmp_path: Path, storage: Path) -> None:
    """Journal and decisions are the record of a search; the rest of `run.json` is written anew."""
    shutil.copytree(storage, tmp_path / "runs")
    without("runs/cut/run.json")(tmp_path)
    opened = reopened("cut", str(tmp_path / "runs"), None, None, cli.console)
    assert opened is not None
    record = opened[1]
    assert (record.info["format"], record.info["name"], record.seconds) == (1, "cut", {})
    assert len(record.decisions) > 0 and recorded(opened[0], record) is None
