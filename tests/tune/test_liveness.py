"""Tasks of verification and of `preftune train` that hang: they are ended, nothing is lost."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from rich.console import Console

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.prepared import Prepared
from tune.cluster.connection import Cluster, connected
from tune.cluster.liveness import Watch, heartbeats
from tune.cluster.preemption import Preemption
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment, build_on_worker
from tune.context import Context
from tune.full_training import Job, _followed
from tune.measurement import baseline
from tune.prepare import Preparation
from tune.progress import Progress
from tune.record import create
from tune.study import Study
from tune.verdict import Measured
from tune.verify import _measurements
from tune.worker import ANSWERING, Model, build_answers

# The quickstart's judge, which hangs while there is a file of that name, and says in which process.
JUDGE = """
import os, time
from pathlib import Path
from trainables.quickstart.judge import judge as exact

def judge(prompts, answers):
    if Path(__file__).with_name("hang").exists():
        Path(__file__).with_name("process").write_text(str(os.getpid()))
        time.sleep(3600)
    return exact(prompts, answers)
"""
PATIENT, IMPATIENT = 60.0, 0.2  # minutes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(None) as cluster:
        yield cluster


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "judge.py").write_text(JUDGE)
    return tmp_path


def spec_of(small: Spec, place: Path, minutes: float) -> Spec:
    search = small.search.model_copy(update={"stuck_minutes": minutes})
    verify = small.verify.model_copy(update={"prompts": 16})
    judge = str(place / "judge.py")
    storage = str(place / "runs")
    return small.model_copy(
        update={"search": search, "verify": verify, "judge": judge, "storage": storage}
    )


def is_gone(place: Path) -> bool:
    """Whether the process in which the judge hung has ended."""
    number = int((place / "process").read_text())
    if not psutil.pid_exists(number):
        return True
    return not psutil.wait_procs([psutil.Process(number)], timeout=60)[1]


def test_silent_task_is_ended_and_working_or_waiting_ones_are_not(cluster: Cluster) -> None:
    @ray.remote(num_cpus=0)
    def silent() -> None:
        import time

        with heartbeats("silent"):
            time.sleep(3600)

    @ray.remote(num_cpus=0)
    def working() -> str:
        import time

        with heartbeats("working") as beat:
            for _ in range(40):
                time.sleep(0.5)
                beat()
        return "done"

    @ray.remote(num_cpus=10_000)
    def waiting() -> None:
        pass

    tasks = {silent.remote(): "silent", working.remote(): "working", waiting.remote(): "waiting"}
    names = list(tasks.values())
    watch = Watch(minutes=0.1)
    hung: list[Any] = []
    while tasks and "working" in tasks.values():
        for task in watch.end_hung(tasks):
            hung.append(tasks.pop(task))
        for task in ray.wait(list(tasks), timeout=0.2)[0]:
            assert ray.get(task) == "done"
            del tasks[task]
    assert hung == ["silent"] and "waiting" in names and list(tasks.values()) == ["waiting"]
    ray.cancel(next(iter(tasks)))


@pytest.mark.searches
def test_judge_that_hangs_in_verification_is_ended_and_what_was_measured_stays(
    cluster: Cluster, place: Path, small_spec: Spec, prepared: Prepared
) -> None:
    spec = spec_of(small_spec, place, PATIENT)
    record = create(spec, "run", True, "test")
    study = Study(spec, record.folder)
    study.ask()
    folder = record.folder / "verify"
    folder.mkdir()
    params = {"learning_rate": 1e-4, "per_device_train_batch_size": 8}
    models = [Model(0, seed, params, None, folder / f"0-{seed}.checkpoint") for seed in (7, 8)]
    preparation = Preparation(prepared, prepared.held_out)

    def measure(count: int, minutes: float) -> dict[tuple[int, int | None], Measured]:
        context = Context(
            spec_of(small_spec, place, minutes),
            record,
            study,
            preparation,
            Shipment(cluster.node),
            Share(1, 0, 1),
        )
        progress = Progress(Console(quiet=True), spec, record, study)
        reference = baseline(prepared.held_out)
        preemption = Preemption(lambda text: None)
        return _measurements(context, models[:count], reference, progress, preemption)

    measure(1, PATIENT)
    first = (folder / "0-7.json").stat().st_mtime_ns
    (place / "hang").touch()
    sentence = (
        r"1 of 2 .* seed 8 .*0\.2 minutes \(search.stuck_minutes\).*continue with `preftune r"
    )
    with pytest.raises(UserError, match=sentence):
        measure(2, IMPATIENT)
    assert not (place / "process").exists() or is_gone(place)
    (place / "hang").unlink()
    assert measure(2, PATIENT).keys() == {(0, 7), (0, 8)}
    assert (folder / "0-7.json").stat().st_mtime_ns == first
    assert json.loads((folder / "0-8.json").read_text())["measures"]["win_rate"] is not None


@pytest.mark.searches
def test_judge_that_hangs_in_a_training_on_all_pairs_is_ended(
    cluster: Cluster, place: Path, small_spec: Spec, prepared: Prepared
) -> None:
    (place / "hang").touch()
    home = place / "runs" / "run" / "full.checkpoint" / "0"
    home.mkdir(parents=True)
    params = {"learning_rate": 1e-4, "per_device_train_batch_size": 8}
    nothing = Measured({}, np.zeros(1), np.zeros(0))
    job = Job(spec_of(small_spec, place, IMPATIENT), 0, params, 144, 16, nothing, home)
    preparation = Preparation(prepared, prepared.held_out)
    arguments = (preparation, Shipment(cluster.node), Share(1, 0, 1), lambda text: None)
    report = _followed(job, *arguments)
    assert report.failed is not None and "search.stuck_minutes" in report.failed
    assert not (place / "process").exists() or is_gone(place)
    (place / "hang").unlink()
    patient = replace(job, spec=spec_of(small_spec, place, PATIENT))
    assert _followed(patient, *arguments).measures["win_rate"] is not None


@pytest.mark.searches
def test_judge_that_hangs_in_preparation_is_ended(
    cluster: Cluster, place: Path, small_spec: Spec, prepared: Prepared
) -> None:
    (place / "hang").touch()
    out, data = place / "answers", prepared.tokenizer.parent
    out.mkdir()

    def build(minutes: float) -> None:
        arguments = (spec_of(small_spec, place, minutes), Shipment(cluster.node))
        inputs = (prepared.model, data, None)
        watched = (ANSWERING, minutes)
        build_on_worker(cluster, build_answers, out, *arguments, *inputs, watched=watched)

    with pytest.raises(UserError, match=r"reference answers failed: it did nothing for 0\.2 min"):
        build(IMPATIENT)
    assert is_gone(place)
    (place / "hang").unlink()
    build(PATIENT)
    assert (out / "validation.jsonl").is_file() and (out / "test.jsonl").is_file()
