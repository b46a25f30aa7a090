"""What a trial does besides training: it saves, measures and reports at its rungs."""

import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import seal
from trainables.budget import Plan, plan
from trainables.dpo_trainer import PreparedDPOTrainer
from trainables.evaluation.batch_size import BatchSize
from trainables.evaluation.evaluate import Evaluation, HeldOut, evaluate
from trainables.evaluation.logprobs import sequence_logps
from trainables.evaluation.sampling import Sampling
from trainables.fused_head import load_scorer
from trainables.judges import Judge
from trainables.prepared import Prepared
from trainables.reference import scored_pairs
from trainables.reference_files import load_answers
from trainables.trial_report import Report

log = logging.getLogger(__name__)
CHECKPOINTS_PER_TRIAL = 10  # a lost process costs at most this share of the budget


@lru_cache(maxsize=1)  # workers are reused: the next trial of the search has the same reference
def _host_reference(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    return load_scorer(folder, dtype=dtype, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Call:
    """The arguments of `train`, and the log that it captures."""

    spec: Spec
    params: Mapping[str, Any]
    prepared: Prepared
    seed: int
    judge: Judge | None
    captured: io.StringIO
    report: Callable[[Report], None] = lambda report: None
    save_now: Callable[[], bool] = lambda: False
    seconds_before: float = 0.0  # of the processes before this one, by its checkpoint
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds that the trial has taken, in all its processes."""
        return round(self.seconds_before + time.monotonic() - self.started, 2)


@dataclass
class Trial:
    """One attempt at the call: its trainer, and what the trainer's callbacks share."""

    call: Call
    plan: Plan
    trainer: PreparedDPOTrainer
    autocast: torch.dtype | None
    batch: BatchSize = field(default_factory=BatchSize)
    losses: list[float] = field(default_factory=list)
    diverged: str | None = None

    def take_log(self) -> str:
        text = self.call.captured.getvalue()
        self.call.captured.seek(0)
        self.call.captured.truncate()
        return text

    def score_reference(
        self, prompts: list[list[int]], answers: list[list[int]], size: int
    ) -> np.ndarray:
        """Return the reference's log-probs of sampled answers, nats, `(answers,)`."""
        policy = self.trainer.accelerator.unwrap_model(self.trainer.model)
        pad = self.trainer.processing_class.pad_token_id
        options = {"batch_size": size, "pad_token_id": pad, "autocast": self.autocast}
        if self.call.spec.lora is not None:
            with policy.disable_adapter():
                return sequence_logps(policy, prompts, answers, **options)
        remote = self.call.spec.trust_remote_code
        reference = _host_reference(self.call.prepared.model, policy.dtype, remote)
        try:
            return sequence_logps(reference.to(policy.device), prompts, answers, **options)
        finally:
            reference.to("cpu")  # training gets the device's memory back

    def evaluate(self) -> Evaluation:
        try:
            return self._evaluate()
        except torch.OutOfMemoryError as error:
            # One at a time does not fit, and no smaller micro-batch would help.
            raise UserError(
                "measuring a rung does not fit on the device, even one answer at a time: lower "
                "evaluation.max_new_tokens or training.max_length, or give a trial more of a GPU"
            ) from error

    def _evaluate(self) -> Evaluation:
        spec, split = self.call.spec, self.call.prepared.held_out
        assert split.answers is not None
        pairs, chosen, rejected = scored_pairs(split)
        answers = load_answers(split.answers)
        return evaluate(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            self.trainer.processing_class,
            HeldOut(pairs, chosen, rejected, answers, spec.evaluation.prompts),
            # The seed is the same for every trial, whatever it trains with: only policies differ.
            Sampling(spec.evaluation.max_new_tokens, spec.search.seed, spec.precision, self.batch),
            self.score_reference,
            self.call.judge,
        )

    def report_rung(self, step: int, checkpoint: Path | None) -> None:
        """Report a step to the caller, and measure the policy first if the step is a rung."""
        rungs = self.plan.rung_steps
        # Where one batch reaches several rungs at once, it is the last of them.
        here = [i for i, at in enumerate(rungs) if at == step]
        rung = max(here) if here and not self.diverged else None
        measures: dict[str, float | None] = {}
        evaluation = None
        if rung is not None:
            began = time.monotonic()
            evaluation = self.evaluate()
            measures = dict(evaluation.measures)
            measures["train_loss"] = float(np.mean(self.losses)) if self.losses else None
            measures["seconds"] = self.call.seconds
            measures["peak_memory_mb"] = peak_memory_mb()
            self.losses.clear()
            log.info("rung %d at step %d measured in %.1f s", rung, step, time.monotonic() - began)
        self.call.report(
            Report(
                step=step,
                pairs=step * self.plan.effective_batch,
                rung=rung,
                measures=measures,
                deltas=None if evaluation is None else evaluation.deltas,
                samples=[] if evaluation is None else evaluation.samples,
                checkpoint=checkpoint,
                log=self.take_log(),
                diverged=self.diverged,
                micro_batch=self.plan.micro_batch,
                halved=self.plan.micro_batch < plan(self.call.spec, self.call.params).micro_batch,
            )
        )


class SaveAtRungs(TrainerCallback):
    """Save at each rung, every tenth of the budget and on demand, and report what was saved."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        steps = trial.plan.steps
        every = max(1, math.ceil(steps / CHECKPOINTS_PER_TRIAL))
        self.save_at = {*range(every, steps, every), *trial.plan.rung_steps}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        trial, loss = self.trial, float(logs["loss"])
        trial.losses.append(loss)
        log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, loss)
        if not math.isfinite(loss) and trial.diverged is None:
            trial.diverged = f"the training loss is {loss} at step {state.global_step}"
            control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step in self.save_at or self.trial.call.save_now():
            control.should_save = True
            control.should_log = True  # a loss that is NaN is seen before it is saved
        # The last checkpoint is the trial's result: nobody trains on from it.
        args.save_only_model = state.global_step >= self.trial.plan.steps

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trial.diverged:
            return  # not worth keeping, and no checkpoint of it may pass for a result
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal(folder, step=state.global_step, seconds=self.trial.call.seconds)
        self.trial.report_rung(state.global_step, folder)


def peak_memory_mb() -> float:
    """Return the peak device memory since the trial began, on a CPU the resident memory, MB."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return round(psutil.Process().memory_info().rss / 1e6, 1)
