"""Stage 2: searcher, scheduler and resources make a Ray Tune run."""

import logging
import time
import warnings
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray.tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.callback import Callback
from ray.tune.logger import TBXLoggerCallback

from results.run import layout
from search_spaces.spec import Spec
from trainables.artifacts import storage_fault
from trainables.prepared import Prepared
from trainables.trial_report import Report
from tune.cluster.checkpoint_storage import TRIAL, Checkpoints, NotReached, opened, said
from tune.cluster.connection import host
from tune.cluster.preemption import Notice, asked
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment
from tune.progress import Progress
from tune.ray_internals import DriverOnly
from tune.ray_scheduler import RungScheduler
from tune.ray_searcher import RESTARTS, StudySearcher
from tune.record import Record
from tune.study import Study


@dataclass(frozen=True)
class Shared:
    """What every trial of a search has in common; travels to each worker once."""

    spec: Spec
    prepared: Prepared
    sent: Shipment
    share: Share


def run_trial(config: dict[str, Any], shared: Shared) -> None:
    """Run one trial on a Ray worker: `trainables.dpo.train`, its reports handed to Ray Tune.

    An error of the trial's own is a report, not an exception: Ray would start it again, and only a
    process that died deserves that.
    """
    from trainables.dpo import failure, train
    from tune.worker import ready

    spec, number = shared.spec, config["number"]
    device = "unknown"

    def report(report: Report) -> None:
        numbers = {k: v for k, v in report.measures.items() if v is not None}
        folder = report.checkpoint
        checkpoint = folder and ray.tune.Checkpoint.from_directory(str(folder))
        told = {
            **numbers,
            "pairs": report.pairs,
            "trial": number,
            "device": device,
            "node": host(),
            "report": replace(report, checkpoint=None),
        }
        try:
            ray.tune.report(told, checkpoint=checkpoint)
        except Exception as error:
            place = spec.checkpoints or f"the storage {spec.storage!r}"
            raise NotReached(
                f"a checkpoint cannot be kept in {place} from node {host()} ({said(error)})"
            ) from error

    start = ray.tune.get_checkpoint() or config["resume_from"]
    try:
        judge, device = ready(spec, shared.share, shared.sent, shared.prepared.judge_revision)
        with opened(start) if start else nullcontext() as resume_from:
            train(
                spec,
                config["params"],
                shared.prepared.at(shared.sent.here),
                report,
                seed=spec.search.seed,
                judge=judge,
                resume_from=resume_from,
                save_now=asked(),
            )
    except Exception as error:
        # What every other trial would meet too is no failure of this one: it ends the search.
        if isinstance(error, NotReached):
            ray.tune.report({"storage": str(error)})
        elif fault := storage_fault(error):
            ray.tune.report({"storage": f"node {host()} has no room to work in ({fault})"})
        else:
            report(failure(error))


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
        # Ray keeps what was reported with a checkpoint for as long as the search lasts.
        kept = trial.latest_checkpoint_result
        if kept is not None:
            kept.metrics.pop("report", None)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Moving averages of each metric, 50 KB a trial, that nobody reads.
        trial.metric_n_steps.clear()
        trial.metric_analysis.clear()

    on_trial_error = on_trial_complete

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.progress.refresh()


def search(
    spec: Spec,
    record: Record,
    study: Study,
    prepared: Prepared,
    sent: Shipment,
    share: Share,
    progress: Progress,
    notice: Notice,
) -> None:
    """Run every trial that the study has not finished.

    Raises:
        KeyboardInterrupt: the notice was given, and what ran has saved its state.
        UserError: the checkpoints cannot be kept where they are to be.
        OSError: the run folder cannot be written.
    """
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
    shared = Shared(spec, prepared, sent, share)
    checkpoints = Checkpoints(record)

    def keep(*, running: bool) -> None:
        keep_weights(spec, study, checkpoints, running=running)

    for _ in range(1 + RESTARTS):
        keep(running=False)
        scheduler = RungScheduler(spec, study, record, checkpoints, over, progress.decided, notice)
        searcher = StudySearcher(
            study,
            spec.trials,
            lambda: keep(running=True),
            lambda: over() is not None or notice.given,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's, about itself; ours are in the log
            try:
                _tuner(shared, checkpoints, searcher, scheduler, progress).fit()
            except Exception:
                with suppress(NotReached):  # half a checkpoint may be what fills the disk
                    keep(running=False)
                raise
        keep(running=False)
        # One that Ray gave up after the last of the others had been handed out.
        if not study.unfinished():
            return
    for number in study.unfinished():
        study.tell(number, "error", "Ray found no worker that would take the trial over")


def _tuner(
    shared: Shared,
    checkpoints: Checkpoints,
    searcher: StudySearcher,
    scheduler: RungScheduler,
    progress: Progress,
) -> Tuner:
    share = shared.share
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, shared=shared), {"cpu": share.cpu, "gpu": share.gpu}
    )
    return Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,  # the searcher says when there are no more
            max_concurrent_trials=share.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{TRIAL}{trial.config['number']:04d}",
            trial_name_creator=lambda trial: f"{TRIAL}{trial.config['number']:04d}",
        ),
        run_config=RunConfig(
            name=f"{checkpoints.attempts() + 1:02d}",
            storage_path=checkpoints.root,
            storage_filesystem=checkpoints.file_system,
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[_Observer(progress), TBXLoggerCallback()],
            verbose=0,
        ),
    )


def keep_weights(spec: Spec, study: Study, checkpoints: Checkpoints, *, running: bool) -> None:
    """Remove every checkpoint but the last one of each trial that could be a finalist or goes on.

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
