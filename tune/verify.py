"""Stage 3:

finalists on fresh seeds and the untouched test split; a winner only where the evidence carries it.
"""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from optuna.trial import FrozenTrial, TrialState

from results.pareto import choices
from results.run import layout
from results.run.listing import open_run
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import write_json
from trainables.reference import scored_prompts
from trainables.trial_report import Report
from tune.cluster.checkpoint_storage import opened, trouble
from tune.cluster.latest_checkpoint import keep, newest, seen
from tune.cluster.preemption import Notice, asked
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment
from tune.prepare import Preparation
from tune.progress import Progress
from tune.record import Record, read_lines, resume_command
from tune.study import Study
from tune.verdict import Measured, by_prompt, decide, fresh_seeds


def verification_spec(spec: Spec) -> Spec:
    """Return the search's spec with one rung, the full budget, and as many prompts as verification
    asks for.
    """
    search = spec.search.model_copy(update={"scheduler": "none", "rungs": None})
    evaluation = spec.evaluation.model_copy(update={"prompts": spec.verify.prompts})
    return spec.model_copy(update={"search": search, "evaluation": evaluation})


def verify(
    spec: Spec,
    record: Record,
    study: Study,
    prepared: Preparation,
    sent: Shipment,
    share: Share,
    progress: Progress,
    notice: Notice,
) -> dict[str, Any]:
    """Measure the finalists, decide, and write `verdict.json`.

    Each finalist's own checkpoint and its re-runs on fresh seeds are measured on the test split, as
    Ray tasks with a trial's resources. A measurement that a resumed run finds on the disk is not
    made again; a re-run that was told to end goes on from what it saved.

    Raises:
        KeyboardInterrupt: the notice was given, and re-runs have saved what they trained.
        UserError: every trial failed; every finalist's checkpoint is damaged; or a measurement
            failed. The others are kept, and a resumed run makes it again.
    """
    _refuse_if_all_failed(study, record)
    finalists = _undamaged(study, study.finalists(spec.verify.finalists), record, progress)
    jobs: list[tuple[int, int | None]] = [(trial.number, None) for trial in finalists]
    jobs += [(trial.number, seed) for seed in fresh_seeds(spec) for trial in finalists]
    params = {trial.number: study.params(trial.params) for trial in finalists}
    paths = {trial.number: study.checkpoint(trial.number) for trial in finalists}
    at_test = replace(prepared.search, held_out=prepared.test)
    answers = prepared.test.answers
    assert answers is not None
    folder = record.folder / layout.VERIFY
    folder.mkdir(exist_ok=True)
    homes = {job: folder / f"{job[0]}-{job[1]}.checkpoint" for job in jobs}

    @ray.remote(num_cpus=share.cpu, num_gpus=share.gpu, max_retries=2)
    def measure(number: int, seed: int | None) -> Report:
        from trainables.dpo import failure, measure_once
        from tune.worker import ready

        own = paths[number] if seed is None else None
        keeper = Keeper(homes[number, seed])
        try:
            judge, _ = ready(spec, share, sent, at_test.judge_revision)
            with opened(own) if own else nullcontext() as checkpoint:
                return measure_once(
                    verification_spec(spec),
                    params[number],
                    at_test.at(sent.here),
                    seed=spec.search.seed if seed is None else seed,
                    checkpoint=checkpoint,
                    judge=judge,
                    resume_from=None if own else keeper.start(),
                    keep=keeper.keep,
                    save_now=keeper.save_now,
                )
        except UserError as error:
            return failure(error)

    found = {job: _load(folder, job) for job in jobs}
    done = {job: measured for job, measured in found.items() if measured is not None}
    queue = [job for job in jobs if job not in done]
    most = spec.search.concurrent or len(jobs)  # its limit is for the storage's room, among others
    waiting: dict[ray.ObjectRef, tuple[int, int | None]] = {}
    before = {job: seen(home) for job, home in homes.items()}
    reference = {line["row"]: line for line in read_lines(answers)}
    prompts = scored_prompts(prepared.test)  # of each pair
    failures = []
    while queue or waiting:
        if notice.given:
            training = [job for job in waiting.values() if homes[job].exists()]
            notice.leave([str(job) for job in training if seen(homes[job]) == before[job]])
        while queue and len(waiting) < most and not notice.given:
            job = queue.pop(0)
            waiting[measure.remote(*job)] = job
        ended, _ = ray.wait(list(waiting), num_returns=1, timeout=1)
        if not ended:
            continue
        job = waiting.pop(ended[0])
        report: Report = ray.get(ended[0])
        record.log(job[0], report.log)
        if report.failed:
            # Not NaN, which would read as a configuration that does not beat the reference.
            failures.append((job, report.failed))
            continue
        done[job] = _measured(spec, report, reference, prompts)
        _save(folder, job, done[job])
        shutil.rmtree(homes[job], ignore_errors=True)
        progress.verified(*job, done[job].measures, len(done) + len(failures), len(jobs))
    if failures:
        (number, seed), cause = failures[0]
        on = "its own checkpoint" if seed is None else f"seed {seed}"
        raise UserError(
            f"{len(failures)} of {len(jobs)} measurements on the test split failed, trial {number} "
            f"with {on} among them: {cause}. Mend it, then go on with "
            f"`{resume_command(record.folder)}`"
        )
    chosen = [
        {"budget": choice.budget, **(asdict(choice.point) if choice.point else {"trial": None})}
        for choice in choices(open_run(record.folder))
    ]
    for choice in chosen:
        choice.pop("eligible", None)  # or it would not have been chosen
    verdict = {
        **decide(spec, params, done, reference),
        "test_pairs": len(prompts),
        "choices": chosen,
    }
    write_json(record.folder / layout.VERDICT, verdict)
    return verdict


