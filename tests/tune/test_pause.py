"""Trials that a stop or the end of the time pauses, and that continue where they were."""

import json
import re
from pathlib import Path

import pytest
from faulty import laid_out, searched, settings, trained
from rich.console import Console
from searching import lines, preftune, start, story, wait_for

from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.spec import load
from tune.record import create
from tune.resume import reopened, request_stop

FEW = settings("search.trials=3", "verify.finalists=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the first trial takes its time, once it is asked to."""
    return laid_out(tmp_path_factory.mktemp("paused") / "place")


def unfinished(run: Run) -> dict[int, str]:
    """Return why each trial without an end is paused."""
    trials = [trial for trial in run.trials() if trial.ended_by is None]
    return {trial.number: trial.attrs.get("paused") for trial in trials}


@pytest.mark.searches
def test_stopped_search_continues_as_if_it_had_never_stopped(place: Path) -> None:
    """Same trials, decisions and winner; and no pair is trained on twice."""
    preftune(place, "run", "spec.yaml", "--name", "whole", *FEW)
    whole, pairs = open_run(place / "runs" / "whole"), searched(trained(place))

    slow = {"kind": "slow", "place": "step", "step": 0, "once": False}
    (place / "faults.json").write_text(json.dumps({"trial_0000": slow}))
    process = start(place, "run", "spec.yaml", "--name", "halt", *FEW)
    wait_for((place / "pairs.log").exists, process)  # the first trial has begun
    request_stop("halt", str(place / "runs"), Console(quiet=True))
    printed = process.communicate()[0]
    assert process.returncode == 0 and "Traceback" not in printed, printed
    (place / "faults.json").write_text("{}")
    run = open_run(place / "runs" / "halt")
    assert (run.state, unfinished(run)) == ("stopped", {0: "stop"})
    assert "1 paused" in printed and "a stop was asked for" in printed
    (decision,) = [d for d in run.decisions() if d["decision"] == "pause"]
    assert (decision["trial"], decision["ended_by"]) == (0, "stop")
    checkpoint = run.folder / run.trial(0).attrs["checkpoint"]
    assert (checkpoint / "optimizer.pt").is_file()
    verdict = run.verdict()
    assert verdict is not None and not verdict["passing"]

    preftune(place, "resume", "halt")
    run = open_run(place / "runs" / "halt")
    assert (run.state, unfinished(run)) == ("done", {})
    assert searched(trained(place)) == pairs
    resumed, undisturbed = story(run), story(whole)
    resumed["decisions"].remove({k: v for k, v in decision.items() if k != "time"})
    assert resumed == undisturbed


@pytest.mark.searches
def test_search_whose_time_is_up_gets_more(place: Path) -> None:
    limited = [*FEW, *settings("search.trials=1", "search.minutes=1e-9")]
    preftune(place, "run", "spec.yaml", "--name", "late", *limited)
    run = open_run(place / "runs" / "late")
    assert (run.state, run.trials()) == ("stopped", [])
    assert "--minutes +60`" in preftune(place, "resume", "late")
    preftune(place, "resume", "late", "--minutes", "+600")
    run = open_run(place / "runs" / "late")
    assert run.state == "done" and [trial.state for trial in run.trials()] == ["complete"]
    assert run.spec["search"]["minutes"] == pytest.approx(600)


@pytest.mark.parametrize("minutes", ["0", "-3", "many", "nan", "inf", "1e9"])
def test_minutes_to_add_must_be_a_number_above_zero(place: Path, minutes: str) -> None:
    where = f"storage={place / 'elsewhere'}"
    spec = load(str(place / "spec.yaml"), ["search.minutes=1", where])
    record = create(spec, f"t{len(list(place.glob('elsewhere/*')))}", True, "test")
    assert record.lock is not None
    record.lock.release()
    with pytest.raises(UserError, match=rf"--minutes {re.escape(minutes)}: .* such as \+60"):
        reopened(record.folder.name, spec.storage, None, minutes, Console(quiet=True))
    assert load(str(record.folder / "spec.yaml")).search.minutes == 1


def test_a_search_without_limit_gets_no_minutes(place: Path) -> None:
    spec = load(str(place / "spec.yaml"), [f"storage={place / 'unlimited'}"])
    record = create(spec, "t", True, "test")
    assert record.lock is not None
    record.lock.release()
    with pytest.raises(UserError, match="has no limit in time.*Leave --minutes out"):
        reopened("t", spec.storage, None, "+60", Console(quiet=True))
    assert lines(record.folder / "decisions.jsonl") == []
