"""A judge that is a reward model: a sequence classifier with one label."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from search_spaces.errors import UserError
from trainables.devices import autocast_dtype
from trainables.evaluation.batch_size import BatchSize
from trainables.hub import first_sentence, snapshot
from trainables.judges import Judge
from trainables.models import load_tokenizer, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
BATCH = 16  # conversations that a reward model reads at once, to begin with


@lru_cache(maxsize=1)  # workers are reused: the next trial of the search has the same judge
def reward_model(path: str, device: torch.device, revision: str | None) -> Judge:
    """Return a judge that scores with a reward model from the Hub or a folder.

    Raises:
        UserError: it cannot be loaded, has no trained head with one label, or no chat template.
    """
    model, tokenizer = _load(path, device, revision)
    batch = BatchSize(BATCH)

    def judge(prompts: list[str], answers: list[str]) -> list[float]:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
                tokenize=False,
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        try:
            model.to(device)
            return batch.run(partial(_scores, model, tokenizer, texts))
        finally:
            model.to("cpu")  # between rungs it waits in host memory, and training has the device

    return judge


def _load(
    path: str, device: torch.device, revision: str | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForSequenceClassification

    folder, _ = snapshot(path, revision)
    tokenizer = load_tokenizer(folder)
    try:
        with quiet():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                use_safetensors=True,  # a pickle can run code
                dtype=autocast_dtype("auto", device) or torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The judge `{path}` cannot be loaded as a reward model: {first_sentence(error)} Set "
            "`judge` to a Hub id or a folder with safetensors, a .py file, or `quickstart`."
        ) from error
    if model.config.num_labels != 1:
        raise UserError(
            f"The judge `{path}` is not a reward model: its head has {model.config.num_labels} "
            "labels and must have one. Choose another model."
        )
    if info["missing_keys"]:
        # transformers would draw the missing weights at random, and so the scores.
        raise UserError(
            f"The judge `{path}` is not a reward model: its weights lack "
            f"{', '.join(sorted(info['missing_keys']))}. Choose another model."
        )
    if not tokenizer.chat_template:
        raise UserError(f"The judge `{path}` has no chat template. Choose a model that has one.")
    return model.eval(), tokenizer


def _scores(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: list[str], size: int
) -> list[float]:
    """Return the score of each conversation, `size` of them at a time."""
    scores = [0.0] * len(texts)
    # The template has written the special tokens.
    ids = _cut(
        tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], model, tokenizer
    )
    rows = sorted(range(len(texts)), key=lambda row: len(ids[row]), reverse=True)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        with torch.no_grad(), _padded(model, [ids[row] for row in batch]) as inputs:
            logits = model(**inputs).logits[:, 0].float().tolist()
        for row, score in zip(batch, logits, strict=True):
            scores[row] = score
    return scores


def _cut(
    sequences: list[list[int]], model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Return sequences of token ids as long as the model takes, cut where the tokenizer cuts.

    How many were cut goes to the log.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, positions if positions and positions > 0 else None]
    longest = min(limit for limit in limits if limit is not None)
    long = sum(len(ids) > longest for ids in sequences)
    if not long:
        return sequences
    log.warning(
        "%d of %d conversations have more than the %d tokens that the judge reads, and were cut",
        long,
        len(sequences),
        longest,
    )
    from_end = tokenizer.truncation_side == "left"
    return [ids[-longest:] if from_end else ids[:longest] for ids in sequences]


@contextmanager
def _padded(
    model: "PreTrainedModel", sequences: list[list[int]]
) -> Iterator[dict[str, torch.Tensor]]:
    """Give sequences of token ids to a model as one batch, padded on the right.

    A classifier reads its score at the last token that is not `pad_token_id`. A model without one,
    given sequences one by one, reads it at their last: so it is given a token that none of them
    has. EOS, with which others pad, would hide the very token at which the score was trained.
    """
    configs = (model.config, model.config.get_text_config())
    own = configs[1].pad_token_id
    used = {token for ids in sequences for token in ids}
    filler = own if own is not None else next(i for i in count() if i not in used)
    length = max(map(len, sequences))
    padded = [ids + [filler] * (length - len(ids)) for ids in sequences]
    mask = [[1] * len(ids) + [0] * (length - len(ids)) for ids in sequences]
    before = [config.pad_token_id for config in configs]
    try:
        for config in configs:
            config.pad_token_id = filler
        yield {
            "input_ids": torch.tensor(padded, device=model.device),
            "attention_mask": torch.tensor(mask, device=model.device),
        }
    finally:
        for config, pad in zip(configs, before, strict=True):
            config.pad_token_id = pad
