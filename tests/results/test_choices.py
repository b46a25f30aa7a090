"""Choices that are lists, mappings or text like JSON: each output has what was trained with."""

import io
import json
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from run_folder import write_run

from results.publish.card import model_card
from results.publish.dpo_yaml import dpo_yaml
from results.publish.public_view import candidate
from results.publish.trial_data import parquet, trial_rows
from results.report.study_plots import comparable
from results.run.listing import open_run
from results.run.run import Run
from results.views import leaderboard
from search_spaces.choices import encode
from search_spaces.errors import UserError

CHOICES: dict[str, list[Any]] = {
    "lr_scheduler_kwargs": [{"num_cycles": 2, "name": "a" * 40}, {"num_cycles": 3}],
    "optim_args": ["[beta]=0.9/x", '"quoted"', "{brace", "plain"],
    "optim_target_modules": [["q_proj", "v_proj"], "[qk]_proj"],
}


def add(folder: Path, params: dict[str, Any]) -> Run:
    """Add a complete trial with these choices, as a search stores them."""
    journal = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=journal)
    study.enqueue_trial({name: encode(name, value) for name, value in params.items()})
    trial = study.ask()
    trial.set_user_attr("ended_by", "budget")
    for name in params:
        trial.suggest_categorical(name, [encode(name, choice) for choice in CHOICES[name]])
    trial.report(0.6, 178)
    study.tell(trial, 0.6)
    return open_run(folder)


@pytest.mark.parametrize("row", range(4))
def test_what_is_published_is_what_was_trained(tmp_path: Path, row: int) -> None:
    trained = {name: choices[row % len(choices)] for name, choices in CHOICES.items()}
    run = add(write_run(tmp_path, "odd"), trained)
    number = len(run.trials()) - 1
    assert run.trial(number).params == trained
    config = yaml.safe_load(dpo_yaml(run, candidate(run, number)))
    assert {name: config[name] for name in trained} == trained
    table = pq.read_table(io.BytesIO(parquet(trial_rows(run)))).to_pylist()[number]
    for name, value in trained.items():
        cell = table[f"params_{name}"]
        assert cell == value or json.loads(cell) == value
    shown = next(r for r in leaderboard(run).rows if r.trial.number == number)
    board = dict(zip(leaderboard(run).params, shown.params, strict=True))
    card = model_card(run, candidate(run, number))
    for name, value in trained.items():
        text = " + ".join(value) if isinstance(value, list) else value
        text = json.dumps(text) if isinstance(text, dict) else text
        assert board[name] == text and f"| `{name}` | `{text}` |" in card


def test_figures_tell_choices_apart_that_begin_alike(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "alike")
    journal = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=journal)
    long = [{"name": "a" * 60, "number": number} for number in range(2)]
    options = [encode("lr_scheduler_kwargs", choice) for choice in long]
    for option in options:
        study.enqueue_trial({"lr_scheduler_kwargs": option})
        trial = study.ask()
        trial.suggest_categorical("lr_scheduler_kwargs", options)
        trial.report(0.6, 178)
        study.tell(trial, 0.6)
    _, trials = comparable(open_run(folder))
    labels = [trial.params["lr_scheduler_kwargs"] for trial in trials[-2:]]
    assert len(set(labels)) == 2 and all(label.startswith("{") for label in labels)


def test_a_choice_of_nobody_is_one_sentence(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "foreign")
    journal = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.load_study(study_name="search", storage=journal)
    trial = study.ask()
    trial.suggest_categorical("optim_args", ["[not json"])
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(UserError, match=r"Trial 6 cannot be read .*optim_args.*restore"):
        open_run(folder).trials()
