"""`preftune train` trains the winning configuration on all of the training pairs."""

import os
import shlex
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.table import Table

from results.formatting import columns, measure
from results.publish.card import published_texts
from results.publish.public_view import candidate
from results.run import layout
from results.run.commands import command_line, shown
from results.run.run import Run
from results.verdict_view import full_sentence, verdict_sentence
from search_spaces.errors import UserError
from search_spaces.schema import Budget
from search_spaces.spec import Spec, load
from trainables.artifacts import damage, storage_fault, write_json
from trainables.trial_report import Report
from tune import measurement
from tune.cluster.connection import Cluster, connected
from tune.cluster.latest_checkpoint import checkpoints, newest, seen
from tune.cluster.liveness import Watch
from tune.cluster.preemption import preemptible
from tune.cluster.resources import plan_share
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment, shipping
from tune.export import model_folder
from tune.inputs import judge_files
from tune.prepare import Preparation, recorded
from tune.record import Record, claim, now, resume_command
from tune.reference_logps import Stage, score_all
from tune.verdict import Measured, compare
from tune.verify import verification_spec
from tune.worker import LEARN, learn

MODEL = layout.FULL  # the folder of the model, and of its checkpoints until it is there


@dataclass(frozen=True)
class Job:
    """A training on all pairs.

    Attributes:
        spec: the search's, with all pairs as its budget, one rung and verification's prompts.
        number: of the winning trial.
        params: its configuration.
        pairs: rows of the train split.
        before: pairs that the winner saw.
        winner: the measurement of the winner's own checkpoint on the test split.
        home: where the checkpoints are kept.
    """

    spec: Spec
    number: int
    params: dict[str, Any]
    pairs: int
    before: int
    winner: Measured
    home: Path


def train_command(folder: Path) -> str:
    """Return the command that trains the winner of a run, or resumes its training."""
    return command_line("train", folder)


def train_winner(run: Run, address: str | None, console: Console) -> None:
    """Train a run's winning configuration on all of its training pairs; print how it compares.

    Resumes from the newest checkpoint of an earlier call. Changes nothing where it is done already.

    Raises:
        UserError: the run has nothing to train; or training or measuring failed.
        KeyboardInterrupt: Ctrl-C, or a signal that is taken for it; the next call resumes.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if (done := run.full()) is not None:
        say(f"The winner of run {run.name} is trained on all pairs already. {full_sentence(done)}")
        return
    try:
        record = _claimed(run)
        job, prepared = _job(run, record)
        say(f"resume     {train_command(run.folder)}")
        record.update(pid=os.getpid(), host=socket.gethostname())
        with connected(address) as cluster, shipping(cluster, record) as sent:
            full = _train(job, prepared, run, record, cluster, sent, say)
    except (OSError, RayError) as error:
        cause = storage_fault(error) or str(error).strip().splitlines()[-1]
        raise UserError(
            f"training on all pairs ended early ({cause}). Fix the cause, then continue with "
            f"`{train_command(run.folder)}`"
        ) from error
    _show(run, full, console)


def _claimed(run: Run) -> Record:
    """Take a run whose winner can be trained.

    Raises:
        UserError: a process drives it, it has not ended, or it has no passing verdict.
    """
    state = run.state  # before the lock, which would make a crashed run look alive
    lock = claim(run.folder)
    if state not in layout.ENDED:
        raise UserError(
            f"run {run.name} has not ended (its state is {state!r}): finish it with "
            f"`{resume_command(run.folder)}` first"
        )
    if not (run.verdict() or {}).get("passing"):
        raise UserError(
            f"run {run.name} has no winner to train on all pairs: {verdict_sentence(run)}"
        )
    return Record(run.folder, lock)


def _job(run: Run, record: Record) -> tuple[Job, Preparation]:
    """Return the training and the data for it.

    Raises:
        UserError: spec, data or the winner's measurement are missing or have changed; or the winner
            has seen all pairs.
    """
    path = run.folder / layout.SPEC
    if not path.exists():
        raise UserError(f"run {run.name} has no spec.yaml, so its winner cannot be trained again")
    spec = load(str(path))
    prepared = recorded(spec, record)
    if prepared is None:
        raise UserError(
            f"what run {run.name} prepared (under {run.storage / 'prepared'}) is gone or has "
            "changed: restore it from a copy, or start a new run"
        )
    verdict = run.verdict() or {}
    trial = verdict["winner"]
    winner = measurement.load(run.folder / layout.VERIFY, trial, None)
    if winner is None:
        raise UserError(
            f"{run.folder / 'verify' / f'{trial}-own.json'} is missing, and nothing can be "
            "compared with the winner without it: restore it from a copy, or start a new run"
        )
    pairs = pyarrow.parquet.read_metadata(prepared.search.train.pairs).num_rows
    before = run.trial(trial).pairs
    if before >= pairs:
        raise UserError(
            f"trial {trial}, the winner of run {run.name}, has seen all {pairs:,} training pairs: "
            "there is nothing more to train on"
        )
    whole = verification_spec(spec).model_copy(update={"budget": Budget(pairs=pairs)})
    home = run.folder / f"{MODEL}.checkpoint" / str(trial)
    return Job(whole, trial, verdict["params"], pairs, before, winner, home), prepared


def _train(
    job: Job,
    prepared: Preparation,
    run: Run,
    record: Record,
    cluster: Cluster,
    sent: Shipment,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train, measure and compare; make the model's folder, then `full.json`.

    `full.json` is removed first and written last: where it is, it belongs to the model beside it.
    """
    (run.folder / layout.FULL_VERDICT).unlink(missing_ok=True)  # of an earlier winner
    stage = Stage(job.spec, run.storage / layout.PREPARED, cluster, sent, say)
    prepared = replace(prepared, search=score_all(stage, prepared.search))
    sent.add([*prepared.files(), *judge_files(job.spec)])
    each = plan_share(job.spec, cluster, prepared.search, sent)
    _drop_damaged(job.home, say)
    if not seen(job.home):  # the seconds are those of another winner's training
        seconds = {k: v for k, v in record.seconds.items() if k != "train"}
        record.update(seconds=seconds)
    job.home.mkdir(parents=True, exist_ok=True)
    say(
        f"training trial {job.number} of run {run.name} on all {job.pairs:,} pairs "
        f"(the search's {job.before:,}), {each.described()}"
    )
    with record.timed("train"):
        report = _followed(job, prepared, sent, each, say)
    log = job.home / layout.LOG
    record.log(job.number, (log.read_text(encoding="utf-8") if log.exists() else "") + report.log)
    log.unlink(missing_ok=True)
    measured = _on_test_split(job, prepared, report)
    full = {
        **compare(job.spec.objective, job.spec.search.seed, measured, job.winner),
        "trial": job.number,
        "params": job.params,
        "pairs": job.pairs,
        "winner_pairs": job.before,
        "seconds": record.seconds["train"],
        "created": now(),
    }
    checkpoint = newest(job.home)
    if checkpoint is None:
        raise UserError(
            f"the trained model in {job.home} is damaged: train it again with "
            f"`{train_command(run.folder)}`"
        )
    texts = published_texts(run, candidate(run, full=full))
    model_folder(job.spec, run.folder / MODEL, prepared.search, checkpoint, texts)
    write_json(run.folder / layout.FULL_VERDICT, full)
    shutil.rmtree(job.home.parent)
    return full


