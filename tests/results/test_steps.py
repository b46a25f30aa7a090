"""A search with a budget in steps, as its driver records it: no step is shown as a pair."""

from pathlib import Path

import numpy as np
import pytest

from results.publish.public_view import search_of
from results.report.page import page
from results.run import layout
from results.run.listing import open_run
from results.run.run import Run
from results.views import leaderboard
from search_spaces.spec import validate
from trainables.trial_report import Report
from tune.record import create
from tune.rungs import Rungs
from tune.study import Study

BATCHES = {0: 4, 1: 8}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    spec = validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {"per_device_train_batch_size": {"choice": list(BATCHES.values())}},
            "budget": {"steps": 100},
            "search": {"trials": 2, "scheduler": "none", "sampler": "grid"},
            "storage": str(tmp_path),
        }
    )
    record = create(spec, "stepped", True, "preftune run stepped.yaml")
    study = Study(spec, record.folder)
    rungs = Rungs(spec.objective, spec.rungs_pairs, False, study, record)
    for number, batch in BATCHES.items():
        study.ask()
        measures = {"win_rate": 0.6 + 0.1 * number, "kl": 2.0}
        deltas = np.zeros(2, np.float32)
        report = Report(step=100, pairs=100 * batch, rung=0, measures=measures, deltas=deltas)
        assert not rungs.reported(number, report)
    return open_run(record.folder)


def test_pairs_are_those_seen_and_rungs_are_in_steps(run: Run) -> None:
    assert [trial.pairs for trial in run.trials()] == [400, 800]
    assert [trial.rungs for trial in run.trials()] == [{100: 0.6}, {100: 0.7}]
    assert [row.trial.number for row in leaderboard(run).rows] == [1, 0]
    html = page(run)
    assert "measured at 100 steps" in html and "100 pairs" not in html
    assert search_of(run).budget == "100 steps"


def test_steps_are_not_shown_for_pairs_that_are_not_known(run: Run) -> None:
    (run.trial_folder(0) / layout.MEASURES).unlink()
    reopened = open_run(run.folder)
    assert [trial.pairs for trial in reopened.trials()] == [0, 800]
