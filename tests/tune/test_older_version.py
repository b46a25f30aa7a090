"""A run folder that version 0.1.0 wrote still opens, reports, resumes and publishes."""

import tarfile
from pathlib import Path

import pytest
from searching import preftune

from results.report.page import write_report
from results.run.listing import list_runs, open_run
from results.verdict_view import verdict_sentence
from results.views import leaderboard
from trainables.artifacts import checksum

ARCHIVE = Path(__file__).parents[1] / "run_of_0_1.tar.gz"
WHERE = "/tmp/old"  # it ran there: the paths of its inputs are absolute


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder in which the search ran: its inputs, its run and what it prepared."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for name in ("run.json", "spec.yaml"):  # what is prepared is sealed by its checksums
        path = tmp_path / "runs" / "old" / name
        path.write_text(path.read_text().replace(WHERE, str(tmp_path)))
    return tmp_path


def test_it_opens_and_reports(place: Path) -> None:
    (summary,) = list_runs(place / "runs")
    assert (summary.name, summary.state, summary.winner) == ("old", "done", 0)
    run = open_run("old", place / "runs")
    assert run.missing() == []
    assert [row.trial.number for row in leaderboard(run).rows] == [0, 1, 2, 3]
    assert verdict_sentence(run) == (
        "Trial 0 beats the reference on the untouched test split: win_rate 1.00 against 0.50 "
        "(+0.50 [+0.50, +0.50])."
    )
    page = write_report(run).read_text()
    assert "Trial 0 beats the reference" in page and "sigmoid + sft" in page


@pytest.mark.searches
def test_it_resumes_and_publishes(place: Path) -> None:
    before = open_run("old", place / "runs")
    decisions, prepared = before.decisions(), before.info["prepared"]
    preftune(place, "push", "old", "./first")
    best = before.folder / "best" / "model.safetensors"
    assert checksum(place / "first" / "model.safetensors") == checksum(best)

    preftune(place, "resume", "old", "--trials", "+1")
    run = open_run("old", place / "runs")
    assert run.state == "done" and len(run.trials()) == 5
    assert run.info["prepared"] == prepared  # nothing was prepared anew
    assert run.decisions()[: len(decisions)] == decisions
    verdict = run.verdict()
    assert verdict is not None and verdict["passing"] and "sentence" not in verdict
    winner = run.trial(verdict["winner"])
    assert winner.state == "complete"

    preftune(place, "push", "old", "./second")
    assert checksum(place / "second" / "model.safetensors") == checksum(best)
    card = (place / "second" / "README.md").read_text()
    assert "beats the reference on the untouched test split" in card
