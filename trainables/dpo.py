"""One trial: train a configuration with TRL's `DPOTrainer`, measure it at rungs, keep it resumable.

An ordinary function in an ordinary process. What a rung report leads to is the caller's business:
Ray ends a stopped trial by raising `SystemExit` out of `report`, and so may anybody.
"""

import gc
import io
import json
import logging
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from search_spaces.configuration import micro_batch_losses
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import META, damage, seal
from trainables.budget import Plan, in_order, plan
from trainables.data.preferences import load_pairs
from trainables.devices import device_and_dtype, weights_dtype
from trainables.dpo_trainer import PreparedDPOTrainer, dpo_arguments
from trainables.evaluation.batch_size import BatchSize
from trainables.evaluation.evaluate import Evaluation, HeldOut, evaluate
from trainables.evaluation.logprobs import sequence_logps
from trainables.evaluation.sampling import Sampling
from trainables.judges import Judge
from trainables.models import load_model, load_tokenizer
from trainables.prepared import Prepared
from trainables.reference import load_answers, load_logps, scored_pairs, scored_rows
from trainables.trial_report import Report

log = logging.getLogger(__name__)
CHECKPOINTS_PER_TRIAL = 10  # a lost process costs at most this share of the budget


@lru_cache(maxsize=1)  # workers are reused: the next trial of the search has the same reference
def _host_reference(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    return load_model(folder, dtype=dtype, trust_remote_code=trust_remote_code).eval()


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
class _Trial:
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

    def tell(self, step: int, checkpoint: Path | None) -> None:
        """Measure, if the step is a rung, and report."""
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


class _AtRungs(TrainerCallback):
    """Saves at each rung, every tenth of the budget and on demand; reports what was saved."""

    def __init__(self, trial: _Trial) -> None:
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
        self.trial.tell(state.global_step, folder)


def peak_memory_mb() -> float:
    """Return the peak device memory of this process since the trial began, MB;

    on CPU, its resident memory.
    """
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return round(psutil.Process().memory_info().rss / 1e6, 1)


@contextmanager
def captured_log() -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("trainables")
    before = ours.level
    ours.setLevel(logging.INFO)
    loggers = [ours, logging.getLogger("transformers"), logging.getLogger("trl")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield text
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        ours.setLevel(before)


def _training_rows(call: Call, budget: Plan, longest_first: bool) -> Dataset:
    """Return exactly the rows that the plan trains on, in their order."""
    rows = load_pairs(call.prepared.train.pairs)
    chosen, rejected = load_logps(call.prepared.train.logps)
    count = budget.steps * budget.effective_batch
    if longest_first:
        lengths = np.array([len(p) + max(len(c), len(r)) for p, c, r in _token_columns(rows)])
        scored = scored_rows(call.prepared.train.logps)  # others are not trained on
        order = np.resize(scored[np.argsort(lengths[scored])[::-1]], count)
    else:
        order = in_order(len(rows), count, call.seed)
    if missing := int(np.isnan(chosen[order]).sum()):
        raise UserError(
            f"{missing} of the {count} pairs to train on with seed {call.seed} have no log-probs "
            f"under the reference in {call.prepared.train.logps}: the search was prepared for "
            "another budget, batch or seed. Start a new run"
        )
    rows = rows.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    rows = rows.add_column("ref_chosen_logps", chosen)
    return rows.add_column("ref_rejected_logps", rejected).select(order)


def _token_columns(rows: Dataset) -> Iterator[tuple[list[int], list[int], list[int]]]:
    return zip(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True)


def train(
    spec: Spec,
    params: Mapping[str, Any],
    prepared: Prepared,
    report: Callable[[Report], None],
    *,
    seed: int,
    judge: Judge | None = None,
    resume_from: Path | None = None,
    save_now: Callable[[], bool] = lambda: False,
) -> None:
    """Train one configuration and report at every checkpoint and rung.

    Args:
        spec: the resolved search.
        params: values of the searched fields, `DPOConfig` names or `lora.<field>`.
        prepared: the reference, the tokenizer and the two splits that a search may see.
        report: is called with a `Report`; may raise (`SystemExit`, say) to end the trial.
        seed: of data order, adapter initialisation and dropout.
        judge: scores sampled answers, or None.
        resume_from: a checkpoint that an earlier call reported. If that step is a rung, the rung is
            measured and reported again: the caller knows which ones it has.
        save_now: is asked after each step whether to save and report one more checkpoint.

    Raises:
        torch.OutOfMemoryError: one pair does not fit on the device.
    """
    budget = plan(spec, params)
    scratch = tempfile.TemporaryDirectory(prefix="preftune-trial-", ignore_cleanup_errors=True)
    with scratch as folder, captured_log() as captured:
        resume = None if resume_from is None else _undamaged(resume_from)
        before = 0.0 if resume is None else float(_meta(resume).get("seconds", 0.0))
        call = Call(spec, params, prepared, seed, judge, captured, report, save_now, before)
        while True:
            try:
                train_once(call, budget, Path(folder), resume)
                return
            except torch.OutOfMemoryError:
                smaller = budget.halved()
                if smaller is None:
                    raise
                log.warning(
                    "out of device memory at micro-batch %d: continuing with %d, accumulated %dx",
                    budget.micro_batch,
                    smaller.micro_batch,
                    smaller.accumulation,
                )
                if losses := micro_batch_losses(spec.configuration(params).dpo):
                    log.warning("%s depends on the micro-batch", " and ".join(losses))
                budget = smaller
            finally:
                release_memory()
            resume = _newest(Path(folder)) or resume


def train_once(
    call: Call, budget: Plan, folder: Path, resume: Path | None, longest_first: bool = False
) -> None:
    set_seed(call.seed)
    configuration = call.spec.configuration(call.params)
    lora = None
    if configuration.lora is not None:
        lora = LoraConfig(**{"task_type": "CAUSAL_LM", **configuration.lora})
    arguments = dpo_arguments(call.spec, configuration.dpo, budget, call.seed, folder)
    _, autocast = device_and_dtype(call.spec.precision)
    weights = weights_dtype(lora is not None, autocast)
    model = load_model(
        call.prepared.model, dtype=weights, trust_remote_code=call.spec.trust_remote_code
    )
    trainer = PreparedDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=_training_rows(call, budget, longest_first),
        processing_class=load_tokenizer(
            call.prepared.tokenizer, trust_remote_code=call.spec.trust_remote_code
        ),
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    trial = _Trial(call, budget, trainer, autocast)
    trainer.add_callback(_AtRungs(trial))
    try:
        if resume is not None:
            done = _step_of(resume)
            if done in budget.rung_steps:
                trainer._load_from_checkpoint(str(resume))
                trial.tell(done, resume)
            if done >= budget.steps:
                return
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        if trial.diverged:
            trial.tell(trainer.state.global_step, None)
    finally:
        # The trainer, its callbacks and the optimizer refer to each other: cut the knot, or the
        # weights stay on the device until some later collection.
        trainer.callback_handler.callbacks.clear()
        trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _undamaged(checkpoint: Path) -> Path | None:
    found = damage(checkpoint)
    if found is None:
        return checkpoint
    log.warning("the checkpoint is damaged, training starts again: %s", found)
    return None


def _meta(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / META).read_text(encoding="utf-8")))