class Keeper:
    """Saves a training, on its worker, once it is asked to: what it was worth is then not lost.

    Not before: a checkpoint of each re-run at every tenth would take the storage's room twice.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.asked = asked()
        self.wanted = False

    def start(self) -> Path | None:
        """Tell the driver by a folder that there is something to wait for; return where to go on.

        On a node that does not share the driver's path there is nothing.
        """
        with suppress(OSError):
            self.home.mkdir(exist_ok=True)
        return newest(self.home)

    def save_now(self) -> bool:
        """Return whether to save; once."""
        found = self.asked() and self.home.exists()
        self.wanted = self.wanted or found
        return found

    def keep(self, report: Report) -> None:
        """Keep the checkpoint that was asked for."""
        if self.wanted and report.checkpoint is not None:
            self.wanted = False
            with suppress(OSError):  # without room for it the training begins again
                keep(report.checkpoint, self.home, report.pairs)


def _refuse_if_all_failed(study: Study, record: Record) -> None:
    """Raise where nothing was measured: "no configuration beats the reference" would be untrue."""
    trials = [trial for trial in study.trials() if trial.state.is_finished()]
    if trials and all(trial.state == TrialState.FAIL for trial in trials):
        cause = str(trials[-1].user_attrs.get("cause", "unknown")).rstrip(".")
        raise UserError(
            f"all {len(trials)} trials failed, the last because: {cause}. Mend it, then search on "
            f"with `{resume_command(record.folder)} --trials +{len(trials)}`"
        )


def _undamaged(
    study: Study, finalists: Sequence[FrozenTrial], record: Record, progress: Progress
) -> list[FrozenTrial]:
    """Leave out, aloud, the finalists whose own checkpoints could not be handed over."""
    sound, found = [], None
    for trial in finalists:
        checkpoint = study.checkpoint(trial.number)
        assert checkpoint is not None  # it reached the last rung
        found = trouble(checkpoint)
        if found is None:
            sound.append(trial)
        else:
            progress.left_out(trial.number, found)
    if finalists and not sound:
        raise UserError(
            f"the checkpoint of every finalist is damaged ({found}): search on with "
            f"`{resume_command(record.folder)} --trials +10`"
        )
    return sound


def _measured(
    spec: Spec,
    report: Report,
    reference: dict[int, dict[str, Any]],
    prompts: Sequence[tuple[int, ...]],
) -> Measured:
    # Samples are missing where the model's logits were not finite.
    if report.diverged or report.deltas is None or not report.samples:
        nothing = np.array([math.nan])
        return Measured({}, nothing, nothing)
    scores = np.array(
        [
            s["score"] - reference[s["row"]]["score"]
            for s in report.samples
            if s["score"] is not None
        ]
    )
    if spec.objective.metric == "win_rate":
        gains = np.sign(scores) / 2
    else:
        gains = by_prompt(math.log(2) - np.logaddexp(0, -report.deltas.astype(np.float64)), prompts)
    return Measured(report.measures, gains, scores)


def _path(folder: Path, job: tuple[int, int | None]) -> Path:
    number, seed = job
    return folder / f"{number}-{'own' if seed is None else seed}.json"


def _save(folder: Path, job: tuple[int, int | None], measured: Measured) -> None:
    write_json(
        _path(folder, job),
        {
            "measures": measured.measures,
            "gains": measured.gains.tolist(),
            "scores": measured.scores.tolist(),
        },
    )


def _load(folder: Path, job: tuple[int, int | None]) -> Measured | None:
    path = _path(folder, job)
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        gains, scores = (np.array(stored[name], dtype=float) for name in ("gains", "scores"))
        return Measured(dict(stored["measures"]), gains, scores)  # null is NaN
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged: restore it from a copy; or remove it, and `preftune resume` "
            "measures that model again"
        ) from error
