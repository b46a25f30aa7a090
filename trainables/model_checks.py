"""What can be known of a model and its adapters before anything is computed with them."""

import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.trainer_utils import align_special_tokens

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.data.chat_template import settle
from trainables.hub import first_sentence
from trainables.models import load_tokenizer, quiet


def check_generation_config(folder: Path, spec: Spec) -> None:
    """Refuse a model whose generation settings transformers would not save with a checkpoint.

    It saves contradictory settings as they came, but refuses to once the Trainer has changed them
    to the tokenizer's special tokens, which the first checkpoint comes after.

    Raises:
        UserError: it names the file and says what is wrong with it; or the tokenizer cannot serve.
    """
    if not (folder / "generation_config.json").is_file():
        return
    remote = spec.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=remote)
    settle(tokenizer, spec.dataset.chat_template_kwargs)
    model = _without_weights(folder, spec)
    try:
        with warnings.catch_warnings(), quiet(), tempfile.TemporaryDirectory() as scratch:
            warnings.simplefilter("ignore")
            model.generation_config = GenerationConfig.from_pretrained(folder)
            align_special_tokens(model, tokenizer)
            model.generation_config.save_pretrained(scratch)
    except (ValueError, OSError) as error:
        reason = shorten(str(error), 200)
        raise UserError(
            f"generation_config.json of the model {spec.model!r} contradicts itself, and no "
            f"checkpoint could be saved ({reason}): fix it in a local copy of the model, such as "
            "by `do_sample: true`, and give the copy's folder"
        ) from error


def _without_weights(folder: Path, spec: Spec) -> PreTrainedModel:
    remote = spec.trust_remote_code
    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=remote)
    return model


def check_adapters(folder: Path, spec: Spec) -> int:
    """Refuse adapters that cannot be put on the model, or cannot be merged into it again.

    Each choice of a searched `lora.*` field is tried with the first of the others, on a model
    without weights.

    Returns:
        How many were tried.

    Raises:
        UserError: it names the key and says what is wrong.
    """
    if spec.lora is None:
        return 0
    model = _without_weights(folder, spec)
    tried = list(variants(spec))
    for fields in tried:
        _check_adapter(copy.deepcopy(model), fields, spec.model)
    return len(tried)


def variants(spec: Spec) -> Iterator[Mapping[str, Any]]:
    """Yield the `LoraConfig` fields of one configuration for each choice of a `lora.*` field."""
    first = {name: domain.values[0] for name, domain in spec.space.items()}
    yield spec.configuration(first).lora or {}
    for name, domain in spec.space.items():
        if name.startswith("lora.") and domain.kind == "choice":
            for value in domain.values[1:]:
                yield spec.configuration({**first, name: value}).lora or {}


def _check_adapter(model: PreTrainedModel, fields: Mapping[str, Any], path: str) -> None:
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = tied[0].num_embeddings
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's about fields that the trial warns of itself
            adapted = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **fields}))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        targets = fields.get("target_modules")
        way = (
            "set lora.target_modules to names of its modules, or to all-linear"
            if "target_modules" in str(error) or "target modules" in str(error).lower()
            else "change these fields"
        )
        raise UserError(
            f"lora cannot be put on the model {path!r} with target_modules {targets!r}: "
            f"{first_sentence(error).rstrip('.')}; {way}"
        ) from error
    tokens = fields.get("trainable_token_indices") or ()
    if not isinstance(tokens, Mapping) and (beyond := [t for t in tokens if not 0 <= t < rows]):
        raise UserError(
            f"lora.trainable_token_indices has {beyond[0]}, and the model {path!r} embeds {rows} "
            "tokens, from 0 on: remove it"
        )
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    # Modules that are saved whole, and tokens that are trained alone, are merged rightly.
    for name, module in adapted.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if any(part in (module, module.get_base_layer()) for part in tied):
            leaf = name.rpartition(".")[2]
            raise UserError(
                f"lora adapts {leaf!r}, and the head of the model {path!r} shares its weights "
                "(tie_word_embeddings): merged, the adapter would change both, and the model would "
                f"not be the one that was measured. Remove {leaf!r} from lora.target_modules, or "
                "train it whole with lora.modules_to_save"
            )