def _followed(
    job: Job, prepared: Preparation, sent: Shipment, share: Share, say: Callable[[str], None]
) -> Report:
    """Train on a worker, whose successor resumes if it dies; print each new checkpoint.

    Raises:
        KeyboardInterrupt: the notice was given, and what was trained is saved; or Ctrl-C.
    """
    at_test = replace(prepared.search, held_out=prepared.test)
    remote = ray.remote(num_cpus=share.cpu, num_gpus=share.gpu, max_retries=2)(learn)
    task = remote.remote(job.params, job.home, job.spec, at_test, sent, share)
    start = shown = seen(job.home)
    if start:
        say(f"continuing from {start:,} of {job.pairs:,} pairs")
    began = time.monotonic()
    watch = Watch(job.spec.search.stuck_minutes)
    with preemptible(say) as preemption:
        while not ray.wait([task], timeout=1)[0]:
            pairs = seen(job.home)
            training = pairs < job.pairs  # then it is measured, and all of it is saved
            if shown < pairs and training:
                shown = pairs
                left = (time.monotonic() - began) / (pairs - start) * (job.pairs - pairs)
                say(
                    f"{pairs:,} of {job.pairs:,} pairs: {_last_loss(job.home)}, "
                    f"about {timedelta(seconds=round(left))} left"
                )
                preemption.saved(MODEL)
            if preemption.announced:
                preemption.leave([MODEL] if training else [])
            if watch.end_hung({task: LEARN}):
                return Report(failed=watch.cause)
    watch.forget(task, LEARN)
    report: Report = ray.get(task)
    return report


def _drop_damaged(home: Path, say: Callable[[str], None]) -> None:
    """Remove the checkpoints that training cannot resume from, with a message."""
    for checkpoint in checkpoints(home):
        if (fault := damage(checkpoint)) is not None:
            say(f"a checkpoint is damaged and left out: {fault}")
            shutil.rmtree(checkpoint)


def _last_loss(home: Path) -> str:
    """Return the end of the newest line of the log that has a loss: `loss 0.4321`."""
    lines = (home / layout.LOG).read_text(encoding="utf-8").splitlines()
    return next(line for line in reversed(lines) if ": loss " in line).rpartition(": ")[2]


def _on_test_split(job: Job, prepared: Preparation, report: Report) -> Measured:
    """Return the model's measurement on the test split.

    Raises:
        UserError: training or measuring failed, or the model diverged.
    """
    run = job.home.parent.parent
    what = f"training trial {job.number} on all {job.pairs:,} pairs"
    if report.failed:
        # Not NaN, which would read as a model that is worse.
        raise UserError(
            f"{what} failed: {report.failed}. Fix the cause, then continue with "
            f"`{train_command(run)}`"
        )
    reference = measurement.baseline(prepared.test)
    measured = measurement.measured(report, job.spec.objective.metric, reference)
    if not np.isfinite(measured.gains).all():
        shutil.rmtree(job.home.parent)  # resuming there would diverge again
        why = report.diverged or "what it gives on the test split is not finite"
        raise UserError(f"{what} diverged ({why}): the search's winner stays the run's model")
    return measured


def _show(run: Run, full: dict[str, Any], console: Console) -> None:
    """Print the measures of the three models, the comparison and the next command."""
    verdict = run.verdict() or {}
    winner = next(f for f in verdict["finalists"] if f["number"] == full["trial"])
    names = columns(run)
    table = Table("on the test split", *names, box=None)
    for label, measures in (
        ("reference", verdict["reference"]),
        (f"trial {full['trial']}: {full['winner_pairs']:,} pairs", winner["test"]),
        (f"trial {full['trial']}: all {full['pairs']:,} pairs", full["test"]),
    ):
        table.add_row(label, *(measure(measures, name) for name in names))
    console.print(table)
    console.print(full_sentence(full), highlight=False, markup=False, soft_wrap=True)
    line = "chat       " + shlex.join(["preftune", "chat", str(shown(run.folder / MODEL))])
    console.print(line, highlight=False, markup=False, soft_wrap=True)
