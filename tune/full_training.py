"""`preftune train`: the winning configuration on all of the training pairs, and what it brings."""

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

from results.formatting import DIGITS, columns, interval, measure
from results.publish.card import published_texts
from results.publish.public_view import candidate
from results.run import layout
from results.run.commands import command_line, shown
from results.run.run import Run
from results.views import verdict_sentence
from search_spaces.errors import UserError
from search_spaces.schema import Budget
from search_spaces.spec import Spec, load
from trainables.artifacts import damage, storage_fault, write_json
from trainables.reference import scored_prompts
from trainables.trial_report import Report
from tune.cluster.connection import Cluster, connected, host
from tune.cluster.latest_checkpoint import checkpoints, keep, newest, seen
from tune.cluster.preemption import asked, notice
from tune.cluster.resources import plan_share
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment, shipping
from tune.export import model_folder
from tune.inputs import judge_files
from tune.prepare import Preparation, recorded
from tune.record import Record, claim, now, read_lines, resume_command
from tune.reference_logps import Stage, score_all
from tune.verdict import CONFIDENCE, Measured, bounds, resampled
from tune.verify import _load, _measured, verification_spec

MODEL = layout.FULL  # the folder of the model, and of its checkpoints until it is there
THAN = {"better": "is better than", "same": "cannot be told from", "worse": "is worse than"}


@dataclass(frozen=True)
class Job:
    """What there is to train.

    Attributes:
        spec: the search's, with all pairs as its budget, one rung and verification's prompts.
        number: of the winning trial.
        params: its configuration.
        pairs: rows of the train split.
        before: pairs that the winner saw.
        winner: how the winner's own checkpoint did on the test split.
        home: where the checkpoints go.
    """

    spec: Spec
    number: int
    params: dict[str, Any]
    pairs: int
    before: int
    winner: Measured
    home: Path


def train_command(folder: Path) -> str:
    """Return the command that trains the winner of a run, or goes on with it."""
    return command_line("train", folder)


def train_winner(run: Run, address: str | None, console: Console) -> None:
    """Train a run's winning configuration on all of its training pairs; say what it brings.

    Goes on from the newest checkpoint of an earlier call. Changes nothing where it is done already.

    Raises:
        UserError: the run cannot be trained on; or training or measuring failed.
        KeyboardInterrupt: Ctrl-C, or what `resumable` takes for it; the next call goes on.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if (done := run.full()) is not None:
        say(f"The winner of run {run.name} is trained on all pairs already. {done['sentence']}")
        return
    try:
        record = _claimed(run)
        job, prepared = _job(run, record)
        say(f"resume     {train_command(run.folder)}")
        record.update(pid=os.getpid(), host=socket.gethostname())
        with connected(address) as cluster, shipping(cluster, record) as sent:
            full = _train(job, prepared, run, record, cluster, sent, say)
    except (OSError, RayError) as error:
        told = storage_fault(error) or str(error).strip().splitlines()[-1]
        raise UserError(
            f"training on all pairs ended early ({told}): mend it, then go on with "
            f"`{train_command(run.folder)}`"
        ) from error
    _show(run, full, console)


def _claimed(run: Run) -> Record:
    """Take a run whose winner can be trained.

    Raises:
        UserError: it is going on, has not ended, or has no passing verdict.
    """
    state = run.state  # before the lock, which would make a crashed run look alive
    lock = claim(run.folder)
    if state not in layout.ENDED:
        raise UserError(
            f"run {run.name} has not ended (its state is {state!r}): go on with "
            f"`{resume_command(run.folder)}` first"
        )
    if not (run.verdict() or {}).get("passing"):
        raise UserError(
            f"run {run.name} has no winner to train on all pairs: {verdict_sentence(run)}"
        )
    return Record(run.folder, lock)


def _job(run: Run, record: Record) -> tuple[Job, Preparation]:
    """Return what to train, and on what.

    Raises:
        UserError: spec, data or the winner's measurement are gone or have changed; or the winner
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
            "changed: put it back, or start a new run"
        )
    verdict = run.verdict() or {}
    trial = verdict["winner"]
    winner = _load(run.folder / layout.VERIFY, (trial, None))
    if winner is None:
        raise UserError(
            f"{run.folder / 'verify' / f'{trial}-own.json'} is missing, and nothing can be "
            "compared with the winner without it: put it back, or start a new run"
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
    """Train, measure, compare; make the model's folder, then `full.json`."""
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
        f"(the search's {job.before:,}), {each.words()}"
    )
    with record.timed("train"):
        report = _followed(job, prepared, sent, each, say)
    log = job.home / layout.LOG
    record.log(job.number, (log.read_text(encoding="utf-8") if log.exists() else "") + report.log)
    log.unlink(missing_ok=True)
    measured = _on_test_split(job, prepared, report, run)
    full = _compared(job, measured, record.seconds["train"])
    checkpoint = newest(job.home)
    if checkpoint is None:
        raise UserError(
            f"the trained model in {job.home} is damaged: train it again with "
            f"`{train_command(run.folder)}`"
        )
    texts = published_texts(run, candidate(run, full=full))
    model_folder(job.spec, run.folder / MODEL, prepared.search, checkpoint, texts)
    write_json(run.folder / layout.FULL_VERDICT, full)  # last: it says that the model is there
    shutil.rmtree(job.home.parent)
    return full


