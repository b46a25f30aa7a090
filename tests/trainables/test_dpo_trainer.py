"""The log-probs of TRL's trainer beside those of the reference, and its loss at answers alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig
from trl.trainer import utils

from trainables.dpo_trainer import PreparedDPOTrainer
from trainables.evaluation.logprobs import LogProbs, sequence_logps
from trainables.fused_head import load_scorer
from trainables.models import load_model, load_tokenizer
from trainables.quickstart.world import BASE

PAIRS = 16


def pairs() -> list[dict[str, list[int]]]:
    """Return pairs of token ids, of many lengths."""
    chance = np.random.default_rng(3)

    def ids(longest: int) -> list[int]:
        return [int(token) for token in chance.integers(5, 200, chance.integers(1, longest))]

    return [
        {"prompt_ids": ids(20), "chosen_ids": ids(12), "rejected_ids": ids(30)}
        for _ in range(PAIRS)
    ]


def trainer_of(
    rows: Sequence[dict[str, list[int]]],
    logps: LogProbs,
    folder: Path,
    lora: LoraConfig | None = None,
    **options: Any,
) -> PreparedDPOTrainer:
    """Return a trainer of the quickstart's base whose reference has these log-probs."""
    columns = {"ref_chosen_logps": logps[:PAIRS], "ref_rejected_logps": logps[PAIRS:]}
    dataset = Dataset.from_list(list(rows))
    for name, column in columns.items():
        dataset = dataset.add_column(name, column)
    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PAIRS // 2,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        use_cpu=True,
        report_to=[],
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **{"bf16": False, **options},
    )
    return PreparedDPOTrainer(
        model=load_model(BASE),
        args=arguments,
        train_dataset=dataset,
        processing_class=load_tokenizer(BASE),
        peft_config=lora,
    )


def reference_logps(rows: Sequence[dict[str, list[int]]], **options: Any) -> LogProbs:
    prompts = [row["prompt_ids"] for row in rows] * 2
    answers = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
    return sequence_logps(load_scorer(BASE), prompts, answers, pad_token_id=0, **options)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_policy_that_equals_its_reference_has_no_reward(
    tmp_path: Path, bf16: bool, lora: bool
) -> None:
    """In batches of the same shape: bf16 rounds others otherwise, whoever computes them."""
    rows = pairs()
    options = {"batch_size": PAIRS, "autocast": torch.bfloat16 if bf16 else None}
    parts = [reference_logps(rows[i : i + 8], **options).reshape(2, 8) for i in (0, 8)]
    logps = np.concatenate(parts, axis=1).reshape(-1)
    adapter = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True) if lora else None
    trainer = trainer_of(rows, logps, tmp_path, adapter, bf16=bf16, beta=1.0, learning_rate=0.0)
    trainer.train()
    for logged in trainer.state.log_history[:2]:
        # The log-probs themselves are about -100.
        assert logged["rewards/chosen"] == pytest.approx(0.0, abs=1e-4)
        assert logged["rewards/rejected"] == pytest.approx(0.0, abs=1e-4)
        assert logged["logps/chosen"] < -5


def test_loss_and_gradient_are_the_same_as_where_all_positions_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pairs()
    logps = reference_logps(rows, batch_size=8) + np.float32(0.5)

    def step() -> tuple[float, torch.Tensor]:
        trainer = trainer_of(rows, logps, tmp_path, loss_type=["sigmoid", "sft"], beta=0.2)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(gradients)

    loss, gradient = step()
    monkeypatch.setattr(utils, "_use_triton", lambda device: False)
    all_loss, all_gradient = step()
    assert loss == pytest.approx(all_loss, rel=1e-5)
    assert (gradient - all_gradient).norm() < 1e-4 * all_gradient.norm()
