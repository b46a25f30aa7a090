"""What is refused of a model and its adapters before anything is computed, and that it must be."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from run_folder import write_model
from transformers import AutoConfig, AutoModelForCausalLM

from search_spaces.errors import UserError
from search_spaces.spec import Spec, validate
from trainables.model_checks import check_adapters, check_generation_config
from trainables.models import load_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def written(folder: Path, family: str = "qwen2", tied: bool = True) -> Path:
    config = AutoConfig.for_model(family, **SIZES, tie_word_embeddings=tied)
    config.save_pretrained(folder)
    return folder


def spec_of(lora: dict[str, Any] | None, **space: Any) -> Spec:
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "lora": lora,
            "space": {"learning_rate": {"loguniform": [1e-5, 1e-3]}, **space},
        }
    )


TIED = {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}
WHOLE = {"r": 2, "modules_to_save": ["embed_tokens"]}
TOKENS = {"r": 2, "trainable_token_indices": [1, 2]}


@pytest.mark.parametrize(("lora", "exact"), [(TIED, False), (WHOLE, True), (TOKENS, True)])
def test_what_is_refused_is_what_a_merge_changes(
    lora: dict[str, Any], exact: bool, tmp_path: Path
) -> None:
    """The model before and after the merge, saved and loaded as it is published."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(written(tmp_path / "model"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of tied weights
        adapted = get_peft_model(
            AutoModelForCausalLM.from_config(config), LoraConfig(task_type="CAUSAL_LM", **lora)
        ).eval()
        with torch.no_grad():
            for weights in adapted.parameters():
                if weights.requires_grad:
                    weights.add_(torch.randn_like(weights) * 0.3)
        ids = torch.tensor([[1, 2, 3, 4]])
        before = adapted(ids).logits
        adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits
    assert bool(torch.allclose(before, after, atol=1e-4)) is exact
    if exact:
        assert check_adapters(tmp_path / "model", spec_of(lora)) == 1
    else:
        with pytest.raises(UserError, match="adapts 'embed_tokens', .*tie_word_embeddings"):
            check_adapters(tmp_path / "model", spec_of(lora))
        untied = written(tmp_path / "untied", tied=False)
        assert check_adapters(untied, spec_of(lora)) == 1


def test_each_choice_of_an_adapter_is_tried(tmp_path: Path) -> None:
    targets = {"lora.target_modules": {"choice": ["all-linear", ["q_proj"], ["nothing"]]}}
    model = written(tmp_path)
    with pytest.raises(UserError, match=r"target_modules \['nothing'\]: .*set lora.target_modules"):
        check_adapters(model, spec_of({"r": 2}, **targets))
    targets["lora.target_modules"]["choice"].pop()
    ranks = {"lora.r": {"choice": [2, 4, 8]}, "lora.lora_alpha": {"int": [4, 16]}}
    assert check_adapters(model, spec_of({}, **targets, **ranks)) == 4
    assert check_adapters(model, spec_of(None)) == 0


def test_family_without_usual_targets_is_told_to_name_some(tmp_path: Path) -> None:
    model = written(tmp_path, "seed_oss", tied=False)
    with pytest.raises(UserError, match="lora cannot be put on .*set lora.target_modules to names"):
        check_adapters(model, spec_of({"r": 2}))
    assert check_adapters(model, spec_of({"r": 2, "target_modules": ["q_proj"]})) == 1


def test_tokens_beyond_the_vocabulary_are_named(tmp_path: Path) -> None:
    lora = {"r": 2, "trainable_token_indices": [1, 64]}
    with pytest.raises(UserError, match="trainable_token_indices has 64, .* embeds 64 tokens"):
        check_adapters(written(tmp_path), spec_of(lora))


@pytest.mark.filterwarnings("ignore")
def test_generation_settings_are_refused_where_a_checkpoint_could_not_be_saved(
    tmp_path: Path,
) -> None:
    """What contradicts itself is saved as it came, until the Trainer has set special tokens."""
    from transformers.trainer_utils import align_special_tokens

    folder = write_model(tmp_path / "mine")
    tokenizer = load_tokenizer(folder)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    path = folder / "generation_config.json"
    spec = spec_of(None)
    for number, (settings, saved) in enumerate(
        [
            ({"do_sample": True, "temperature": 0.6}, True),
            ({"do_sample": False, "temperature": 0.6}, False),
            ({"do_sample": False, "temperature": 0.6, **ends}, True),
        ]
    ):
        path.write_text(json.dumps(settings))
        model = AutoModelForCausalLM.from_pretrained(folder)
        align_special_tokens(model, tokenizer)
        if saved:
            model.save_pretrained(tmp_path / f"out{number}")
            check_generation_config(folder, spec)
        else:
            with pytest.raises(ValueError, match="invalid"):
                model.save_pretrained(tmp_path / f"out{number}")
            with pytest.raises(UserError, match="generation_config.json of .*temperature"):
                check_generation_config(folder, spec)
    path.unlink()
    check_generation_config(folder, spec)
