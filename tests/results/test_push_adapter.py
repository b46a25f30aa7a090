"""LoRA trials: merged when they are pushed, or the adapter alone with a base that others have."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from clean import python
from hub import Hub, Repository
from huggingface_hub import ModelCard
from publishing import TOKEN, draw, published, pushed
from run_folder import write_run
from transformers import AutoModelForCausalLM

from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError

pytestmark = [
    # huggingface_hub's own LFS upload passes its HTTP client a parameter by its older name.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("online"),
]
REVISION = "v1"
READ = """
import json, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("me/adapter")
with torch.inference_mode():
    print(json.dumps(model(torch.arange(1, 9)[None]).logits[0, -1].tolist()))
"""


def edit(run: Run, name: str, **values: Any) -> Run:
    path = run.folder / name
    read, write = (
        (json.loads, json.dumps) if name.endswith("json") else (yaml.safe_load, yaml.safe_dump)
    )
    path.write_text(write({**read(path.read_text()), **values}))
    draw(run.folder)
    return open_run(run.folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Trials 0, the winner, and 3 kept adapters of a Hub model."""
    from peft import LoraConfig, get_peft_model

    folder = write_run(tmp_path / "runs", "lora")
    base = folder.parent / "prepared" / "base"
    for number in (0, 3):
        torch.manual_seed(number)
        fields = {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}
        config = LoraConfig(**fields, init_lora_weights=False)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        checkpoint = folder / "trials" / str(number) / "checkpoint"
        adapted.save_pretrained(checkpoint)
        (checkpoint / "optimizer.pt").write_text("must never leave")
        assert str(base) in (checkpoint / "adapter_config.json").read_text()
    run = edit(open_run(folder), "spec.yaml", model="lab/base", lora={"r": 4})
    model = {"path": "lab/base", "revision": REVISION, "folder": str(base)}
    return edit(run, "run.json", model=model, revisions={"model": REVISION})


@pytest.fixture
def me(hub: Hub, run: Run) -> Hub:
    """The Hub with the base that the adapters belong to."""
    hub.add_token(TOKEN, "me", "write", "lab")
    base = hub.create("lab/base")
    commit = base.commit_folder(run.storage / "prepared" / "base")
    base.change(tags={REVISION: commit})
    base.commit({"config.json": b"{}"})  # main has moved on, and could not be loaded
    return hub


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(1, 9)[None]).logits[0, -1]
    return found


def written(repository: Repository, place: Path) -> Path:
    place.mkdir()
    for name in published(repository):
        (place / name).write_bytes(repository.read(name))
    return place


def test_another_trial_is_merged_when_it_is_pushed(me: Hub, run: Run, tmp_path: Path) -> None:
    pushed(me, run, trial=3)
    repository = me.repository("me/winner")
    assert "model.safetensors" in published(repository)
    assert not [name for name in published(repository) if "adapter" in name]
    whole = logits(written(repository, tmp_path / "got"))
    adapted = logits(run.storage / "prepared" / "base", run.trial_folder(3) / "checkpoint")
    torch.testing.assert_close(whole, adapted, atol=1e-5, rtol=1e-5)
    head = repository.resolve("main")
    assert repository.state["tags"] == {"lora-trial-3": head}
    assert pushed(me, run, trial=3) == head  # merging gives the same bytes again


def test_the_adapter_alone_loads_with_its_base_from_the_hub(
    me: Hub, run: Run, tmp_path: Path
) -> None:
    pushed(me, run, "me/adapter")  # the winner, merged
    pushed(me, run, "me/adapter", adapter=True)
    repository = me.repository("me/adapter")
    assert published(repository) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "dpo.yaml",
        "front.png",
        "spec.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads(repository.read("adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("lab/base", REVISION)
    assert str(run.storage) not in json.dumps(config)
    card = ModelCard(repository.read("README.md").decode())
    assert card.data.library_name == "peft" and card.data.base_model == "lab/base"
    assert card.data["base_model_relation"] == "adapter" and "LoRA adapter" in card.text
    assert set(repository.state["tags"]) == {"lora", "lora-adapter"}
    there = torch.tensor(json.loads(python(me, tmp_path / "there", READ)))
    here = logits(run.storage / "prepared" / "base", run.trial_folder(0) / "checkpoint")
    torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-5)


def test_an_adapter_without_a_public_base_is_refused(me: Hub, run: Run) -> None:
    words = "is on this machine alone: push the merged model, without --adapter"
    with_sft = edit(run, "spec.yaml", sft={"epochs": 1})
    with pytest.raises(UserError, match=f"lab/base after a supervised pass {words}"):
        pushed(me, with_sft, adapter=True)
    local = edit(run, "spec.yaml", sft=None, model="/home/eve/base")
    local = edit(local, "run.json", model={"path": "/home/eve/base"})
    with pytest.raises(UserError, match=f"and base {words}") as error:
        pushed(me, local, adapter=True)
    assert "eve" not in str(error.value) and me.repositories() == ["lab/base"]


def test_a_base_that_is_gone_is_named(me: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    gone = edit(run, "run.json", model={"path": "lab/gone", "revision": None})
    with pytest.raises(UserError, match="cannot be merged into its base model lab/gone"):
        pushed(me, gone, trial=3)
    (run.trial_folder(3) / "checkpoint" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="adapter_model.safetensors is damaged"):
        pushed(me, run, trial=3)
