"""The journal: what is asked for, and that a new process asks for the same."""

import json
import math
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

from search_spaces.choices import encode
from search_spaces.domains import Domain
from search_spaces.errors import UserError
from search_spaces.objective import WORST
from search_spaces.optuna_space import distributions, grid
from search_spaces.spec import Spec, validate
from tune.ray_searcher import StudySearcher
from tune.study import Study


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


def test_a_large_grid_is_queued_point_by_point(tmp_path: Path) -> None:
    """Ten thousand points, of which opening the study stores none."""
    spec = spec_of(sampler="grid", trials=None)
    large = {
        "per_device_train_batch_size": Domain.model_validate({"int": [1, 2_500]}),
        **spec.space,
    }
    study = Study(spec.model_copy(update={"space": large}), tmp_path)
    assert len((tmp_path / "study.journal").read_bytes().splitlines()) < 5
    asked = [study.ask()[1] for _ in range(3)]
    assert [params["per_device_train_batch_size"] for params in asked] == [1, 1, 1]
    assert len({str(params) for params in asked}) == 3


def rest(folder: Path, spec: Spec) -> list[str]:
    """Return the configurations that a new driver runs after those that have ended."""
    study = Study(spec, folder)
    params = [study.ask_again(number) for number in study.unfinished()]
    while study.started() < spec.trials:
        params.append(study.ask()[1])
    return [str(values) for values in params]


def test_each_point_of_a_grid_once_wherever_a_driver_was_killed(tmp_path: Path) -> None:
    spec = spec_of(sampler="grid", try_first=[{"beta": 0.3, "loss_type": ["sigmoid"]}])
    study = Study(spec, tmp_path)
    whole = []
    for value in (0.5, 0.6, 0.7, 0.8):
        number, params = study.ask()
        whole.append(str(params))
        finish(study, number, value)
    assert len(set(whole)) == 4 and whole[0] == str({"beta": 0.3, "loss_type": ["sigmoid"]})
    records = (tmp_path / "study.journal").read_bytes().splitlines(keepends=True)
    for end in range(2, len(records)):
        place = tmp_path / str(end)
        place.mkdir()
        (place / "study.journal").write_bytes(b"".join(records[:end]))
        ended = sum(trial.state.is_finished() for trial in Study(spec, place).trials())
        assert rest(place, spec) == whole[ended:], end


def test_grid_that_an_older_version_queued_at_once_is_not_queued_again(tmp_path: Path) -> None:
    spec = spec_of(sampler="grid")
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    older = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    for point in grid(spec.space)[:3]:  # it was killed before the last one
        older.enqueue_trial({name: encode(name, value) for name, value in point.items()})
    assert rest(tmp_path, spec) == [str(point) for point in grid(spec.space)]


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


def test_nothing_waits_for_a_search_that_is_over(tmp_path: Path) -> None:
    """What was left running is paused, and given again to the driver that resumes."""
    study = Study(spec_of(), tmp_path)
    number, _ = study.ask()
    searcher = StudySearcher(Study(spec_of(), tmp_path), 3, lambda: None, lambda: True)
    assert searcher.suggest("a") == Searcher.FINISHED
    study.pause("time")
    assert study.trial(number).user_attrs["paused"] == "time"
    searcher = StudySearcher(study, 3, lambda: None, lambda: False)
    assert searcher.suggest("a")["number"] == number
    assert not study.paused(number)


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


def diverging_share(folder: Path, seed: int, trials: int = 30) -> float:
    """Return the share of TPE's draws above a learning rate of 1e-2, a fifth of the space.

    Nothing is feasible: training diverges there, and below it kl is at least thrice its limit.
    """
    spec = validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {
                "learning_rate": {"loguniform": [1e-6, 1e-1]},
                "beta": {"loguniform": [0.01, 1]},
            },
            "budget": {"pairs": 900},
            "search": {"trials": trials, "seed": seed},
        }
    )
    folder.mkdir()
    study = Study(spec, folder)
    drawn = []
    for _ in range(trials):
        number, params = study.ask()
        diverges = params["learning_rate"] > 1e-2
        drawn.append(diverges)
        if diverges:
            study.diverged(number)
        else:
            kl = 60 + 20 * math.log10(params["learning_rate"] / 1e-6)
            study.measured(number, 100, {"win_rate": 0.5, "kl": kl})
        study.tell(number, "nan" if diverges else "constraint", "a reason")
    sampled = drawn[10:]  # the first ten are random
    return sum(sampled) / len(sampled)


def test_tpe_does_not_seek_divergence_while_nothing_is_feasible(tmp_path: Path) -> None:
    shares = [diverging_share(tmp_path / str(seed), seed) for seed in range(4)]
    assert sum(shares) / len(shares) <= 0.2


def older_journal(folder: Path) -> None:
    """Write what version 0.1 wrote: distances from bounds, 1.0 for a NaN."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    for constraints in ({"finite": 1.0}, {"kl": 40.0}, {"finite": 1.0, "kl": 1e9}, {}):
        trial = study.ask(distributions(spec_of().space))
        trial.report(0.5, 100)
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        study.tell(trial, state=TrialState.PRUNED)


def test_nan_of_an_older_journal_is_the_worst_as_well(tmp_path: Path) -> None:
    """However often it is opened, and next to trials of this version."""
    older_journal(tmp_path)
    for _ in range(2):
        study = Study(spec_of(), tmp_path)
        found = [trial.constraints for trial in study.trials()][:4]
        assert found == [{"finite": WORST}, {"kl": 2.0}, {"finite": WORST, "kl": WORST}, {}]
        number, _ = study.ask()
        study.measured(number, 100, {"win_rate": 0.5, "kl": 30.0})
        study.tell(number, "constraint", "kl 30 > 20")
        assert study.trial(number).constraints == {"kl": 0.5}
        assert Study(spec_of(), tmp_path).trial(number).constraints == {"kl": 0.5}


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
