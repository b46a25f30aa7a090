"""The log-probs of answers under a model, in a memory that does not grow with the vocabulary."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Ids = list[int]
LogProbs = NDArray[np.float32]
IGNORED = -100  # cross_entropy's mark for positions that are no answer token

# Elements of the logits (rows x answer positions x vocabulary) that one forward pass may hold: half
# a GiB in bf16. Five answers of 1,024 tokens with GPT-2's vocabulary; short answers are bounded by
# batch_size instead.
LOGITS_IN_MEMORY = 2**28
# A CPU gains nothing from more rows at once, and each of its cores may hold a trial's logits.
LOGITS_ON_CPU = 2**25
LOGITS_IN_FLOAT32 = 2**25  # how many of them are widened at once for the log-softmax


def sequence_logps(
    model: "PreTrainedModel",
    prompt_ids: Sequence[Ids],
    answer_ids: Sequence[Ids],
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: torch.dtype | None = None,
) -> LogProbs:
    """Return the sum of the log-probs of each answer's tokens, nats, shape (rows,).

    Args:
        prompt_ids, answer_ids: token ids of each row; a prompt holds at least one.
        batch_size: rows of one forward pass at most; long answers get fewer, so that logits fit.
        pad_token_id: any id of the vocabulary; padding is on the right, where causal attention
            cannot see it.
        autocast: dtype of the forward pass; the log-softmax is in float32 always.
    """
    if not all(prompt_ids):
        raise ValueError("A prompt without a token: its answer's first token has no log-prob.")
    logps = np.zeros(len(answer_ids), dtype=np.float32)
    rows = [row for row, answer in enumerate(answer_ids) if answer]
    # Longest first; of equal ones (all that were cut) prompts of like length together, because the
    # shortest prompt of a batch decides how many logits all its rows get.
    rows.sort(
        key=lambda row: (len(prompt_ids[row]) + len(answer_ids[row]), len(prompt_ids[row]), row),
        reverse=True,
    )
    vocabulary = model.config.get_text_config().vocab_size
    device = model.device
    most = LOGITS_ON_CPU if device.type == "cpu" else LOGITS_IN_MEMORY
    with evaluating(model), torch.no_grad(), autocasting(device, autocast):
        while rows:
            first = rows[0]
            longest = len(prompt_ids[first]) + len(answer_ids[first])
            size = min(batch_size, max(1, most // (longest * vocabulary)))
            batch, rows = rows[:size], rows[size:]
            ids = torch.full((len(batch), longest), pad_token_id)
            mask = torch.zeros_like(ids)
            # The logits at a position are the model's guess at the next token.
            labels = torch.full_like(ids, IGNORED)
            for i, row in enumerate(batch):
                start, end = len(prompt_ids[row]), len(prompt_ids[row]) + len(answer_ids[row])
                ids[i, :end] = torch.tensor(prompt_ids[row] + answer_ids[row])
                mask[i, :end] = 1
                labels[i, start - 1 : end - 1] = ids[i, start:end]
            kept = longest - min(len(prompt_ids[row]) for row in batch) + 1
            logits = model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                use_cache=False,
                logits_to_keep=kept,
            ).logits
            token_logps = _label_logps(logits, labels[:, -kept:].to(device))
            logps[batch] = token_logps.sum(dim=1).cpu().numpy()
    return logps


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each of its modules back into the mode it was in.

    Besides dropout this turns gradient checkpointing off for the moment: transformers checkpoints
    in train mode only, and drops the key-value cache when it does.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def autocasting(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return autocast to `dtype`, or a context that changes nothing for None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _label_logps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return float32 log-probs of labels, 0 where ignored; logits (rows, positions, vocabulary)."""
    flat = logits.reshape(-1, logits.shape[-1])
    positions = max(1, LOGITS_IN_FLOAT32 // logits.shape[-1])
    chunks = zip(
        torch.split(flat, positions), torch.split(labels.reshape(-1), positions), strict=True
    )
    parts = [
        cross_entropy(part.float(), label, reduction="none", ignore_index=IGNORED)
        for part, label in chunks
    ]
    return -torch.cat(parts).view(labels.shape)
