"""Stage 2 runs the trials: searcher, scheduler and share of the devices make a Ray Tune run."""

import logging
import time
import warnings
from contextlib import suppress
from typing import Any

import ray.tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.callback import Callback
from ray.tune.logger import TBXLoggerCallback

from results.run import layout
from search_spaces.spec import Spec
from tune.cluster.checkpoint_storage import TRIAL, Checkpoints, NotReached
from tune.cluster.preemption import Preemption
from tune.context import Context
from tune.progress import Progress
from tune.ray_internals import DriverOnly, forget_averages, forget_report
from tune.ray_scheduler import RungScheduler
from tune.ray_searcher import RESTARTS, StudySearcher
from tune.rungs import Rungs
from tune.study import Study
from tune.worker import run_trial


class _Observer(DriverOnly, Callback):
    """Keeps Ray's own records small and the terminal up to date."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        # Recorded by the scheduler; TensorBoard and Ray's snapshots have no use for arrays and
        # texts.
        result.pop("report", None)

    def on_trial_save(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        forget_report(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        forget_averages(trial)

    on_trial_error = on_trial_complete

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.progress.refresh()


def search(context: Context, progress: Progress, preemption: Preemption) -> None:
    """Run every trial that the study has not finished.

    A search that is over before, by a stop or by its minutes, pauses what is left.

    Raises:
        KeyboardInterrupt: the notice was given, and what ran has saved its state.
        UserError: the checkpoints cannot be kept where they are to be.
        OSError: the run folder cannot be written.
    """
    spec, record, study, share = context.spec, context.record, context.study, context.share
    started = time.monotonic()
    minutes = spec.search.minutes
    spent = record.info.get("seconds", {}).get("search", 0.0)

    def over() -> str | None:
        if (record.folder / layout.STOP).exists():
            return "stop"
        if minutes is not None and spent + time.monotonic() - started > 60 * minutes:
            return "time"
        return None

    for name in ("ray.tune", "ray.train", "ray"):
        # Tracebacks of trials whose process died; the journal has the cause in a sentence.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    plain = {
        "spec": spec,
        "prepared": context.prepared.search,
        "sent": context.sent,
        "share": share,
    }
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, **plain), {"cpu": share.cpu, "gpu": share.gpu}
    )
    checkpoints = Checkpoints(record)
    early_stopping = spec.search.scheduler == "asha"
    rungs = Rungs(
        spec.objective, spec.rungs_pairs, early_stopping, study, record, over, progress.decided
    )

    def keep(*, running: bool) -> None:
        keep_weights(spec, study, checkpoints, running=running)

    for _ in range(1 + RESTARTS):
        keep(running=False)
        scheduler = RungScheduler(rungs, checkpoints, preemption, spec.search.stuck_minutes)
        searcher = StudySearcher(
            study,
            spec.trials,
            lambda: keep(running=True),
            lambda: over() is not None or preemption.announced,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's, about itself; ours are in the log
            try:
                settings = _tune_config(searcher, scheduler, share.concurrent)
                Tuner(
                    trainable,
                    tune_config=settings,
                    run_config=_run_config(checkpoints, _Observer(progress)),
                ).fit()
            except Exception:
                with suppress(NotReached):  # half a checkpoint may be what fills the disk
                    keep(running=False)
                raise
        keep(running=False)
        if why := over():
            study.pause(why)
        # What is left else, Ray abandoned after the last of the others had been handed out.
        if why or not study.unfinished():
            return
    for number in study.unfinished():
        study.tell(number, "error", "Ray found no worker that would take the trial over")


def _tune_config(searcher: StudySearcher, scheduler: RungScheduler, concurrent: int) -> TuneConfig:
    return TuneConfig(
        search_alg=searcher,
        scheduler=scheduler,
        num_samples=-1,  # the searcher says when there are no more
        max_concurrent_trials=concurrent,
        reuse_actors=True,
        trial_dirname_creator=lambda trial: f"{TRIAL}{trial.config['number']:04d}",
        trial_name_creator=lambda trial: f"{TRIAL}{trial.config['number']:04d}",
    )


def _run_config(checkpoints: Checkpoints, observer: Callback) -> RunConfig:
    return RunConfig(
        name=f"{checkpoints.attempts() + 1:02d}",
        storage_path=checkpoints.root,
        storage_filesystem=checkpoints.file_system,
        failure_config=FailureConfig(max_failures=RESTARTS),
        checkpoint_config=CheckpointConfig(num_to_keep=1),
        callbacks=[observer, TBXLoggerCallback()],
        verbose=0,
    )


def keep_weights(spec: Spec, study: Study, checkpoints: Checkpoints, *, running: bool) -> None:
    """Remove every checkpoint but the last one of each trial that is unfinished or a finalist.

    Args:
        running: Ray runs the unfinished trials, and is left alone with what they write.
    """
    best = {trial.number for trial in study.finalists(spec.verify.finalists)}

    def unwanted(number: int, name: str) -> bool:
        trial = study.trial(number)
        unfinished = not trial.state.is_finished()
        if unfinished and running:
            return False
        last = name == trial.user_attrs.get("checkpoint")
        return not (last and (unfinished or number in best))

    checkpoints.remove(unwanted)