def _followed(
    job: Job, prepared: Preparation, sent: Shipment, share: Share, say: Callable[[str], None]
) -> Report:
    """Train on a worker, which a dead one's successor goes on for; tell each new checkpoint.

    Raises:
        KeyboardInterrupt: told to end, and what was trained is saved; Ctrl-C.
    """
    at_test = replace(prepared.search, held_out=prepared.test)

    @ray.remote(num_cpus=share.cpu, num_gpus=share.gpu, max_retries=2)
    def learn() -> Report:
        from trainables.dpo import failure, train
        from tune.worker import ready

        last = Report()

        def report(told: Report) -> None:
            nonlocal last
            last = told
            try:
                with (job.home / layout.LOG).open("a", encoding="utf-8") as file:
                    file.write(told.log)
                if told.checkpoint is not None:
                    keep(told.checkpoint, job.home, told.pairs)
            except OSError as error:
                raise UserError(
                    f"a checkpoint cannot be kept in {job.home} from node {host()} "
                    f"({storage_fault(error) or error})"
                ) from error

        try:
            judge, _ = ready(job.spec, share, sent, at_test.judge_revision)
            train(
                job.spec,
                job.params,
                at_test.at(sent.here),
                report,
                seed=job.spec.search.seed,
                judge=judge,
                resume_from=newest(job.home),
                save_now=asked(),
            )
        except Exception as error:
            return failure(error)
        return replace(last, checkpoint=None, log="")

    task = learn.remote()
    start = shown = seen(job.home)
    if start:
        say(f"going on from {start:,} of {job.pairs:,} pairs")
    began = time.monotonic()
    with notice(say) as given:
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
                given.saved(MODEL)
            if given.given:
                given.leave([MODEL] if training else [])
    report: Report = ray.get(task)
    return report


def _drop_damaged(home: Path, say: Callable[[str], None]) -> None:
    """Remove, aloud, what training cannot go on from."""
    for checkpoint in checkpoints(home):
        if (found := damage(checkpoint)) is not None:
            say(f"a checkpoint is damaged and left out: {found}")
            shutil.rmtree(checkpoint)


def _last_loss(home: Path) -> str:
    """Return the end of the newest line of the log that has a loss: `loss 0.4321`."""
    lines = (home / layout.LOG).read_text(encoding="utf-8").splitlines()
    return next(line for line in reversed(lines) if ": loss " in line).rpartition(": ")[2]


def _on_test_split(job: Job, prepared: Preparation, report: Report, run: Run) -> Measured:
    """Return what was measured on the test split.

    Raises:
        UserError: training or measuring failed, or broke down.
    """
    what = f"training trial {job.number} on all {job.pairs:,} pairs"
    if report.failed:
        # Not NaN, which would read as a model that is worse.
        raise UserError(
            f"{what} failed: {report.failed}. Mend it, then go on with "
            f"`{train_command(run.folder)}`"
        )
    answers = prepared.test.answers
    assert answers is not None
    reference = {line["row"]: line for line in read_lines(answers)}
    measured = _measured(job.spec, report, reference, scored_prompts(prepared.test))
    if not np.isfinite(measured.gains).all():
        shutil.rmtree(job.home.parent)  # going on from there would end there again
        why = report.diverged or "what it gives on the test split is not finite"
        raise UserError(f"{what} broke down ({why}): the search's winner stays the run's model")
    return measured


def _compared(job: Job, measured: Measured, seconds: float) -> dict[str, Any]:
    """Return what `full.json` says: the model against the reference and against the winner."""
    spec = job.spec
    # Two comparisons, so each at 1 - 0.05 / 2, as a verdict on two finalists.
    level = 1 - (1 - CONFIDENCE) / 2

    def against(gains: np.ndarray) -> dict[str, Any]:
        draws = resampled(gains, spec.search.seed)
        return {"difference": float(gains.mean()), "interval": bounds(draws, level)}

    reference = against(measured.gains)
    winner = against(measured.gains - job.winner.gains)
    low, high = winner["interval"]
    outcome = "better" if low > 0 else "worse" if high < 0 else "same"
    broken = [
        f"{name} {measure(measured.measures, name)}"
        for name, bound in spec.objective.constraints.items()
        if bound.violation(measured.measures.get(name)) > 0
    ]
    beats = reference["interval"][0] > 0
    metric = spec.objective.metric
    # Better is more of a win rate and less of a pair loss: the sign says which way it moved.
    sign = 1 if spec.objective.direction == "maximize" else -1

    def moved(entry: dict[str, Any]) -> str:
        ends = sorted(sign * end for end in entry["interval"])
        return interval(sign * entry["difference"], ends, DIGITS[metric])

    sentence = (
        f"The model trained on all {job.pairs:,} pairs {THAN[outcome]} the search's winner, trial "
        f"{job.number} with {job.before:,}: {metric} {measure(measured.measures, metric)} "
        f"against {measure(job.winner.measures, metric)} ({moved(winner)}) on the test "
        f"split; it {'beats' if beats else 'does not beat'} the reference ({moved(reference)})."
    )
    if broken:
        sentence += f" It is outside the search's limits there: {', '.join(broken)}."
    return {
        "outcome": outcome,
        "sentence": sentence,
        "passing": beats and not broken,
        "trial": job.number,
        "params": job.params,
        "pairs": job.pairs,
        "winner_pairs": job.before,
        "metric": metric,
        "direction": spec.objective.direction,
        "confidence": CONFIDENCE,
        "test": measured.measures,
        "against_reference": reference,
        "against_winner": winner,
        "broken": broken,
        "seconds": seconds,
        "created": now(),
    }


def _show(run: Run, full: dict[str, Any], console: Console) -> None:
    """Print the three models' measures, the sentence and the line that leads on."""
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
    console.print(full["sentence"], highlight=False, markup=False, soft_wrap=True)
    line = "chat       " + shlex.join(["preftune", "chat", str(shown(run.folder / MODEL))])
    console.print(line, highlight=False, markup=False, soft_wrap=True)
