"""The rules at the rungs, without Ray, on numbers small enough to rank by hand."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deciding import Desk, spec_of
from optuna.trial import TrialState
from rich.console import Console
from searching import environment

from search_spaces.schema import Budget
from search_spaces.spec import Spec
from trainables.trial_report import Report
from tune.asha import promoted
from tune.progress import Progress
from tune.record import Record


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return spec_of(tmp_path / "runs")


def test_the_rules_know_no_ray() -> None:
    """Neither Ray nor torch is imported by what decides at a rung."""
    check = "import sys, tune.rungs; sys.exit({'ray', 'torch'} & sys.modules.keys() != set())"
    subprocess.run([sys.executable, "-c", check], env=environment(), check=True)


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
def test_best_third_is_promoted(
    value: float, others: list[float], direction: str, expected: bool
) -> None:
    assert promoted(value, others, direction) is expected


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
    desk.rungs.reported(number, Report(step=1, pairs=8, micro_batch=8))
    assert "micro_batch" not in desk.study.trial(number).user_attrs
    desk.rungs.reported(number, Report(step=2, pairs=16, micro_batch=2, halved=True))
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
    assert trial.constraints == {"kl": pytest.approx(0.25)}
    assert trial.user_attrs["cause"] == "kl 25 > 20"
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
    assert not desk.rungs.reported(number, Report(step=7, pairs=56, diverged=cause))
    trial = desk.study.trial(number)
    assert (trial.user_attrs["ended_by"], trial.user_attrs["cause"]) == ("nan", cause)


def test_failed_trial_fails_alone(spec: Spec) -> None:
    desk = Desk(spec)
    bad, good = desk.study.ask()[0], desk.study.ask()[0]
    assert not desk.rungs.reported(bad, Report(failed="KeyError: 'x'", log="Traceback"))
    assert desk.study.trial(bad).state == TrialState.FAIL
    assert desk.study.trial(bad).user_attrs["cause"] == "KeyError: 'x'"
    assert (desk.record.folder / "trials" / str(bad) / "log.txt").read_text() == "Traceback"
    assert desk.rung(good, 0, 0.5)


@pytest.mark.parametrize("over", ["stop", "time"])
def test_stop_and_time_pause_a_trial_at_its_next_rung(spec: Spec, over: str) -> None:
    """It has not ended; when it is resumed, the rung is decided with what is known by then."""
    desk = Desk(spec)
    first, second = desk.study.ask()[0], desk.study.ask()[0]
    desk.over = over
    assert not desk.rung(first, 0, 0.5) and not desk.rung(second, 0, 0.9)
    for number in (first, second):
        trial = desk.study.trial(number)
        assert (trial.state, trial.user_attrs["paused"]) == (TrialState.RUNNING, over)
        assert "ended_by" not in trial.user_attrs
    decisions = [(d.decision, d.ended_by) for d in desk.record.decisions]
    assert decisions == [("pause", over)] * 2

    again = Desk(spec, desk.record.folder)
    assert again.study.unfinished() == [first, second]
    for number in (first, second):
        again.study.ask_again(number)
        assert not again.study.paused(number)
    assert not again.rung(first, 0, 0.5)  # the other one is better
    assert again.rung(second, 0, 0.9)
    newest = again.record.decisions[2:]
    assert [(d.decision, d.others) for d in newest] == [("stop", [0.9]), ("continue", [0.5])]
    assert again.study.trial(first).user_attrs["ended_by"] == "asha"
    assert len(again.record.measures(first)) == 1
    assert again.rung(again.study.ask()[0], 0, 0.95)
    assert again.record.decisions[-1].others == [0.5, 0.9]  # each trial counts once


def test_trial_at_its_last_rung_is_not_paused(spec: Spec) -> None:
    desk = Desk(spec)
    number = desk.study.ask()[0]
    assert desk.rung(number, 0, 0.6) and desk.rung(number, 1, 0.7)
    desk.over = "time"
    assert not desk.rung(number, 2, 0.8)
    assert desk.study.trial(number).state == TrialState.COMPLETE


def test_trial_that_begins_again_after_a_pause_gets_its_decisions_again(spec: Spec) -> None:
    """Its checkpoint was damaged: the first rung is reported once more."""
    desk = Desk(spec)
    number = desk.study.ask()[0]
    assert desk.rung(number, 0, 0.6)
    desk.over = "stop"
    assert not desk.rung(number, 1, 0.7)
    desk.over = None
    desk.study.ask_again(number)
    assert desk.rung(number, 0, 0.6) and desk.rung(number, 1, 0.7)
    actions = [d.decision for d in desk.record.decisions]
    assert actions == ["continue", "pause", "continue"]


def test_without_scheduler_nothing_is_stopped(spec: Spec) -> None:
    search = spec.search.model_copy(update={"scheduler": "none", "rungs": [100, 900]})
    desk = Desk(spec.model_copy(update={"search": search}))
    for value in (0.9, 0.5, 0.1):
        assert desk.rung(desk.study.ask()[0], 0, value)


def test_budget_in_steps_reports_the_pairs_that_were_seen(spec: Spec) -> None:
    """A batch of 4 has seen 800 pairs after 200 steps, a batch of 8 twice as many."""
    search = spec.search.model_copy(update={"scheduler": "none"})
    desk = Desk(spec.model_copy(update={"budget": Budget(steps=200), "search": search}))
    measures: dict[str, float | None] = {"win_rate": 0.6, "kl": 1.0}
    for batch in (4, 8):
        number = desk.study.ask()[0]
        report = Report(200, 200 * batch, 0, measures, np.zeros(2, np.float32))
        assert not desk.rungs.reported(number, report)
        trial = desk.study.trial(number)
        assert (trial.state, trial.intermediate_values) == (TrialState.COMPLETE, {200: 0.6})
    number = desk.study.ask()[0]
    assert not desk.rungs.reported(number, Report(7, 56, diverged="the loss is nan at step 7"))
    assert [d.pairs for d in desk.record.decisions] == [800, 1600, 56]
    printed = io.StringIO()
    progress = Progress(Console(file=printed, width=200), desk.spec, desk.record, desk.study)
    for decision in desk.record.decisions:
        progress.decided(decision)
    assert "at 800 pairs (200 steps): win_rate 0.600" in printed.getvalue()
    assert "at 56 pairs: : infeasible" not in printed.getvalue()


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
        on = promoted(decision.value, decision.others, decision.direction)
        assert (decision.decision == "continue") is on
