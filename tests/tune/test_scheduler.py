"""ASHA over pairs, on numbers small enough to rank by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState
from ray.exceptions import RayTaskError

import tune.cluster.preemption
from search_spaces.errors import UserError
from search_spaces.spec import Spec, validate
from trainables.artifacts import build_once, checksum, write_text
from trainables.trial_report import Report
from tune.asha import goes_on
from tune.cluster.checkpoint_storage import Checkpoints
from tune.cluster.preemption import Notice
from tune.prepare import recorded
from tune.ray_scheduler import RungScheduler
from tune.record import Record, create
from tune.run import _sentence
from tune.search import keep_weights
from tune.study import Study


@pytest.mark.parametrize(
    ("value", "others", "direction", "expected"),
    [
        (0.5, [], "maximize", True),  # the first at a rung always goes on
        (0.6, [0.5], "maximize", True),  # a new best does too
        (0.4, [0.5], "maximize", False),  # one of two is kept
        (0.5, [0.5], "maximize", True),  # a tie with the one kept goes on
        (0.7, [0.9, 0.8, 0.1, 0.2, 0.3], "maximize", False),  # third of six, two are kept
        (0.85, [0.9, 0.8, 0.1, 0.2, 0.3], "maximize", True),  # second of six
        (0.2, [0.3, 0.4], "minimize", True),
        (0.35, [0.3, 0.4], "minimize", False),
    ],
)
def test_best_third_goes_on(
    value: float, others: list[float], direction: str, expected: bool
) -> None:
    assert goes_on(value, others, direction) is expected


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {
                "learning_rate": {"loguniform": [1e-5, 1e-2]},
                "loss_type": {"choice": [["sigmoid"], ["sigmoid", "sft"]]},
            },
            "budget": {"pairs": 900},
            "search": {"trials": 9},
            "storage": str(tmp_path / "runs"),
        }
    )


class Desk:
    """A scheduler with its journal and run folder, told reports as Ray would."""

    def __init__(self, spec: Spec, folder: Path | None = None) -> None:
        self.spec = spec
        self.record = create(spec, "t", True, "test") if folder is None else Record(folder)
        self.study = Study(spec, self.record.folder)
        self.over: str | None = None
        self.scheduler = RungScheduler(
            spec,
            self.study,
            self.record,
            Checkpoints(self.record),
            lambda: self.over,
            lambda decision: None,
            Notice(lambda text: None),
        )

    def rung(self, number: int, rung: int, win_rate: float | None, kl: float = 1.0) -> bool:
        pairs = self.spec.rungs_pairs[rung]
        measures = {"win_rate": win_rate, "kl": kl}
        report = Report(
            step=pairs, pairs=pairs, rung=rung, measures=measures, deltas=np.zeros(2, np.float32)
        )
        return self.scheduler.reported(number, report)


def test_notice_waits_for_what_runs(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(spec)
    asked: list[str] = []
    monkeypatch.setattr(tune.cluster.preemption, "_key", lambda: "the job's")
    monkeypatch.setattr(
        tune.cluster.preemption, "_internal_kv_put", lambda key, value: asked.append(key)
    )
    slow, dying, waiting = (
        SimpleNamespace(trial_id=name, status=status)
        for name, status in (("a", "RUNNING"), ("b", "RUNNING"), ("c", "PENDING"))
    )
    controller = SimpleNamespace(get_live_trials=lambda: [slow, dying, waiting])
    desk.scheduler.notice.given = True
    assert desk.scheduler.choose_trial_to_run(controller) is None
    dying.status = "ERROR"
    assert desk.scheduler.choose_trial_to_run(controller) is None
    assert asked == ["the job's"]
    desk.scheduler.notice.saved(slow.trial_id)
    with pytest.raises(KeyboardInterrupt):
        desk.scheduler.choose_trial_to_run(controller)


def test_stopped_trial_is_pruned_with_its_values_and_decision(spec: Spec) -> None:
    desk = Desk(spec)
    first, second = desk.study.ask()[0], desk.study.ask()[0]
    assert desk.rung(first, 0, 0.6)
    assert not desk.rung(second, 0, 0.5)
    trial = desk.study.trial(second)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {100: 0.5}
    assert trial.user_attrs["ended_by"] == "asha"
    last = desk.record.last_decision(second)
    assert last is not None and (last.decision, last.others, last.value) == ("stop", [0.6], 0.5)


def test_smaller_micro_batch_is_recorded(spec: Spec) -> None:
    desk = Desk(spec)
    number = desk.study.ask()[0]
    desk.scheduler.reported(number, Report(step=1, pairs=8, micro_batch=8))
    assert "micro_batch" not in desk.study.trial(number).user_attrs
    desk.scheduler.reported(number, Report(step=2, pairs=16, micro_batch=2, halved=True))
    assert desk.study.trial(number).user_attrs["micro_batch"] == 2


def test_last_rung_completes_with_its_own_value(spec: Spec) -> None:
    desk = Desk(spec)
    number = desk.study.ask()[0]
    assert desk.rung(number, 0, 0.6) and desk.rung(number, 1, 0.7)
    assert not desk.rung(number, 2, 0.65)
    trial = desk.study.trial(number)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.65)


def test_broken_constraint_ends_a_trial_infeasible_and_out_of_the_ranking(spec: Spec) -> None:
    desk = Desk(spec)
    wild, tame = desk.study.ask()[0], desk.study.ask()[0]
    assert not desk.rung(wild, 0, 0.9, kl=25.0)
    trial = desk.study.trial(wild)
    assert trial.state == TrialState.PRUNED
    assert trial.constraints == {"kl": pytest.approx(5.0)}
    assert trial.user_attrs["cause"] == "kl 25 > 20.0"
    assert desk.rung(tame, 0, 0.4)  # first among the feasible: 0.9 does not count against it
    assert desk.study.finalists(3) == []


def test_nan_objective_is_infeasible_not_a_value(spec: Spec) -> None:
    desk = Desk(spec)
    number = desk.study.ask()[0]
    assert not desk.rung(number, 0, float("nan"), kl=float("nan"))
    trial = desk.study.trial(number)
    assert trial.state == TrialState.PRUNED and trial.intermediate_values == {}
    assert all(value > 0 for value in trial.constraints.values())


def test_diverged_training_names_the_step(spec: Spec) -> None:
    desk = Desk(spec)
    number = desk.study.ask()[0]
    cause = "the training loss is nan at step 7"
    assert not desk.scheduler.reported(number, Report(step=7, pairs=56, diverged=cause))
    trial = desk.study.trial(number)
    assert (trial.user_attrs["ended_by"], trial.user_attrs["cause"]) == ("nan", cause)


def test_failed_trial_fails_alone(spec: Spec) -> None:
    desk = Desk(spec)
    bad, good = desk.study.ask()[0], desk.study.ask()[0]
    assert not desk.scheduler.reported(bad, Report(failed="KeyError: 'x'", log="Traceback"))
    assert desk.study.trial(bad).state == TrialState.FAIL
    assert desk.study.trial(bad).user_attrs["cause"] == "KeyError: 'x'"
    assert (desk.record.folder / "trials" / str(bad) / "log.txt").read_text() == "Traceback"
    assert desk.rung(good, 0, 0.5)


def test_process_that_dies_after_its_last_report_changes_nothing(spec: Spec) -> None:
    """Ray still asks the worker to save when the study has been told how the trial ended."""
    desk = Desk(spec)
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
        assert desk.scheduler.on_trial_result(None, trial, result) == answer
    assert trial.max_failures == 0  # Ray does not start it again
    before = desk.study.trial(number)
    trial.num_failures = 1
    desk.scheduler.on_trial_error(None, trial)
    after = desk.study.trial(number)
    assert after.state == TrialState.COMPLETE and after.user_attrs == before.user_attrs


@pytest.mark.parametrize("over", ["stop", "time"])
def test_stop_and_time_end_a_trial_at_its_next_rung(spec: Spec, over: str) -> None:
    desk = Desk(spec)
    number = desk.study.ask()[0]
    desk.over = over
    assert not desk.rung(number, 0, 0.9)
    assert desk.study.trial(number).user_attrs["ended_by"] == over


def test_without_scheduler_nothing_is_stopped(spec: Spec) -> None:
    search = spec.search.model_copy(update={"scheduler": "none", "rungs": [100, 900]})
    desk = Desk(spec.model_copy(update={"search": search}))
    for value in (0.9, 0.5, 0.1):
        assert desk.rung(desk.study.ask()[0], 0, value)


def test_rungs_survive_a_restart(spec: Spec) -> None:
    """A driver that comes back ranks against the values that the dead one recorded."""
    desk = Desk(spec)
    for value in (0.6, 0.5, 0.55):
        desk.rung(desk.study.ask()[0], 0, value)
    again = Desk(spec, desk.record.folder)
    number = again.study.ask()[0]
    assert not again.rung(number, 0, 0.58)
    last = again.record.last_decision(number)
    assert last is not None and last.others == [0.6, 0.5, 0.55]


def test_rung_reported_again_gets_the_decision_it_had(spec: Spec) -> None:
    """A crash between the decision and the tell: the second report ends the trial as decided."""
    desk = Desk(spec)
    first, second = desk.study.ask()[0], desk.study.ask()[0]
    desk.rung(first, 0, 0.6)
    desk.rung(first, 0, 0.6)
    desk.rung(second, 0, 0.5)
    assert [(d.trial, d.decision) for d in desk.record.decisions] == [
        (first, "continue"),
        (second, "stop"),
    ]
    assert len(desk.record.measures(first)) == 1


def test_half_written_decision_is_dropped(spec: Spec) -> None:
    desk = Desk(spec)
    desk.rung(desk.study.ask()[0], 0, 0.6)
    path = desk.record.folder / "decisions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026')
    again = Desk(spec, desk.record.folder)
    assert len(again.record.decisions) == 1
    again.rung(again.study.ask()[0], 0, 0.7)
    assert len(Record(desk.record.folder).decisions) == 2


def test_every_decision_replays_from_its_own_line(spec: Spec) -> None:
    desk = Desk(spec)
    values = np.random.default_rng(0).uniform(size=20)
    for value in values:
        desk.rung(desk.study.ask()[0], 0, float(value))
    for decision in desk.record.decisions:
        assert decision.value is not None
        on = goes_on(decision.value, decision.others, decision.direction)
        assert (decision.decision == "continue") is on


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
