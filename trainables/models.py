"""Load a causal language model or its tokenizer, or say in one sentence why it cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from search_spaces.errors import UserError
from trainables.hub import first_sentence, snapshot


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' reports to itself: what they say is raised here as an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_model(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model onto the CPU, from safetensors only.

    Args:
        path: a local folder, a Hub id or `quickstart`.
        revision: branch, tag or commit of a Hub id.
        dtype: of the weights, whatever they were saved in.
        trust_remote_code: run Python files of the repository.

    Raises:
        UserError: if the model is missing, gated, unreachable, damaged or no causal language model.
    """
    folder, _ = snapshot(path, revision, trust_remote_code=trust_remote_code)
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise UserError(
            f"The model {str(path)!r} is a LoRA adapter without its base model: merge it first, "
            "and give the merged folder."
            if adapter
            else f"The model {str(path)!r} has no config.json: give a folder that "
            "`save_pretrained` wrote."
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"The model {str(path)!r} has no .safetensors weights, and no other format is loaded "
            "because a pickle can run code: convert it with `save_pretrained`, or choose another "
            "revision."
        )
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise UserError(
            f"The weights of the model {str(path)!r} are damaged ({error}): fetch them again."
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise UserError(
            f"The model {str(path)!r} cannot be loaded as a causal language model: "
            f"{first_sentence(error)}"
        ) from error
    if info["missing_keys"]:
        # transformers would fill these in at random, and the search would tune noise.
        name = min(info["missing_keys"])
        raise UserError(
            f"The model {str(path)!r} has no weights for {len(info['missing_keys'])} parameters of "
            f"a causal language model (such as {name}): give a model that was saved with its "
            "language-model head."
        )
    model.eval()
    return model


def load_tokenizer(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    folder, _ = snapshot(path, revision, trust_remote_code=trust_remote_code)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare `Exception` on a damaged file
        raise UserError(
            f"The tokenizer of {str(path)!r} cannot be loaded: {first_sentence(error)}"
        ) from error
    # A config.json without tokenizer files yields an empty tokenizer instead of an error.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(
            f"The model {str(path)!r} has no tokenizer files: copy tokenizer.json and "
            "tokenizer_config.json of its base model beside it."
        )
    return tokenizer


def check_fits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, path: str | Path
) -> None:
    """Refuse token ids or positions that the model has no embedding for.

    Raises:
        UserError: if the tokenizer has more tokens, or `max_length` is longer, than the model.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {str(path)!r} embeds {rows}: "
            "give the tokenizer that the model was trained with."
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise UserError(
            f"`max_length` is {max_length} and the model {str(path)!r} has {positions} positions: "
            f"set training.max_length to {positions} or less."
        )
