"""What several test files share: one thread, no internet, and the quickstart prepared once."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from faulty import laid_out, searched, seeded, trained
from filelock import FileLock
from hub import Hub
from searching import preftune

from results.run.listing import open_run
from results.run.run import Run
from search_spaces.spec import Spec, validate
from trainables.prepared import Prepared, Split
from trainables.quickstart.judge import judge
from trainables.quickstart.world import BASE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small lose more to threads that wait for each other than they win."""
    torch.set_num_threads(1)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub on loopback without repositories; processes find it by `hub.environment(...)`."""
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two switches of this process's client, read at its import: plain LFS, and not offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def chance() -> random.Random:
    return seeded()


@pytest.fixture(scope="session")
def undisturbed_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, int]:
    """Where searches are to be disturbed, one with one worker that was not, and its pairs.

    The first process of pytest to ask for it runs the search, the others take a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    counted = shared / "pairs.json"
    with FileLock(shared.with_suffix(".lock")):
        if not counted.exists():
            laid_out(shared)
            preftune(shared, "run", "spec.yaml", "--name", "whole")
            counted.write_text(json.dumps(searched(trained(shared))))
    place = tmp_path_factory.mktemp("disturbed") / "place"
    shutil.copytree(shared, place)
    spec = place / "runs" / "whole" / "spec.yaml"  # in which paths are absolute
    spec.write_text(spec.read_text().replace(str(shared), str(place)))
    return place, open_run(spec.parent), json.loads(counted.read_text())


@pytest.fixture(scope="session")
def small_spec() -> Spec:
    """A search of the quickstart world, small enough for a test."""
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart", "validation_pairs": 64},
            "judge": "quickstart",
            "space": {
                "learning_rate": {"loguniform": [1e-5, 1e-2]},
                "per_device_train_batch_size": {"choice": [4, 8]},
            },
            "training": {"max_length": 128},
            "evaluation": {"prompts": 16, "max_new_tokens": 24},
            "budget": {"pairs": 144},
            "objective": {"metric": "win_rate", "constraints": {"kl": {"max": 1000}}},
            "search": {"trials": 4},
            "verify": {"finalists": 1, "seeds": 1, "prompts": 32},
            "resources": {"gpu": 0},
        }
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, small_spec: Spec) -> Prepared:
    """The quickstart's pairs with the reference's log-probs and answers, made without Ray."""
    from trainables.data.preferences import prepare_pairs
    from trainables.data.sources import load_rows
    from trainables.evaluation.sampling import Sampling
    from trainables.fused_head import load_scorer
    from trainables.models import load_tokenizer
    from trainables.reference import logps_of_pairs, read_pairs, reference_answers
    from trainables.reference_files import save_logps

    root: Path = tmp_path_factory.mktemp("prepared")
    tokenizer = load_tokenizer(BASE)
    prepare_pairs(
        load_rows("quickstart").data,
        tokenizer,
        max_length=128,
        test_fraction=0.2,
        validation_pairs=64,
        seed=42,
        out=root,
    )
    model = load_scorer(BASE)
    for name in ("train", "validation", "test"):
        pairs = read_pairs(root / f"{name}.parquet")
        logps = logps_of_pairs(model, pairs, batch_size=64, pad_token_id=tokenizer.pad_token_id)
        save_logps(root / f"{name}.npz", *logps)
    reference_answers(
        BASE,
        root,
        root,
        judge,
        {"validation": 16, "test": 32},
        Sampling(max_new_tokens=24, seed=42),
    )
    return Prepared(
        model=BASE,
        tokenizer=root / "tokenizer",
        train=Split(root / "train.parquet", root / "train.npz", None),
        held_out=Split(
            root / "validation.parquet", root / "validation.npz", root / "validation.jsonl"
        ),
    )
