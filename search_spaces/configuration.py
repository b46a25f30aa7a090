"""One configuration: fixed and searched fields together, with a DPO and a LoRA part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LORA = "lora."  # begins the name of a searched LoraConfig field

# Losses whose value for a batch is not the mean of its micro-batches' values (TRL 1.16's
# `dpo_trainer.py`): the first two sort the pairs of a micro-batch; the last is a mean over its
# tokens, of which micro-batches have different numbers. The others are means over pairs.
MICRO_BATCH_LOSSES = ("aot", "aot_unpaired", "sft")


def micro_batch_losses(dpo: Mapping[str, Any]) -> list[str]:
    """Return those of the losses in `DPOConfig` fields that depend on the micro-batch."""
    losses = dpo.get("loss_type") or ["sigmoid"]
    losses = [losses] if isinstance(losses, str) else list(losses)
    return [loss for loss in losses if loss in MICRO_BATCH_LOSSES]


@dataclass(frozen=True)
class Configuration:
    """Everything that `trl.DPOConfig` and `peft.LoraConfig` are given for one trial.

    Attributes:
        dpo: `DPOConfig` fields by name.
        lora: `LoraConfig` fields by name, or None where LoRA is off.
    """

    dpo: dict[str, Any]
    lora: dict[str, Any] | None

    @property
    def fields(self) -> dict[str, Any]:
        """All fields by the names that a space gives them: `beta`, `lora.r`."""
        return self.dpo | {f"{LORA}{name}": value for name, value in (self.lora or {}).items()}

    @property
    def micro_batch(self) -> int:
        """Pairs in one forward pass; TRL's default is 8."""
        return int(self.dpo.get("per_device_train_batch_size", 8))

    @property
    def accumulation(self) -> int:
        """Forward passes in one optimizer step."""
        return int(self.dpo.get("gradient_accumulation_steps", 1))


def configure(
    training: Mapping[str, Any], lora: Mapping[str, Any] | None, params: Mapping[str, Any]
) -> Configuration:
    """Put the fixed fields of a spec and the searched ones of a trial together.

    Args:
        training: the spec's `training`.
        lora: the spec's `lora`; None means that LoRA is off.
        params: values of the searched fields, which go before the fixed ones.
    """
    dpo = {**training, **{k: v for k, v in params.items() if not k.startswith(LORA)}}
    if lora is None:
        return Configuration(dpo, None)
    searched = {k.removeprefix(LORA): v for k, v in params.items() if k.startswith(LORA)}
    return Configuration(dpo, {**lora, **searched})