def _step_of(checkpoint: Path) -> int:
    return int(_meta(checkpoint)["step"])


def _newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint that this process has written, if any."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / META).is_file()]
    return max(complete, key=_step_of, default=None)


def failure(error: Exception) -> Report:
    """Return the report of a trial that could not run:

    the cause in a sentence, the traceback in its log.
    """
    if isinstance(error, UserError):
        cause = str(error)
    elif isinstance(error, torch.OutOfMemoryError):
        cause = (
            "out of device memory with one pair at a time: lower max_length, turn "
            "gradient_checkpointing on, or give a trial more of a GPU"
        )
    else:
        cause = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        )
    return Report(failed=cause, log="".join(traceback.format_exception(error)))


def measure_once(
    spec: Spec,
    params: Mapping[str, Any],
    prepared: Prepared,
    *,
    seed: int,
    checkpoint: Path | None,
    judge: Judge | None,
    resume_from: Path | None = None,
    keep: Callable[[Report], None] = lambda report: None,
    save_now: Callable[[], bool] = lambda: False,
) -> Report:
    """Return the last rung's report of a configuration: of a finished checkpoint, or trained now.

    Args:
        checkpoint: the finished one, or None.
        resume_from, save_now: as `train` has them, where it is trained now.
        keep: is called with each report, whose checkpoint is there for as long as that lasts.

    Raises:
        Exception: nothing; what goes wrong is in the report.
    """
    reports: list[Report] = []

    def report(told: Report) -> None:
        reports.append(told)
        keep(told)

    if checkpoint is not None and (found := damage(checkpoint)) is not None:
        return Report(failed=f"the checkpoint to measure is damaged: {found}")
    try:
        train(
            spec,
            params,
            prepared,
            report,
            seed=seed,
            judge=judge,
            resume_from=checkpoint or resume_from,
            save_now=save_now,
        )
    except Exception as error:
        reports.append(failure(error))
    return replace(reports[-1], checkpoint=None, log="".join(report.log for report in reports))
