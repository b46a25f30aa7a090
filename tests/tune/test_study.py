"""The journal: what is asked for, and that a new process asks for the same."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces.errors import UserError
from search_spaces.objective import Bound
from search_spaces.spec import Spec, validate
from tune.ray_searcher import StudySearcher
from tune.study import Study, excess


def spec_of(**search: Any) -> Spec:
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {
                "beta": {"choice": [0.1, 0.3]},
                "loss_type": {"choice": [["sigmoid"], ["sigmoid", "sft"]]},
            },
            "budget": {"pairs": 900},
            "search": {"trials": 8, **search},
        }
    )


def finish(study: Study, number: int, value: float) -> None:
    study.measured(number, 900, {"win_rate": value, "kl": 1.0})
    study.tell(number, "budget", None)


def asked(folder: Path, spec: Spec, restart_at: int | None) -> list[dict[str, Any]]:
    study = Study(spec, folder)
    params = []
    for i in range(spec.trials):
        if i == restart_at:
            study = Study(spec, folder)
        number, values = study.ask()
        params.append(values)
        finish(study, number, values["beta"] + 0.01 * i)
    return params


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_resumed_study_asks_for_what_it_would_have_asked_for(tmp_path: Path, sampler: str) -> None:
    spec = spec_of(sampler=sampler)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert asked(tmp_path / "a", spec, None) == asked(tmp_path / "b", spec, 5)


def test_grid_is_each_point_once_with_the_first_ones_first(tmp_path: Path) -> None:
    first = {"beta": 0.3, "loss_type": ["sigmoid", "sft"]}
    spec = spec_of(sampler="grid", try_first=[first])
    assert spec.trials == 4
    params = asked(tmp_path, spec, None)
    assert params[0] == first
    assert len({str(values) for values in params}) == 4


def test_lists_come_back_as_lists(tmp_path: Path) -> None:
    _, params = Study(spec_of(), tmp_path).ask()
    assert params["loss_type"] in (["sigmoid"], ["sigmoid", "sft"])


def test_journal_opens_while_the_search_runs(tmp_path: Path) -> None:
    """What optuna-dashboard does: another storage on the same file."""
    study = Study(spec_of(), tmp_path)
    number, _ = study.ask()
    study.measured(number, 100, {"win_rate": 0.7, "kl": 1.0})
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    other = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert other.trials[number].state == TrialState.RUNNING
    assert other.trials[number].intermediate_values == {100: 0.7}


def test_unfinished_trials_come_first_with_their_checkpoint(tmp_path: Path) -> None:
    study = Study(spec_of(), tmp_path)
    done, params = study.ask()
    finish(study, done, 0.5)
    left, values = study.ask()
    study.note(left, checkpoint="/somewhere/checkpoint_000001")
    searcher = StudySearcher(Study(spec_of(), tmp_path), 3, lambda: None, lambda: False)
    assert searcher.suggest("a") == {
        "number": left,
        "params": values,
        "resume_from": "/somewhere/checkpoint_000001",
    }
    assert searcher.suggest("b")["number"] == 2
    assert searcher.suggest("c") == Searcher.FINISHED


def test_trial_whose_asking_was_cut_short_gets_the_rest_of_its_configuration(
    tmp_path: Path,
) -> None:
    """A driver killed between two parameters; the journal ends inside the record of the second."""
    path = tmp_path / "study.journal"
    number, whole = Study(spec_of(sampler="random"), tmp_path).ask()
    records = path.read_bytes().splitlines(keepends=True)
    stored = [i for i, line in enumerate(records) if b'"param_name"' in line]
    assert len(stored) == 2
    path.write_bytes(b"".join(records[: stored[1]]) + records[stored[1]][:20])
    searcher = StudySearcher(Study(spec_of(sampler="random"), tmp_path), 3, int, bool)
    assert searcher.suggest("a") == {"number": number, "params": whole, "resume_from": None}


def test_damaged_journal_is_named_with_its_line(tmp_path: Path) -> None:
    Study(spec_of(), tmp_path).ask()
    path = tmp_path / "study.journal"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"{{{\n" + b"".join(rest))
    with pytest.raises(UserError, match=r"study.journal is damaged at line 2"):
        Study(spec_of(), tmp_path)


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        (Bound(max=20), 25.0, 5.0),
        (Bound(max=20), 15.0, -5.0),
        (Bound(min=0.1), 0.3, pytest.approx(-0.2)),
        (Bound(min=0.1), 0.0, pytest.approx(0.1)),
        (Bound(min=0, max=1), 3.0, 2.0),
        (Bound(max=20), None, float("inf")),
        (Bound(max=20), float("nan"), float("inf")),
    ],
)
def test_excess_is_positive_when_a_bound_is_broken(
    bound: Bound, value: float | None, expected: float
) -> None:
    assert excess(bound, value) == expected


def test_trial_that_ray_gave_up_comes_next(tmp_path: Path) -> None:
    """Twice; a third time would be once too often."""
    study = Study(spec_of(), tmp_path)
    searcher = StudySearcher(study, 8, lambda: None, lambda: False)
    for attempt in ("a", "b", "c"):
        suggested = searcher.suggest(attempt)
        assert isinstance(suggested, dict) and suggested["number"] == 0
        searcher.on_trial_complete(attempt, error=True)
    study.tell(0, "error", "its process died")
    suggested = searcher.suggest("d")
    assert isinstance(suggested, dict) and suggested["number"] == 1
    finish(study, 1, 0.6)
    searcher.on_trial_complete("d", error=True)
    suggested = searcher.suggest("e")
    assert isinstance(suggested, dict) and suggested["number"] == 2


def test_dashboard_opens_the_journal_while_the_search_runs(tmp_path: Path) -> None:
    """The real optuna-dashboard, in a process of its own, beside a study that goes on."""
    study = Study(spec_of(), tmp_path)
    for value in (0.6, 0.7):
        number, _ = study.ask()
        finish(study, number, value)
    number, _ = study.ask()
    study.measured(number, 300, {"win_rate": 0.3, "kl": 90.0})
    study.tell(number, "constraint", "kl 90 > 20")
    number, _ = study.ask()
    study.measured(number, 100, {"win_rate": 0.55, "kl": 1.0})  # and goes on
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "optuna_dashboard._cli", "--quiet", "--port", str(port)]
    process = subprocess.Popen([*command, str(tmp_path / "study.journal")])
    try:

        def get(path: str) -> dict[str, Any]:
            with urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=30) as answer:
                return json.load(answer)  # type: ignore[no-any-return]

        deadline = time.monotonic() + 60
        while True:
            try:
                (found,) = get("studies")["study_summaries"]
                break
            except URLError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        assert found["study_name"] == "search"
        trials = get(f"studies/{found['study_id']}?after=0")["trials"]
        states = [trial["state"] for trial in trials]
        assert states == ["Complete", "Complete", "Pruned", "Running"]
        assert [v["value"] for v in trials[3]["intermediate_values"]] == [0.55]
        finish(study, number, 0.8)
        while get(f"studies/{found['study_id']}?after=0")["trials"][3]["state"] != "Complete":
            assert time.monotonic() < deadline  # it reads the journal anew every few seconds
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait()
