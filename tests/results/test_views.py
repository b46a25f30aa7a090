"""The views of a run: what the verdict's numbers say, and the states that a leaderboard shows."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folder import write_lines, write_run

from results import verdict_view, views
from results.run.listing import list_runs, open_run

TEST = {"win_rate": 0.72, "pair_loss": 0.452, "kl": 2.5}


def decided(folder: Path, **fields: Any) -> str:
    """Write a verdict with these fields and return its sentence."""
    verdict = {"outcome": "none", "passing": False, "winner": None, "finalists": []}
    verdict |= {"metric": "win_rate", "direction": "maximize"} | fields
    (folder / "verdict.json").write_text(json.dumps(verdict))
    return verdict_view.verdict_sentence(open_run(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, "mine")


def finalist(number: int, gain: float, **fields: Any) -> dict[str, Any]:
    interval = [gain - 0.03, gain + 0.02]
    return {"number": number, "difference": gain, "interval": interval, "test": TEST} | fields


def test_a_winner_is_compared_with_the_reference(folder: Path) -> None:
    won = {"outcome": "winner", "passing": True, "winner": 3, "params": {}, "reference": {}}
    rows = [finalist(3, 0.22, beats_reference=True), finalist(1, 0.1)]
    assert decided(folder, **won, finalists=rows) == (
        "Trial 3 beats the reference on the untouched test split: win_rate 0.72 against 0.50 "
        "(+0.22 [+0.19, +0.24])."
    )
    # Less of a loss is better: the gain is positive, the loss fell.
    loss = {"metric": "pair_loss", "direction": "minimize", "tied": [1, 4]}
    assert decided(folder, **won, finalists=rows, **loss) == (
        "Trial 3 beats the reference on the untouched test split: pair_loss 0.452 against 0.672 "
        "(-0.220 [-0.240, -0.190]); the split cannot tell it from trial 1 and 4."
    )


@pytest.mark.parametrize(
    "broken",
    [
        ["kl 30", "ended not known over fresh seeds"],  # as version 0.1 wrote them
        [
            {"name": "kl", "value": 30.04, "of": "own"},
            {"name": "ended", "value": None, "of": "fresh_seeds"},
        ],
    ],
)
def test_limits_that_do_not_hold_are_named(folder: Path, broken: list[Any]) -> None:
    assert decided(folder, finalists=[finalist(3, 0.1, broken=broken), finalist(1, 0.0)]) == (
        "No configuration beats the reference on the test split. Outside the search's limits "
        "there: trial 3 (kl 30, ended not known over fresh seeds)."
    )
    run = open_run(folder)
    beats = {row.name: row.cells[-1] for row in verdict_view.verdict(run).rows}
    assert beats["trial 3"] == "no: kl 30, ended not known over fresh seeds"
    assert beats["trial 1"] == "no"


def test_none_without_a_finalist_says_why(folder: Path) -> None:
    assert decided(folder).endswith("no trial reached the last rung within its constraints.")


@pytest.mark.parametrize(
    ("ended_by", "why", "command"),
    [
        ("stop", "the search was stopped", "`preftune resume mine` continues it."),
        ("time", "its time was up", "`preftune resume mine --minutes +60` continues it."),
    ],
)
def test_unverified_names_the_best_trial_and_the_command(
    folder: Path, ended_by: str, why: str, command: str
) -> None:
    pause = {"trial": 4, "pairs": 533, "decision": "pause", "ended_by": ended_by}
    write_lines(folder / "decisions.jsonl", [pause])
    best = {"number": 4, "pairs": 1533, "value": 0.58}
    sentence = decided(folder, outcome="unverified", best=best)
    assert sentence == (
        f"Not verified: {why} before any trial reached the last rung. The best trial so far is "
        f"trial 4: win_rate 0.580 at 1,533 pairs on the validation split. {command}"
    )
    assert list_runs(folder.parent)[0].sentence == sentence
    verdict = verdict_view.verdict(open_run(folder))
    assert (verdict.tone, verdict.rows, verdict.note) == ("none", [], "")
    sentence = decided(folder, outcome="unverified", best=None)
    assert "No trial has been measured yet." in sentence and sentence.endswith(command)


def test_full_training_is_compared_with_the_winner() -> None:
    """0.72 is 0.05 more than the winner's 0.67; of the loss 0.452, 0.1 less than 0.552."""
    full = {
        "outcome": "better",
        "trial": 3,
        "pairs": 48733,
        "winner_pairs": 4000,
        "metric": "win_rate",
        "direction": "maximize",
        "test": TEST,
        "against_reference": {"difference": 0.22, "interval": [0.19, 0.24]},
        "against_winner": {"difference": 0.05, "interval": [0.01, 0.08]},
        "broken": [],
    }
    assert verdict_view.full_sentence(full) == (
        "The model trained on all 48,733 pairs is better than the search's winner, trial 3 with "
        "4,000: win_rate 0.720 against 0.670 (+0.050 [+0.010, +0.080]) on the test split; it beats "
        "the reference (+0.220 [+0.190, +0.240])."
    )
    full |= {"metric": "pair_loss", "direction": "minimize", "outcome": "same"}
    full["against_winner"] = {"difference": 0.1, "interval": [-0.1, 0.2]}
    full["against_reference"] = {"difference": -0.1, "interval": [-0.2, 0.1]}
    full["broken"] = [{"name": "kl", "value": 31.27, "of": "own"}]
    assert verdict_view.full_sentence(full) == (
        "The model trained on all 48,733 pairs is not clearly better or worse than the search's "
        "winner, trial 3 with 4,000: pair_loss 0.452 against 0.552 (-0.100 [-0.200, +0.100]) on "
        "the test split; it does not beat the reference (+0.100 [-0.100, +0.200]). It is outside "
        "the search's limits there: kl 31.3."
    )


def test_a_paused_trial_is_neither_running_nor_missing(tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = write_run(tmp_path, "paused", state="searching")  # trial 4 has no end
    journal = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=journal)
    study._storage.set_trial_user_attr(study.trials[4]._trial_id, "paused", "stop")
    info = json.loads((folder / "run.json").read_text()) | {"state": "stopped"}
    (folder / "run.json").write_text(json.dumps(info))
    run = open_run(folder)
    assert (run.trial(4).state, run.trial(4).value) == ("paused", 0.55)
    assert not [line for line in run.missing() if "without an end" in line]
    endings = [row.ending for row in views.leaderboard(run).rows]
    assert endings == ["complete", "complete", "asha", "paused", "infeasible"]
    assert dict(views.head(run))["trials"].endswith("1 paused")
