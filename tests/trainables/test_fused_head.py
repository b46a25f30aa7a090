"""Models whose own log-probs TRL's head does not give are refused before anything is scored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from search_spaces.errors import UserError
from trainables.fused_head import load_scorer

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
# TRL looks for these in any configuration, so each family has its own alone.
HEADS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mamba": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "recurrent_gemma": {"lru_width": 32, "logits_soft_cap": 3.0},
}


def written(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **HEADS[family])
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.15)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", [name for name in HEADS if name != "recurrent_gemma"])
def test_heads_that_trl_knows_are_taken(family: str, tmp_path: Path) -> None:
    """Also such as cap or scale their logits."""
    load_scorer(written(tmp_path, family))
    load_scorer(tmp_path, dtype=torch.bfloat16)


def test_head_that_does_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="differ by .* nats a token, because its head does more"):
        load_scorer(written(tmp_path, "recurrent_gemma"))


def test_architecture_that_breaks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "llama")
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda self, **inputs: None)
    with pytest.raises(UserError, match="cannot be scored under the model .*another architecture"):
        load_scorer(tmp_path)
