"""A whole search of LoRA adapters through real Ray, to a merged winner."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from clean import python
from hub import Hub
from peft import PeftModel
from publishing import ASKED, READ, TOKEN, draw, pushed
from searching import preftune
from transformers import PreTrainedModel

from results.run.listing import open_run
from results.run.run import Run
from trainables.fused_head import load_scorer
from trainables.models import load_model
from trainables.quickstart.world import BASE
from trainables.reference import logps_of_pairs, read_pairs
from trainables.reference_files import load_logps

SPEC = """
model: quickstart
dataset: {path: quickstart, validation_pairs: 64}
judge: quickstart
space:
  learning_rate: {loguniform: [3.0e-3, 5.0e-3]}
  lora.r: {choice: [4, 8]}
lora: {lora_alpha: 16, target_modules: [c_attn, c_proj, c_fc], fan_in_fan_out: true}
training: {max_length: 128, beta: 1.0, loss_type: [sigmoid, sft]}
evaluation: {prompts: 32, max_new_tokens: 24}
budget: {pairs: 288}
search: {trials: 2, seed: 7, scheduler: none}
verify: {finalists: 1, seeds: 2, prompts: 128}
resources: {gpu: 0}
"""

pytestmark = pytest.mark.searches


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("lora")
    (place / "lora.yaml").write_text(SPEC)
    preftune(place, "run", "lora.yaml", "--name", "lora")
    return open_run(place / "runs" / "lora")


def log_ratios(run: Run, model: PreTrainedModel) -> np.ndarray:
    """Return log policy - log reference of the test split's answers, nats, `(2, pairs)`."""
    prepared, names = run.storage / "prepared", run.info["prepared"]
    pairs = read_pairs(prepared / names["data"] / "test.parquet")
    logps = logps_of_pairs(model, pairs, batch_size=64, pad_token_id=0)
    return np.array(logps) - np.array(load_logps(prepared / names["reference"] / "test.npz"))


def test_best_is_the_adapter_merged_and_measures_as_the_verdict_says(searched: Run) -> None:
    verdict = searched.verdict()
    assert verdict is not None and verdict["outcome"] == "winner", verdict
    assert searched.best is not None
    assert not list(searched.best.glob("adapter*"))
    best = load_scorer(searched.best)
    names = {name for name, _ in load_model(BASE).named_parameters()}
    assert {name for name, _ in best.named_parameters()} == names

    checkpoint = searched.folder / searched.trial(verdict["winner"]).attrs["checkpoint"]
    adapted = PeftModel.from_pretrained(load_scorer(BASE), str(checkpoint))
    merged = log_ratios(searched, best)
    np.testing.assert_allclose(merged, log_ratios(searched, adapted), atol=1e-3)
    chosen, rejected = merged
    pair_loss = np.log1p(np.exp(-(chosen - rejected))).mean()
    assert verdict["finalists"][0]["test"]["pair_loss"] == pytest.approx(pair_loss, abs=1e-4)


def test_checkpoints_are_adapters_not_models(searched: Run) -> None:
    """The base is stored once; a trial keeps a few matrices of rank r."""
    kept = list((searched.folder / "tune").rglob("*.safetensors"))
    assert [path.name for path in kept] == ["adapter_model.safetensors"]
    assert kept[0].stat().st_size < (BASE / "model.safetensors").stat().st_size / 4


def test_card_and_trl_config_name_the_lora_fields(searched: Run) -> None:
    verdict = searched.verdict()
    assert verdict is not None and searched.best is not None
    rank = verdict["params"]["lora.r"]
    card = (searched.best / "README.md").read_text()
    assert f"| `lora.r` | `{rank}` |" in card and "| `lora.lora_alpha` | `16` |" in card
    text = (searched.best / "dpo.yaml").read_text()
    fields = yaml.safe_load(text)
    assert fields["use_peft"] is True and fields["lora_r"] == rank
    assert fields["lora_alpha"] == 16
    assert fields["lora_target_modules"] == ["c_attn", "c_proj", "c_fc"]
    assert fields["learning_rate"] == verdict["params"]["learning_rate"]
    assert "TRL's command has no field for: lora.fan_in_fan_out" in text


def test_winner_is_pushed_whole(searched: Run) -> None:
    place = searched.storage.parent
    preftune(place, "push", "lora", "./published")
    names = {path.name for path in (place / "published").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "dpo.yaml"} <= names
    assert not any("adapter" in name for name in names)
    assert load_model(place / "published").num_parameters() == load_model(BASE).num_parameters()


def test_adapter_alone_is_pushed_merged_or_not_at_all(searched: Run) -> None:
    winner = (searched.verdict() or {})["winner"]
    place = searched.storage.parent
    said = preftune(place, "push", "lora", "./alone", "--adapter", code=1)
    assert "quickstart is on this machine alone" in said and not (place / "alone").exists()
    whole = (searched.folder / "best" / "model.safetensors").read_bytes()
    (searched.folder / "best").rename(place / "away")
    preftune(place, "push", "lora", "./other")
    assert (place / "other" / "model.safetensors").read_bytes() == whole
    checkpoint = searched.folder / searched.trial(winner).attrs["checkpoint"]
    checkpoint.rename(place / "kept")
    said = preftune(place, "push", "lora", "./third", code=1)
    (place / "kept").rename(checkpoint)
    (place / "away").rename(searched.folder / "best")
    assert f"Trial {winner}" in said and "Weights are kept of the best few trials only" in said


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_pushed_and_downloaded_it_says_what_best_says(
    searched: Run, hub: Hub, online: None, tmp_path: Path
) -> None:
    """A whole search, its winner on the Hub, and a stranger's process that downloads it."""
    draw(searched.folder)
    hub.add_token(TOKEN, "me", "write")
    pushed(hub, searched, "me/lora")
    asked = json.dumps(ASKED)
    here = python(hub, tmp_path / "here", READ, str(searched.folder / "best"), asked)
    assert python(hub, tmp_path / "there", READ, "me/lora", asked) == here
