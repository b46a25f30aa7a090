"""Publishing over real HTTP, against a small server that speaks the Hub's upload protocol."""

import base64
import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folder import write_model, write_run

from results.errors import UserError
from results.hub import push
from results.run import open_run

ROOT = Path(__file__).resolve().parent.parent
# huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_only_for_this_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> {"private": ..., "files": {path: bytes}}."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.refuse: int | None = None  # a status that answers every request

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the test's output quiet."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        if self.server.refuse:
            return self._answer(self.server.refuse, {"error": "no"})
        if name not in self.server.repos:
            return self._answer(404, {"error": "Repository not found"})
        private = self.server.repos[name]["private"]
        self._answer(200, {"id": name, "private": private, "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        data = self._body()
        assert self.path.removeprefix("/blob/") == hashlib.sha256(data).hexdigest()
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuse:
            self._answer(self.server.refuse, {"error": "no"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            self._preupload(json.loads(body))
        elif self.path.endswith("/objects/batch"):
            self._batch(json.loads(body))
        else:
            self._commit([json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        known = name in self.server.repos
        private = wanted.get("visibility") == "private"
        self.server.repos.setdefault(name, {"private": private, "files": {}})
        address = f"{self.server.address}/{name}"
        self._answer(409 if known else 200, {"url": address, "name": name, "error": "exists"})

    def _preupload(self, wanted: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in wanted["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {
                **entry,
                "actions": {"upload": {"href": f"{self.server.address}/blob/{entry['oid']}"}},
            }
            for entry in wanted["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        name = "/".join(self.path.split("/")[3:5])
        files = self.server.repos[name]["files"]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        address = f"{self.server.address}/{name}/commit/abc"
        self._answer(200, {"commitUrl": address, "commitOid": "abc", "success": True})


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two switches of the client, read at import: plain LFS, and online where the tests are not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    write_run(storage, "won")
    write_run(storage, "lost", outcome="none")
    (storage / "won" / "best" / "optimizer.pt").write_text("must never leave")
    (storage / "won" / "best" / "notes.txt").write_text("nor this")
    return storage


PUBLISHED = [
    "README.md",
    "chat_template.jinja",
    "config.json",
    "dpo.yaml",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


def test_push_makes_one_commit_of_the_allowed_files(hub: Hub, storage: Path) -> None:
    run = open_run("won", storage)
    result = push(run, "me/winner", private=True, token=TOKEN, endpoint=hub.address)
    repo = hub.repos["me/winner"]
    assert repo["private"] is True
    assert sorted(repo["files"]) == PUBLISHED == list(result.files)
    weights = run.folder / "best" / "model.safetensors"
    assert repo["files"]["model.safetensors"] == weights.read_bytes()
    assert 'model="me/winner"' in repo["files"]["README.md"].decode()
    assert yaml.safe_load(repo["files"]["dpo.yaml"])["learning_rate"] == 2.1e-4
    assert hub.commits == ["Publish trial 0 of preftune run won"]
    assert result.where == f"{hub.address}/me/winner" and result.commit == "abc"
    for name, content in repo["files"].items():
        assert str(storage).encode() not in content, f"{name} tells a local path"


def test_second_push_reuses_the_repository(hub: Hub, storage: Path) -> None:
    run = open_run("won", storage)
    for _ in range(2):
        push(run, "winner", token=TOKEN, endpoint=hub.address)
    assert list(hub.repos) == ["me/winner"] and len(hub.commits) == 2
    with pytest.raises(UserError, match="exists and is public"):
        push(run, "winner", private=True, token=TOKEN, endpoint=hub.address)
    assert len(hub.commits) == 2


def test_the_environment_names_the_hub_and_the_token(hub: Hub, storage: Path) -> None:
    code = (
        "import sys; from results.hub import push; from results.run import open_run;"
        "print(push(open_run('won', sys.argv[1]), 'me/from-env').commit)"
    )
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(storage)],
        env={**settings, "PATH": "/usr/bin", "HF_HOME": str(storage / "hf")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "abc", done.stderr
    assert sorted(hub.repos["me/from-env"]["files"]) == PUBLISHED


def test_dry_run_touches_nothing(hub: Hub, storage: Path, tmp_path: Path) -> None:
    run = open_run("won", storage)
    result = push(run, "me/winner", dry_run=True, token=TOKEN, endpoint=hub.address)
    assert list(result.files) == PUBLISHED and not hub.repos
    weights = run.folder / "best" / "model.safetensors"
    assert result.files["model.safetensors"] == weights.stat().st_size
    push(run, str(tmp_path / "out"), dry_run=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept the token .* `hf auth login`"),
        (403, "may not write to me/winner"),
        (404, "no user or organization"),
        (500, r"refused me/winner \(500"),
    ],
)
def test_refusals_are_sentences(hub: Hub, storage: Path, status: int, words: str) -> None:
    hub.refuse = status
    with pytest.raises(UserError, match=words):
        push(open_run("won", storage), "me/winner", token=TOKEN, endpoint=hub.address)


def test_no_token_bad_name_and_no_network(
    storage: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = open_run("won", storage)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UserError, match="cannot be reached"):
        push(run, "me/winner", token=TOKEN, endpoint=nowhere)
    with pytest.raises(UserError, match="no name of a repository"):
        push(run, "a/b/c", token=TOKEN, endpoint=nowhere)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match="no Hugging Face token .* `hf auth login`"):
        push(run, "me/winner")


def test_local_folder_gets_a_plain_copy(storage: Path, tmp_path: Path) -> None:
    run = open_run("won", storage)
    target = tmp_path / "models" / "winner"
    for _ in range(2):  # an earlier push is replaced
        assert push(run, str(target)).where == str(target)
        assert sorted(path.name for path in target.iterdir()) == PUBLISHED
    assert [path.name for path in target.parent.iterdir()] == ["winner"]
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not an earlier push .it holds thesis.tex"):
        push(run, str(target))
    assert (target / "thesis.tex").read_text() == "mine"


def test_the_copy_loads_in_transformers(storage: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    push(open_run("won", storage), str(tmp_path / "winner"))
    chat = pipeline("text-generation", model=str(tmp_path / "winner"), device="cpu")
    answer = chat([{"role": "user", "content": "Hello!"}], max_new_tokens=4)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"


def test_without_a_passing_verdict_only_by_force(storage: Path, tmp_path: Path) -> None:
    run = open_run("lost", storage)
    with pytest.raises(UserError, match="no winner to publish"):
        push(run, str(tmp_path / "out"))
    with pytest.raises(UserError, match="Trial 3 .*no passing verdict.*--force"):
        push(run, str(tmp_path / "out"), trial=3)
    with pytest.raises(UserError, match="cannot be published: .* has no config.json"):
        push(run, str(tmp_path / "out"), trial=3, force=True)
    write_model(run.trial_folder(3) / "checkpoint")
    push(run, str(tmp_path / "out"), trial=3, force=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**Published without a passing verdict.**" in card
    assert "nothing was verified" in card
