"""What Ray asks of the scheduler: hanging and dying trials, a notice, weights that are kept."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from deciding import Desk, spec_of
from optuna.trial import TrialState
from ray.exceptions import RayTaskError

import tune.cluster.preemption
from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables.artifacts import build_once, checksum, write_text
from trainables.trial_report import Report
from tune.cluster.checkpoint_storage import Checkpoints
from tune.cluster.preemption import Preemption
from tune.prepare import recorded
from tune.ray_scheduler import RungScheduler
from tune.record import Record, create
from tune.run import _sentence
from tune.search import keep_weights
from tune.study import Study


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return spec_of(tmp_path / "runs")


def scheduler_of(desk: Desk) -> RungScheduler:
    checkpoints = Checkpoints(desk.record)
    return RungScheduler(desk.rungs, checkpoints, Preemption(lambda text: None), stuck_minutes=30)


def test_notice_waits_for_what_runs(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(spec)
    scheduler = scheduler_of(desk)
    asked: list[str] = []
    monkeypatch.setattr(tune.cluster.preemption, "_key", lambda: "the job's")
    monkeypatch.setattr(tune.cluster.preemption, "raise_flag", asked.append)
    slow, dying, waiting = (
        SimpleNamespace(trial_id=name, status=status)
        for name, status in (("a", "RUNNING"), ("b", "RUNNING"), ("c", "PENDING"))
    )
    controller = SimpleNamespace(get_live_trials=lambda: [slow, dying, waiting])
    scheduler.preemption.announced = True
    assert scheduler.choose_trial_to_run(controller) is None
    dying.status = "ERROR"
    assert scheduler.choose_trial_to_run(controller) is None
    assert asked == ["the job's"]
    scheduler.preemption.saved(slow.trial_id)
    with pytest.raises(KeyboardInterrupt):
        scheduler.choose_trial_to_run(controller)


def test_process_that_dies_after_its_last_report_changes_nothing(spec: Spec) -> None:
    """Ray still asks the worker to save when the study has been told how the trial ended."""
    desk = Desk(spec)
    scheduler = scheduler_of(desk)
    number = desk.study.ask()[0]
    trial = SimpleNamespace(
        trial_id="a", config={"number": number}, num_failures=0, max_failures=2, status="RUNNING"
    )
    for rung, answer in enumerate(("CONTINUE", "CONTINUE", "STOP")):
        assert trial.max_failures == 2
        pairs = desk.spec.rungs_pairs[rung]
        measures = {"win_rate": 0.6, "kl": 1.0}
        report = Report(pairs=pairs, rung=rung, measures=measures, deltas=np.zeros(2))
        result = {"report": report, "device": "cpu", "node": "here"}
        assert scheduler.on_trial_result(None, trial, result) == answer
    assert trial.max_failures == 0  # Ray does not start it again
    before = desk.study.trial(number)
    trial.num_failures = 1
    scheduler.on_trial_error(None, trial)
    after = desk.study.trial(number)
    assert after.state == TrialState.COMPLETE and after.user_attrs == before.user_attrs


def test_process_that_dies_before_ray_knows_its_first_checkpoint(spec: Spec) -> None:
    """The study has it from the report; Ray asks the worker once more before it has it."""
    desk = Desk(spec)
    scheduler = scheduler_of(desk)
    number = desk.study.ask()[0]
    config = {"number": number, "resume_from": None}
    trial = SimpleNamespace(
        trial_id="a", config=config, num_failures=1, max_failures=2, status="RUNNING"
    )
    scheduler.on_trial_error(None, trial)
    assert config["resume_from"] is None  # there is none yet
    desk.study.note(number, checkpoint="tune/01/trial_0000/checkpoint_000000")
    scheduler.on_trial_error(None, trial)
    assert config["resume_from"] == desk.study.checkpoint(number) is not None


def test_kept_weights_are_found_after_the_run_folder_moved(spec: Spec, tmp_path: Path) -> None:
    """A running trial's checkpoint is known from the run folder on, not by an absolute path."""
    desk = Desk(spec)
    number, _ = desk.study.ask()
    desk.study.note(number, checkpoint="tune/01/trial_0000/checkpoint_000001")
    for name in ("checkpoint_000000", "checkpoint_000001"):
        (desk.record.folder / "tune" / "01" / "trial_0000" / name).mkdir(parents=True)
    moved = tmp_path / "elsewhere"
    desk.record.folder.rename(moved)
    link = tmp_path / "link"
    link.symlink_to(moved)
    study = Study(spec, link)
    keep_weights(spec, study, Checkpoints(Record(link)), running=False)
    kept = study.checkpoint(number)
    assert kept is not None and Path(kept).is_dir()
    assert [path.name for path in Path(kept).parent.iterdir()] == ["checkpoint_000001"]


def test_errors_of_tasks_are_told_in_their_own_words(tmp_path: Path) -> None:
    """Ray's text of an exception in a task is a traceback, whatever its class."""
    cause = UserError("`precision: bf16` on a T4, which has no bf16")
    error = RayTaskError("score", "Traceback (most recent call last): ...", cause)
    told = _sentence(error.as_instanceof_cause(), tmp_path / "mine")
    assert told == "`precision: bf16` on a T4, which has no bf16"


def test_run_goes_on_with_what_it_began_with_or_says_what_changed(
    spec: Spec, tmp_path: Path
) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def judge(prompts, answers): return [len(a) for a in answers]")
    spec = spec.model_copy(update={"judge": str(judge)})
    record = create(spec, "t", True, "test")
    assert recorded(spec, record) is None  # nothing is prepared yet
    names = {"sft": None}
    for stage in ("data", "reference", "answers"):
        inputs = {"judge": checksum(judge), "stage": stage}
        made = build_once(
            tmp_path / "runs" / "prepared", stage, inputs, lambda out: write_text(out / "x", "x")
        )
        names[stage] = made.name
    record.update(prepared=names, model={"folder": str(tmp_path)})
    found = recorded(spec, record)
    assert found is not None and found.test.pairs.parent.name == names["data"]
    assert found.search.model == tmp_path
    judge.write_text("def judge(prompts, answers): return [0 for a in answers]")
    with pytest.raises(UserError, match="is not the one that run t began with"):
        recorded(spec, record)
    (tmp_path / "runs" / "prepared" / str(names["data"]) / "x").write_text("y")
    assert recorded(spec, record) is None  # damaged: to be made again, and compared by name
