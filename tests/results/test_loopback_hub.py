"""The Hub on loopback against its clients: what they do on the Hub, they can do here."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from searching import HANG

from trainables.quickstart.world import BASE

# huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WRITER, READER, OTHER = "hf_writer", "hf_reader", "hf_other"


@pytest.fixture
def api(hub: Hub, online: None) -> HfApi:
    """A client whose token may write for `me` and for `lab`."""
    hub.add_token(WRITER, "me", "write", "lab")
    hub.add_token(READER, "me", "read")
    hub.add_token(OTHER, "somebody")
    return HfApi(endpoint=hub.endpoint, token=WRITER)


def folder_with(place: Path, **files: bytes) -> Path:
    place.mkdir()
    for name, content in files.items():
        (place / name.replace("__", ".")).write_bytes(content)
    return place


WEIGHTS = bytes(range(256)) * 4000  # a megabyte


@pytest.fixture
def model(api: HfApi, tmp_path: Path) -> Path:
    """A folder, published as me/model."""
    folder = folder_with(tmp_path / "model", config__json=b"{}", model__safetensors=WEIGHTS)
    api.create_repo("model")
    api.upload_folder(repo_id="me/model", folder_path=folder, commit_message="Weights")
    return folder


def test_what_is_uploaded_comes_back(hub: Hub, api: HfApi, model: Path, tmp_path: Path) -> None:
    info = api.model_info("me/model", files_metadata=True)
    assert [(file.rfilename, file.lfs is not None) for file in info.siblings or []] == [
        (".gitattributes", False),
        ("config.json", False),
        ("model.safetensors", True),
    ]
    assert info.private is False and info.gated is False
    got = snapshot_download(
        "me/model", endpoint=hub.endpoint, cache_dir=tmp_path / "cache", token=READER
    )
    assert Path(got).name == info.sha == hub.repository("me/model").resolve("main")
    for file in model.iterdir():
        assert (Path(got) / file.name).read_bytes() == file.read_bytes()
    assert [commit.title for commit in api.list_repo_commits("me/model")] == [
        "Weights",
        "initial commit",
    ]


def test_a_commit_adds_deletes_and_minds_its_parent(hub: Hub, api: HfApi, model: Path) -> None:
    before = api.model_info("me/model").sha
    operations = [
        CommitOperationAdd("notes/a.txt", b"a"),
        CommitOperationAdd("notes/b.txt", b"b"),
        CommitOperationDelete("config.json"),
    ]
    commit = api.create_commit("me/model", operations, commit_message="x", parent_commit=before)
    assert commit.oid == api.model_info("me/model").sha != before
    tree = {entry.path for entry in api.list_repo_tree("me/model", recursive=True)}
    assert tree == {".gitattributes", "model.safetensors", "notes", "notes/a.txt", "notes/b.txt"}
    hub.page_size = 2
    assert {entry.path for entry in api.list_repo_tree("me/model", recursive=True)} == tree
    assert [e.path for e in api.get_paths_info("me/model", ["notes", "gone"])] == ["notes"]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.create_commit(
            "me/model",
            [CommitOperationAdd("late.txt", b"c")],
            commit_message="y",
            parent_commit=before,
        )
    api.delete_folder("notes", "me/model")
    assert api.list_repo_files("me/model") == [".gitattributes", "model.safetensors"]
    assert api.list_repo_files("me/model", revision=before)[1] == "config.json"


def test_branches_and_tags(api: HfApi, model: Path) -> None:
    first = api.model_info("me/model").sha
    api.create_tag("me/model", tag="v1")
    api.create_branch("me/model", branch="next")
    api.upload_file(
        path_or_fileobj=b"[]", path_in_repo="x.json", repo_id="me/model", revision="next"
    )
    refs = api.list_repo_refs("me/model")
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert {branch.name for branch in refs.branches} == {"main", "next"}
    assert api.file_exists("me/model", "x.json", revision="next")
    assert not api.file_exists("me/model", "x.json", revision="v1")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag("me/model", tag="v1")
    assert error.value.response.status_code == 409
    api.create_tag("me/model", tag="v1", exist_ok=True)
    api.delete_tag("me/model", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/model", revision="v1")


def test_a_large_file_goes_in_parts_and_only_once(hub: Hub, api: HfApi, model: Path) -> None:
    hub.part_size = 400_000
    content = WEIGHTS[::-1]
    for name in ("a.bin", "b.bin"):
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="me/model")
    parts = hub.asked("PUT", hashlib.sha256(content).hexdigest())
    assert [request.path.rsplit("/", 1)[1] for request in parts] == ["1", "2", "3"]
    assert hub.repository("me/model").read("b.bin") == content


def test_a_broken_download_goes_on_where_it_broke(
    hub: Hub, api: HfApi, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is not a whole piece is fetched again; the client's pieces are 10 MB.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    fault = hub.fail("GET", "^/cdn/", cut_after=300_000, times=1)
    got = hf_hub_download(
        "me/model", "model.safetensors", endpoint=hub.endpoint, cache_dir=tmp_path / "cache"
    )
    assert Path(got).read_bytes() == WEIGHTS and fault.hits == 1
    asked = hub.asked("GET", "^/cdn/")
    assert [request.headers.get("range") for request in asked] == [None, "bytes=300000-"]
    assert [request.status for request in asked] == [None, 206]


def test_the_token_stays_on_the_hub(hub: Hub, api: HfApi, model: Path, tmp_path: Path) -> None:
    snapshot_download("me/model", endpoint=hub.endpoint, cache_dir=tmp_path / "c", token=READER)
    assert [request.token for request in hub.asked("GET", "^/cdn/")] == [None]
    assert all(request.token == READER for request in hub.asked("HEAD", "/resolve/"))


def test_who_may_read_and_write(hub: Hub, api: HfApi, model: Path, tmp_path: Path) -> None:
    assert api.whoami()["name"] == "me" and api.whoami()["orgs"][0]["name"] == "lab"
    with pytest.raises(HfHubHTTPError, match="write token"):
        HfApi(endpoint=hub.endpoint, token=READER).upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model"
        )
    with pytest.raises(HfHubHTTPError, match="rights to write"):
        HfApi(endpoint=hub.endpoint, token=OTHER).create_repo("lab/theirs")
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    api.update_repo_settings("me/model", private=True)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/other")
    with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
        nobody.model_info("me/model")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.endpoint, token=OTHER).model_info("me/model")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=hub.endpoint, token="hf_unknown").model_info("me/model")
    api.update_repo_settings("me/model", private=False, gated="manual")
    assert nobody.model_info("me/model").gated == "manual"
    for token in (False, OTHER):
        with pytest.raises(GatedRepoError):
            HfApi(endpoint=hub.endpoint, token=token).auth_check("me/model")
        with pytest.raises(GatedRepoError):
            hf_hub_download(
                "me/model", "config.json", endpoint=hub.endpoint, cache_dir=tmp_path, token=token
            )
    hub.repository("me/model").change(granted=["somebody"])
    HfApi(endpoint=hub.endpoint, token=OTHER).auth_check("me/model")


def test_repositories_are_made_moved_and_deleted(hub: Hub, api: HfApi, model: Path) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("me/model")
    assert error.value.response.status_code == 409
    assert api.create_repo("me/model", exist_ok=True).repo_id == "me/model"
    url = api.create_repo("lab/rows", repo_type="dataset", private=True)
    assert url.repo_id == "lab/rows" and api.dataset_info("lab/rows").private is True
    api.move_repo("me/model", "lab/model")
    assert api.model_info("me/model").id == "lab/model"
    assert api.hf_hub_download("me/model", "config.json", local_dir=hub.root / "got")
    api.delete_repo("lab/model")
    assert hub.repositories() == [] and hub.repositories("datasets") == ["lab/rows"]


def test_cards_are_checked(api: HfApi, model: Path) -> None:
    card = ModelCard("---\nlicense: mit\nbase_model: openai-community/gpt2\n---\n# A model\n")
    api.upload_file(
        path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="me/model"
    )
    data = api.model_info("me/model").card_data
    assert data is not None and data.to_dict()["base_model"] == "openai-community/gpt2"
    for wrong, words in [
        ("license: my own", "license"),
        ("base_model: C:\\models\\gpt2", "base_model"),
        ("- a list", "must be a mapping"),
        ("a: [", "YAML Metadata Error"),
        ("model-index: [{name: x, results: [{task: {}}]}]", "task.type"),
    ]:
        with pytest.raises(ValueError, match=words):
            api.upload_file(
                path_or_fileobj=f"---\n{wrong}\n---\n".encode(),
                path_in_repo="README.md",
                repo_id="me/model",
            )
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.upload_file(path_or_fileobj=b"# No", path_in_repo="README.md", repo_id="me/model")


def test_it_fails_as_told(hub: Hub, api: HfApi, model: Path, tmp_path: Path) -> None:
    hub.fail("POST", "/preupload/", 429, headers={"Retry-After": "0"}, times=1)
    hub.fail("PUT", "^/lfs/", cut_after=100_000, times=1)
    new = WEIGHTS[1:]
    api.upload_file(path_or_fileobj=new, path_in_repo="new.bin", repo_id="me/model")
    assert hub.repository("me/model").read("new.bin") == new
    assert [r.status for r in hub.asked("POST", "/preupload/")][-2:] == [429, 200]
    assert [r.status for r in hub.asked("PUT", "^/lfs/")][-2:] == [None, 200]
    before = hub.repository("me/model").resolve("main")
    for status in (403, 409, 503):
        hub.fail("POST", "/commit/main", status, times=1, message="not today")
        with pytest.raises(HfHubHTTPError, match="not today") as error:
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/model")
        assert error.value.response.status_code == status
    assert hub.repository("me/model").resolve("main") == before
    hub.fail("*", "config.json", 401, headers={"X-Error-Code": "GatedRepo"})
    for _ in range(2):
        with pytest.raises(GatedRepoError):
            api.hf_hub_download("me/model", "config.json", cache_dir=tmp_path)
    hub.mend()
    assert api.hf_hub_download("me/model", "config.json", cache_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("me/model", "gone.json", cache_dir=tmp_path)


def test_two_commits_at_once_lose_neither(hub: Hub, api: HfApi, model: Path) -> None:
    def upload(name: str) -> None:
        api.upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id="me/model")

    threads = [threading.Thread(target=upload, args=(f"{i}.txt",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"{i}.txt" for i in range(4)} <= set(api.list_repo_files("me/model"))
    assert len(api.list_repo_commits("me/model")) == 6


CLIENTS = """
import json, sys
import torch
from datasets import Dataset, load_dataset, load_dataset_builder
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("lab/base", revision="v1")
model = AutoModelForCausalLM.from_pretrained("lab/base", revision="v1")
rows = load_dataset("lab/pairs", split="train")
Dataset.from_dict({"text": ["a", "b"]}).push_to_hub("me/texts", private=True)
texts = load_dataset("me/texts")
model.push_to_hub("me/copy")
tokenizer.push_to_hub("me/copy")
copy = AutoModelForCausalLM.from_pretrained("me/copy")
same = all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
print(json.dumps([tokenizer("Hello").input_ids, rows.to_list(), texts["train"].to_list(), same]))
"""


def test_transformers_and_datasets(hub: Hub, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    hub.add_token(WRITER, "me", "write", "lab")
    base = hub.create("lab/base", private=True)
    base.change(tags={"v1": base.commit_folder(BASE)})
    base.commit({"config.json": b"{}"})  # main has moved on, and could not be loaded
    rows = [{"prompt": "a", "chosen": "b"}, {"prompt": "c", "chosen": "d"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    hub.create("lab/pairs", "datasets").commit({"data/train-00000-of-00001.parquet": content})
    done = subprocess.run(
        [sys.executable, "-c", CLIENTS],
        env={**os.environ, **hub.environment(tmp_path / "home", WRITER)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    expected = AutoTokenizer.from_pretrained(BASE)("Hello").input_ids
    assert found == [expected, rows, [{"text": "a"}, {"text": "b"}], True]
    assert hub.repository("me/texts", "datasets").state["private"] is True
    assert not [request for request in hub.requests if request.status == 500]
