"""TRL's `DPOTrainer` on pairs that are prepared already, and its arguments."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer

import trainables.fused_head  # noqa: F401  # has TRL score answers alone, on a CPU too
from search_spaces.spec import Spec
from trainables.budget import Plan
from trainables.devices import device_and_dtype


class PreparedDPOTrainer(DPOTrainer):
    """`DPOTrainer` on pairs that are tokenised, ordered and scored by the reference already."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # upstream tokenises again whatever it is given

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # upstream's cache, keyed by learning rate and folder, would never hit

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)  # `in_order` has shuffled

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the card of a checkpoint nobody publishes."""

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        # A pickle that nothing here reads: no folder of ours holds one.
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)


def dpo_arguments(
    spec: Spec, training: dict[str, Any], plan: Plan, seed: int, out: Path
) -> DPOConfig:
    device, dtype = device_and_dtype(spec.precision)
    values = {
        # Costs a third of the time where memory is not short; TRL's default is on.
        "gradient_checkpointing": False,
        "logging_steps": max(1, plan.steps // 50),
        **training,
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
    }
    if isinstance(values.get("loss_type"), str):
        values["loss_type"] = [values["loss_type"]]
    return DPOConfig(
        **values,
        output_dir=str(out),
        max_steps=plan.steps,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        logging_nan_inf_filter=False,  # a NaN must be seen, not averaged away
        save_strategy="no",  # `SaveAtRungs` decides
        save_total_limit=1,
        precompute_ref_log_probs=True,  # holds no reference model: the columns are there
        bf16=dtype is torch.bfloat16,
        fp16=False,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
    )
