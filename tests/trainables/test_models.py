"""Loading models: whatever a folder lacks is one sentence, and nothing is filled in at random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    Response,
    RevisionNotFoundError,
)
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config

from search_spaces.errors import UserError
from trainables.hub import hub_errors, snapshot
from trainables.models import load_model, load_tokenizer

SMALL = GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=1)


def complete(folder: Path) -> None:
    GPT2LMHeadModel(SMALL).save_pretrained(folder)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def no_weights(folder: Path) -> None:
    SMALL.save_pretrained(folder)


def pickled(folder: Path) -> None:
    SMALL.save_pretrained(folder)
    torch.save(GPT2LMHeadModel(SMALL).state_dict(), folder / "pytorch_model.bin")


def damaged_weights(folder: Path) -> None:
    complete(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def damaged_config(folder: Path) -> None:
    complete(folder)
    (folder / "config.json").write_text("{")


def unknown_type(folder: Path) -> None:
    complete(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "martian"}))


def encoder_decoder(folder: Path) -> None:
    complete(folder)
    T5Config().save_pretrained(folder)


def other_shape(folder: Path) -> None:
    complete(folder)
    GPT2Config(**{**SMALL.to_dict(), "n_embd": 16}).save_pretrained(folder)


def without_head(folder: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: None, "no config.json"),
        (adapter, "LoRA adapter"),
        (no_weights, "no .safetensors"),
        (pickled, "no .safetensors"),
        (damaged_weights, "are damaged"),
        (damaged_config, "not a valid JSON file"),
        (unknown_type, "`martian`"),
        (encoder_decoder, "T5Config"),
        (other_shape, "cannot be loaded as a causal language model"),
        (without_head, "no weights for 6 parameters"),
    ],
)
def test_a_folder_that_is_no_causal_model_is_refused(
    write: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_loads_as_it_was_saved_and_without_its_prefix_too(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(SMALL)
    model.save_pretrained(tmp_path / "whole")
    model.transformer.save_pretrained(tmp_path / "body")  # as openai-community/gpt2 is stored
    for name in ("whole", "body"):
        loaded = load_model(tmp_path / name)
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
        assert not loaded.training
    assert load_model(tmp_path / "whole", dtype=torch.bfloat16).dtype is torch.bfloat16


def test_the_quickstart_is_a_folder_of_the_package() -> None:
    folder, commit = snapshot("quickstart")
    assert (folder / "model.safetensors").is_file()
    assert commit is None


@pytest.mark.parametrize(
    ("path", "revision", "words"),
    [
        ("./no/such/folder", None, "no model folder './no/such/folder'"),
        ("a b", None, "no model folder 'a b'"),
        (Path("nowhere"), None, "no model folder 'nowhere'"),
        ("preftune-tests/no-such-model", None, "cannot be reached"),
        ("quickstart", "v1", "`revision` 'v1'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(
    path: str | Path, revision: str | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        snapshot(path, revision)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError, "is gated: accept its terms on https://huggingface.co/datasets/org/name"),
        (RepositoryNotFoundError, "There is no data set 'org/name'"),
        (RevisionNotFoundError, "no revision 'v1'"),
        (HfHubHTTPError, r"refused the data set 'org/name' \(403\)"),
    ],
)
def test_what_the_hub_answers_becomes_a_sentence(error: Any, words: str) -> None:
    response = Response(403)
    response.request = object()  # the client's errors read it, and do nothing with it here
    with pytest.raises(UserError, match=words), hub_errors("dataset", "org/name", "v1"):
        raise error("...", response=response)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    complete(tmp_path)
    with pytest.raises(UserError, match="no tokenizer files"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
