"""TRL's fused LM head, by which answers are scored under policy and reference.

A module of its own: TRL takes seconds to import, which only those who score need.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel
from trl.trainer import utils

from trainables.models import load_model

# TRL skips the other positions on a GPU alone, because some devices compile for each new shape. A
# CPU does not, and spends a third of a small model's training step on them.
utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")


def load_scorer(
    path: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a model by which `sequence_logps` can score answers, as `load_model` loads one.

    Raises:
        UserError: as `load_model` does.
    """
    model = load_model(path, dtype=dtype, trust_remote_code=trust_remote_code)
    utils.add_fused_lm_head(model)
    return model
