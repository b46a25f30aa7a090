"""The supervised pass: its loss is on the answers and falls, or one sentence says why not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerBase

from search_spaces.errors import UserError
from search_spaces.schema import SFT
from trainables.data.preferences import load_pairs, prepare_pairs
from trainables.data.sources import load_rows
from trainables.models import load_model, load_tokenizer
from trainables.sft import answers_only, run_sft


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("quickstart")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = load_rows("quickstart", split="train[:160]").data
    prepare_pairs(
        rows, tokenizer, max_length=64, test_fraction=0.1, validation_pairs=16, seed=1, out=folder
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A GPT-2 of random weights: it gives every token about the same probability."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_the_loss_falls_and_the_model_is_saved(model: Path, data: Path, tmp_path: Path) -> None:
    found = run_sft(model, data, tmp_path, SFT(epochs=3, learning_rate=1e-2), seed=0)
    # 128 pairs, 16 to a step, three times.
    assert (found["steps"], found["micro_batch"]) == (24, 16)
    size = len(load_tokenizer(data / "tokenizer"))
    assert found["validation_loss_before"] == pytest.approx(math.log(size), abs=0.1)
    assert found["validation_loss"] < 0.7 * found["validation_loss_before"]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0]
    assert log[-1]["validation_loss"] == found["validation_loss"]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    trained = load_model(tmp_path / "model")
    assert answer_loss(trained, data) == pytest.approx(found["validation_loss"], rel=0.02)
    settled = load_tokenizer(data / "tokenizer").chat_template
    assert load_tokenizer(tmp_path / "model").chat_template == settled


def answer_loss(model: Any, data: Path) -> float:
    """Return the mean negative log-probability of the chosen answers' tokens, by hand."""
    losses = []
    for row in load_pairs(data / "validation.parquet"):
        ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
        with torch.no_grad():
            logps = model(ids).logits[0].log_softmax(-1)
        for position in range(len(row["prompt_ids"]), ids.shape[1]):
            losses.append(-logps[position - 1, ids[0, position]].item())
    return sum(losses) / len(losses)


def test_only_the_answer_has_labels() -> None:
    pairs = Dataset.from_dict(
        {"row": [0], "prompt_ids": [[5, 6]], "chosen_ids": [[7, 8, 9]], "rejected_ids": [[1]]}
    )
    assert answers_only(pairs).to_list() == [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}
    ]


def test_two_passes_with_the_same_seed_are_the_same(
    model: Path, data: Path, tmp_path: Path
) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        run_sft(model, data, tmp_path / name, SFT(epochs=1, learning_rate=1e-3), seed=seed)
        weights.append(load_model(tmp_path / name / "model").transformer.wte.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_step(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = GPT2Model.forward

    def small_memory(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(GPT2Model, "forward", small_memory)
    found = run_sft(model, data, tmp_path, SFT(epochs=1, learning_rate=1e-3), seed=0)
    assert (found["micro_batch"], found["steps"]) == (4, 8)

    monkeypatch.setattr(GPT2Model, "forward", no_memory)
    with pytest.raises(UserError, match="on one answer"):
        run_sft(model, data, tmp_path, SFT(epochs=1, learning_rate=1e-3), seed=0)


def no_memory(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_pass_that_diverges_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diverged|made the model worse") as error:
        run_sft(model, data, tmp_path, SFT(epochs=1, learning_rate=1e4), seed=0)
    assert "sft.learning_rate below 10000" in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_nan_ends_the_pass_at_its_step(data: Path, tmp_path: Path) -> None:
    spoilt = load_model("quickstart")
    spoilt.transformer.wte.weight.data.fill_(float("nan"))
    spoilt.save_pretrained(tmp_path / "spoilt")
    with pytest.raises(UserError, match="validation_loss is nan at step 0"):
        run_sft(tmp_path / "spoilt", data, tmp_path, SFT(epochs=1, learning_rate=1e-3), seed=0)


def test_a_model_that_is_too_small_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    small = GPT2Config(vocab_size=50, n_positions=64, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(small).save_pretrained(tmp_path / "vocabulary")
    with pytest.raises(UserError, match="embeds 50"):
        run_sft(tmp_path / "vocabulary", data, tmp_path, SFT(epochs=1, learning_rate=1e-3), seed=0)
    short = GPT2Config(vocab_size=1000, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(short).save_pretrained(tmp_path / "positions")
    with pytest.raises(UserError, match="has 8 positions"):
        run_sft(tmp_path / "positions", data, tmp_path, SFT(epochs=1, learning_rate=1e-3), seed=0)
