"""Stage 2: searcher, scheduler and resources make a Ray Tune run."""

import logging
import shutil
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.callback import Callback
from ray.tune.logger import TBXLoggerCallback

from search_spaces.spec import Spec
from trainables.prepared import Prepared
from trainables.report import Report
from tune.cluster import Shipment, host
from tune.driver_only import DriverOnly
from tune.progress import Progress
from tune.record import Record
from tune.resources import Share
from tune.scheduler import RungScheduler
from tune.searcher import Study, StudySearcher

RESTARTS = 2  # of a trial whose process died
STOP = "stop"  # a file of this name in the run folder ends the search after the next rungs


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
        ray.tune.report(
            {
                **numbers,
                "pairs": report.pairs,
                "trial": number,
                "device": device,
                "node": host(),
                "report": replace(report, checkpoint=None),
            },
            checkpoint=report.checkpoint
            and ray.tune.Checkpoint.from_directory(str(report.checkpoint)),
        )

    start = ray.tune.get_checkpoint()
    path = start.path if start is not None else config["resume_from"]
    try:
        judge, device = ready(spec, shared.share)
        train(
            spec,
            config["params"],
            shared.prepared.at(shared.sent.here),
            report,
            seed=spec.search.seed,
            judge=judge,
            resume_from=None if path is None else Path(path),
        )
    except Exception as error:
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
) -> None:
    """Run every trial that the study has not finished."""
    started = time.monotonic()
    minutes = spec.search.minutes
    spent = record.info.get("seconds", {}).get("search", 0.0)

    def over() -> str | None:
        if (record.folder / STOP).exists():
            return "stop"
        if minutes is not None and spent + time.monotonic() - started > 60 * minutes:
            return "time"
        return None

    searcher = StudySearcher(
        study, spec.trials, lambda: keep_weights(spec, study), lambda: over() is not None
    )
    scheduler = RungScheduler(spec, study, record, over, progress.decided)
    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, shared=Shared(spec, prepared, sent, share)),
        {"cpu": share.cpu, "gpu": share.gpu},
    )
    attempt = sum(1 for _ in (record.folder / "tune").glob("*")) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's, about itself; ours are in the log
        tuner = Tuner(
            trainable,
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=spec.trials + len(searcher.waiting),
                max_concurrent_trials=share.concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"trial_{trial.config['number']:04d}",
                trial_name_creator=lambda trial: f"trial_{trial.config['number']:04d}",
            ),
            run_config=RunConfig(
                name=f"{attempt:02d}",
                storage_path=str((record.folder / "tune").absolute()),
                failure_config=FailureConfig(max_failures=RESTARTS),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[_Observer(progress), TBXLoggerCallback()],
                verbose=0,
            ),
        )
        tuner.fit()


def keep_weights(spec: Spec, study: Study) -> None:
    """Remove the checkpoints of every ended trial but those that could be finalists."""
    best = {trial.number for trial in study.finalists(spec.verify.finalists)}
    for trial in study.trials():
        path = trial.user_attrs.get("checkpoint")
        if path and trial.state.is_finished() and trial.number not in best:
            shutil.rmtree(Path(path), ignore_errors=True)
