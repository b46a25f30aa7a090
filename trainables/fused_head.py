"""TRL's fused LM head, by which answers are scored under policy and reference.

A module of its own: TRL takes seconds to import, which only those who score need.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel
from trl.trainer import utils

from search_spaces.errors import UserError
from trainables.hub import first_sentence
from trainables.models import load_model

LOOKED_AT = 16  # tokens on which the model's own head and TRL's are compared

# TRL skips the other positions on a GPU alone, because some devices compile for each new shape. A
# CPU does not, and spends a third of a small model's training step on them.
utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")


def load_scorer(
    path: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a model by which `sequence_logps` can score answers, as `load_model` loads one.

    Raises:
        UserError: as `load_model` does; or TRL's head is not this model's.
    """
    model = load_model(path, dtype=dtype, trust_remote_code=trust_remote_code)
    ids = torch.arange(1, 1 + LOOKED_AT).remainder(model.get_input_embeddings().num_embeddings)
    labels = ids[None].clone()
    labels[0, : LOOKED_AT // 2] = -100  # a prompt
    try:
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
            utils.add_fused_lm_head(model)
            fused = model(input_ids=ids[None], labels=labels, fused_lm_head=True).log_probs
    except Exception as error:  # what an architecture raises that nobody has tried
        raise UserError(
            f"Answers cannot be scored under the model {str(path)!r} "
            f"({type(error).__name__}: {first_sentence(error).rstrip('.')}): choose a model of "
            "another architecture."
        ) from error
    answer = torch.arange(LOOKED_AT // 2 - 1, LOOKED_AT - 1)
    own = logits.float().log_softmax(-1)[answer, ids[answer + 1]]
    apart = (own.sum() - fused.float().sum()).abs() / len(answer)
    # A logit is rounded to its dtype, and so is that of each other token.
    rounding = 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    if not apart <= 1e-3 + rounding:
        raise UserError(
            f"The log-probs of TRL's trainer are not those of the model {str(path)!r}: they differ "
            f"by {float(apart):.2g} nats a token, because its head does more than TRL knows of "
            "(such as a cap on its logits). Choose a model of another architecture."
        )
    return model
