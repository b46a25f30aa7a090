"""The optional supervised pass over the chosen answers: its model is the reference."""

import gc
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from search_spaces.errors import UserError
from search_spaces.schema import SFT
from trainables.data.preferences import load_pairs
from trainables.devices import device_and_dtype
from trainables.models import check_fits, load_model, load_tokenizer

BATCH = 16  # answers in one optimizer step
NO_LOSS = -100  # the label that cross-entropy passes over
NOISE = 0.01  # a validation loss that rises by less than this share has not risen


class _Log(TrainerCallback):
    """Append each reported loss to a file of JSON lines, and end a pass that diverges."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        names = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate"}
        losses = {name: logs[key] for key, name in names.items() if key in logs}
        if not losses:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **losses}) + "\n")
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"The SFT pass diverged: its {bad[0]} is {losses[bad[0]]} at step "
                f"{state.global_step}; set sft.learning_rate below {args.learning_rate:g}."
            )


def run_sft(
    model: Path | str,
    data: Path,
    out: Path,
    sft: SFT,
    *,
    seed: int,
    precision: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Train on the chosen answers of a `data-<key>` folder, with loss on the answers only.

    Where memory runs out, the micro-batch is halved and accumulation doubled, and the pass begins
    again: the effective batch stays `BATCH`.

    Args:
        model: folder, Hub id or `quickstart`.
        data: folder with `train.parquet`, `validation.parquet` and `tokenizer/`.
        out: existing folder; gets `model/` (safetensors and tokenizer) and `log.jsonl`.
        sft: passes over the training pairs, and the highest learning rate of the schedule.
        seed: of the order of the pairs, and of dropout.
        precision: `auto`, `fp32` or `bf16` (autocast; weights stay float32).
        trust_remote_code: run Python files of the model's repository.

    Returns:
        `steps`, `micro_batch`, `train_loss` (mean over the pass), `validation_loss_before` and
        `validation_loss`, in nats per token of the chosen answers.

    Raises:
        UserError: if the model cannot be loaded, one answer does not fit in memory, or the pass
            diverges or leaves the model worse than it was on the validation pairs.
    """
    micro_batch = BATCH
    while True:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                arguments = sft_arguments(sft, micro_batch, seed, precision, Path(scratch))
                return _train(model, data, out, arguments, trust_remote_code)
        except torch.OutOfMemoryError as error:
            if micro_batch == 1:
                raise UserError(
                    f"The model {str(model)!r} runs out of device memory on one answer: set "
                    "training.max_length lower, or use a larger device."
                ) from error
        # Outside the handler: the exception holds the frames that hold the tensors.
        micro_batch = max(divisor for divisor in range(1, micro_batch) if BATCH % divisor == 0)
        gc.collect()
        torch.cuda.empty_cache()  # does nothing on a CPU


def sft_arguments(
    sft: SFT, micro_batch: int, seed: int, precision: str, scratch: Path
) -> SFTConfig:
    device, autocast = device_and_dtype(precision)
    return SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=sft.epochs,
        learning_rate=sft.learning_rate,
        # Warm-up because AdamW's second moments are unknown at first; cosine, as in most
        # published SFT recipes at such learning rates, so that the pass ends on small steps.
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=BATCH // micro_batch,
        gradient_checkpointing=False,  # costs a third; a smaller micro-batch costs less
        max_length=None,  # already cut
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=seed,
        bf16=autocast is torch.bfloat16,
        fp16=False,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a NaN must be seen, not averaged away
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _train(
    model_path: Path | str,
    data: Path,
    out: Path,
    arguments: SFTConfig,
    trust_remote_code: bool,
) -> dict[str, float]:
    tokenizer = load_tokenizer(data / "tokenizer", trust_remote_code=trust_remote_code)
    train = answers_only(load_pairs(data / "train.parquet"))
    validation = answers_only(load_pairs(data / "validation.parquet"))
    model = load_model(model_path, trust_remote_code=trust_remote_code)
    longest = max(len(row) for rows in (train, validation) for row in rows["input_ids"])
    check_fits(model, tokenizer, longest, model_path)
    log = out / "log.jsonl"
    log.unlink(missing_ok=True)  # of an attempt that ran out of memory
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[_Log(log)],
    )
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()["eval_loss"]
    result = trainer.train()
    after = trainer.evaluate()["eval_loss"]
    if after > (1 + NOISE) * before:
        raise UserError(
            f"The SFT pass made the model worse: its loss on the validation pairs rose from "
            f"{before:.3f} to {after:.3f}; set sft.learning_rate below "
            f"{arguments.learning_rate:g}, or leave `sft` out."
        )
    save(trainer.model, tokenizer, out / "model")
    return {
        "steps": result.global_step,
        "micro_batch": arguments.per_device_train_batch_size,
        "train_loss": result.training_loss,
        "validation_loss_before": before,
        "validation_loss": after,
    }


def answers_only(pairs: Dataset) -> Dataset:
    """Return `input_ids` of prompt and chosen answer, and `labels` for the answer only."""

    def join(row: dict[str, list[int]]) -> dict[str, list[int]]:
        prompt, chosen = row["prompt_ids"], row["chosen_ids"]
        return {"input_ids": prompt + chosen, "labels": [NO_LOSS] * len(prompt) + chosen}

    return pairs.map(join, remove_columns=pairs.column_names, keep_in_memory=True)


def save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `load_model` and `load_tokenizer` read."""
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
