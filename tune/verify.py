"""Stage 3 measures the finalists on the untouched test split; a winner needs evidence there."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from optuna.trial import FrozenTrial, TrialState

from results.run import layout
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import write_json
from trainables.evaluation.metrics import reference_measures
from tune.cluster.checkpoint_storage import trouble
from tune.cluster.latest_checkpoint import seen
from tune.cluster.liveness import Watch
from tune.cluster.preemption import Preemption
from tune.context import Context
from tune.export import export_winner
from tune.measurement import Baseline, baseline, load, measured, save
from tune.progress import Progress
from tune.record import Record, resume_command
from tune.study import TAKEN_FROM, Study
from tune.verdict import Measured, decide, fresh_seeds, unverified
from tune.worker import Model, measure


def verification_spec(spec: Spec) -> Spec:
    """Return the search's spec with one rung, the full budget and verification's prompts."""
    search = spec.search.model_copy(update={"scheduler": "none", "rungs": None})
    evaluation = spec.evaluation.model_copy(update={"prompts": spec.verify.prompts})
    return spec.model_copy(update={"search": search, "evaluation": evaluation})


def verify(context: Context, progress: Progress, preemption: Preemption) -> dict[str, Any]:
    """Measure the finalists and decide; write `best/` and `verdict.json`.

    The old verdict is removed first and the new one is written last. What is interrupted in between
    leaves a run without a verdict, which cannot be published, and which `preftune resume` finishes.

    Raises:
        KeyboardInterrupt: the notice was given, and re-runs have saved what they trained.
        UserError: every trial failed; every finalist's checkpoint is damaged; or a measurement
            failed. The others are kept, and a resumed run makes it again.
    """
    spec, record, study = context.spec, context.record, context.study
    _refuse_if_all_failed(study, record)
    (record.folder / layout.VERDICT).unlink(missing_ok=True)
    finalists = _undamaged(study, study.finalists(spec.verify.finalists), record, progress)
    if not finalists and (study.started() < spec.trials or study.unfinished()):
        verdict = unverified(spec.objective, _best_so_far(study, spec))
    else:
        verdict = _verified(context, finalists, progress, preemption)
    if verdict["passing"]:
        checkpoint = study.checkpoint(verdict["winner"])
        assert checkpoint is not None  # it was measured
        export_winner(spec, record, context.prepared.search, checkpoint, verdict)
    else:
        shutil.rmtree(record.folder / layout.BEST, ignore_errors=True)  # of an earlier verdict
    write_json(record.folder / layout.VERDICT, verdict)
    return verdict


def _verified(
    context: Context, finalists: Sequence[FrozenTrial], progress: Progress, preemption: Preemption
) -> dict[str, Any]:
    """Return the verdict on the finalists."""
    spec, study = context.spec, context.study
    fresh = fresh_seeds(spec.search.seed, spec.verify.seeds)
    params = {trial.number: study.params(trial.params) for trial in finalists}
    folder = context.record.folder / layout.VERIFY
    folder.mkdir(exist_ok=True)
    models = [
        Model(
            number,
            seed,
            params[number],
            study.checkpoint(number) if seed is None else None,
            folder / f"{number}-{seed}.checkpoint",
        )
        for seed in (None, *fresh)
        for number in params
    ]
    reference = baseline(context.prepared.test)
    done = _measurements(context, models, reference, progress, preemption)
    answers = reference.answers.values()
    return {
        **decide(spec.objective, spec.search.seed, fresh, params, done),
        "test_prompts": len(answers),
        "test_pairs": len(reference.prompts),
        "reference": reference_measures(answers),
    }


def _measurements(
    context: Context,
    models: Sequence[Model],
    reference: Baseline,
    progress: Progress,
    preemption: Preemption,
) -> dict[tuple[int, int | None], Measured]:
    """Measure models on the test split, as Ray tasks with a trial's resources.

    A measurement that a resumed run finds on the disk is not made again; a re-run that was asked to
    end resumes from what it saved; a task that hangs is ended.

    Raises:
        KeyboardInterrupt: the notice was given, and re-runs have saved what they trained.
        UserError: a measurement failed.
    """
    spec, record = context.spec, context.record
    folder = record.folder / layout.VERIFY
    keys = [(model.number, model.seed) for model in models]
    earlier = {key: load(folder, *key) for key in keys}
    done = {key: measurement for key, measurement in earlier.items() if measurement is not None}
    queue = [model for model in models if (model.number, model.seed) not in done]
    share = context.share
    remote = ray.remote(num_cpus=share.cpu, num_gpus=share.gpu, max_retries=2)(measure)
    at_test = replace(context.prepared.search, held_out=context.prepared.test)
    common = (verification_spec(spec), at_test, context.sent, share)
    most = spec.search.concurrent or len(models)  # its limit is for the storage's room, too
    running: dict[ray.ObjectRef, Model] = {}
    before = {model.home: seen(model.home) for model in models}
    watch = Watch(spec.search.stuck_minutes)
    failures: list[tuple[Model, str]] = []
    while queue or running:
        if preemption.announced:
            training = [model for model in running.values() if model.home.exists()]
            preemption.leave([m.task for m in training if seen(m.home) == before[m.home]])
        while queue and len(running) < most and not preemption.announced:
            model = queue.pop(0)
            running[remote.remote(model, *common)] = model
        for task in watch.end_hung({task: model.task for task, model in running.items()}):
            watch.forget(task, running[task].task)
            failures.append((running.pop(task), watch.cause))
        ended, _ = ray.wait(list(running), num_returns=1, timeout=1) if running else ([], [])
        if not ended:
            continue
        model = running.pop(ended[0])
        watch.forget(ended[0], model.task)
        report = ray.get(ended[0])
        record.log(model.number, report.log)
        if report.failed:
            # Not NaN, which would read as a configuration that does not beat the reference.
            failures.append((model, report.failed))
            continue
        measurement = measured(report, spec.objective.metric, reference)
        done[model.number, model.seed] = measurement
        save(folder, model.number, model.seed, measurement)
        shutil.rmtree(model.home, ignore_errors=True)
        counts = len(done) + len(failures), len(models)
        progress.verified(model.number, model.seed, measurement.measures, *counts)
    if failures:
        model, cause = failures[0]
        on = "its own checkpoint" if model.seed is None else f"seed {model.seed}"
        raise UserError(
            f"{len(failures)} of {len(models)} measurements on the test split failed, trial "
            f"{model.number} with {on} among them: {cause}. Fix the cause, then continue with "
            f"`{resume_command(record.folder)}`"
        )
    return done


def _refuse_if_all_failed(study: Study, record: Record) -> None:
    """Raise where nothing was measured: "no configuration beats the reference" would be untrue."""
    trials = [trial for trial in study.trials() if trial.state != TrialState.WAITING]
    if trials and all(trial.state == TrialState.FAIL for trial in trials):
        cause = str(trials[-1].user_attrs.get("cause", "unknown")).rstrip(".")
        raise UserError(
            f"all {len(trials)} trials failed, the last because: {cause}. Fix the cause, then "
            f"search again with `{resume_command(record.folder)} --trials +{len(trials)}`"
        )


def _best_so_far(study: Study, spec: Spec) -> dict[str, Any] | None:
    """Return the best feasible trial at the highest rung that any has reached."""
    sign = 1 if spec.objective.direction == "maximize" else -1
    measured_trials = [
        (max(values), sign * values[max(values)], -trial.number)
        for trial in study.trials()
        if (values := trial.intermediate_values)
        and trial.state != TrialState.FAIL
        and trial.user_attrs.get("ended_by") not in ("constraint", "nan")
        and TAKEN_FROM not in trial.user_attrs
    ]
    if not measured_trials:
        return None
    pairs, value, number = max(measured_trials)
    return {"number": -number, "pairs": pairs, "value": sign * value}


def _undamaged(
    study: Study, finalists: Sequence[FrozenTrial], record: Record, progress: Progress
) -> list[FrozenTrial]:
    """Leave out, with a message, the finalists whose own checkpoints could not be published."""
    sound, fault = [], None
    for trial in finalists:
        checkpoint = study.checkpoint(trial.number)
        assert checkpoint is not None  # it reached the last rung
        damage = trouble(checkpoint)
        if damage is None:
            sound.append(trial)
        else:
            fault = damage
            progress.left_out(trial.number, damage)
    if finalists and not sound:
        raise UserError(
            f"the checkpoint of every finalist is damaged ({fault}): search on with "
            f"`{resume_command(record.folder)} --trials +10`"
        )
    return sound
