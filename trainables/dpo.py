"""One trial: train a configuration with TRL's `DPOTrainer`, measure it at rungs, keep it resumable.

An ordinary function in an ordinary process. What a rung report leads to is the caller's business:
Ray ends a stopped trial by raising `SystemExit` out of `report`, and so may anybody.
"""

import gc
import io
import json
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from search_spaces.configuration import micro_batch_losses
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import META, damage
from trainables.budget import Plan, in_order, plan
from trainables.data.preferences import load_pairs
from trainables.devices import device_and_dtype, weights_dtype
from trainables.dpo_trainer import PreparedDPOTrainer, dpo_arguments
from trainables.judges import Judge
from trainables.models import load_model, load_tokenizer
from trainables.prepared import Prepared
from trainables.reference_files import load_logps, scored_rows
from trainables.rungs import Call, SaveAtRungs, Trial
from trainables.trial_report import Report

log = logging.getLogger(__name__)


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
    trial = Trial(call, budget, trainer, autocast)
    trainer.add_callback(SaveAtRungs(trial))
    try:
        if resume is not None:
            done = _step_of(resume)
            if done in budget.rung_steps:
                trainer._load_from_checkpoint(str(resume))
                trial.report_rung(done, resume)
            if done >= budget.steps:
                return
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        if trial.diverged:
            trial.report_rung(trainer.state.global_step, None)
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
    fault = damage(checkpoint)
    if fault is None:
        return checkpoint
    log.warning("the checkpoint is damaged, training starts again: %s", fault)
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
    """Return the report of a trial that failed, with the cause and the traceback."""
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

    def add(report: Report) -> None:
        reports.append(report)
        keep(report)

    if checkpoint is not None and (fault := damage(checkpoint)) is not None:
        return Report(failed=f"the checkpoint to measure is damaged: {fault}")
    try:
        train(
            spec,
            params,
            prepared,
            add,
            seed=seed,
            judge=judge,
            resume_from=checkpoint or resume_from,
            save_now=save_now,
        )
    except Exception as error:
        reports.append(failure(error))
    return replace(reports[-1], checkpoint=None, log="".join(report.log for report in reports))
