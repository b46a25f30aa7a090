"""The log-probs of answers under a model, computed as TRL's trainer computes the policy's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Ids = list[int]
LogProbs = NDArray[np.float32]
IGNORED = -100  # the label of positions that are not an answer's token


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

    By TRL's fused head, as its trainer computes the policy's: where policy and reference are equal,
    their log-probs are, and no logits are held.

    Args:
        model: one of `load_scorer` or of TRL's trainer, with or without an adapter.
        prompt_ids, answer_ids: token ids of each row; a prompt holds at least one.
        batch_size: rows of one forward pass.
        pad_token_id: any id of the vocabulary; padding is on the right, where causal attention
            cannot see it.
        autocast: dtype of the forward pass; the log-softmax is in float32 always.
    """
    if not all(prompt_ids):
        raise ValueError("A prompt without a token: its answer's first token has no log-prob.")
    logps = np.zeros(len(answer_ids), dtype=np.float32)
    rows = [row for row, answer in enumerate(answer_ids) if answer]
    # Longest first: rows of like length together need little padding.
    rows.sort(key=lambda row: (len(prompt_ids[row]) + len(answer_ids[row]), row), reverse=True)
    device = model.device
    with evaluating(model), torch.no_grad(), autocasting(device, autocast):
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            longest = len(prompt_ids[batch[0]]) + len(answer_ids[batch[0]])
            ids = torch.full((len(batch), longest), pad_token_id)
            mask = torch.zeros_like(ids)
            labels = torch.full_like(ids, IGNORED)
            for i, row in enumerate(batch):
                start, end = len(prompt_ids[row]), len(prompt_ids[row]) + len(answer_ids[row])
                ids[i, :end] = torch.tensor(prompt_ids[row] + answer_ids[row])
                mask[i, :end] = 1
                labels[i, start:end] = ids[i, start:end]
            scored = model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                labels=labels.to(device),
                fused_lm_head=True,
            )
            logps[batch] = scored.log_probs.float().sum(dim=1).cpu().numpy()
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
