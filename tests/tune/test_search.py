"""Whole searches through real Ray, small enough for a test."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from searching import PLANTED, lines, preftune, start, story, wait_for

from results.run.listing import open_run
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.spec import load
from trainables.data.preferences import split_rows
from trainables.data.sources import load_rows
from tune.record import create
from tune.warm_start import earlier_run, warm_study

TINY = """
model: quickstart
dataset: {path: quickstart, validation_pairs: 64}
judge: quickstart
space:
  learning_rate: {loguniform: [1.0e-4, 4.0e-4]}
  beta: {loguniform: [0.3, 1.0]}
  per_device_train_batch_size: {choice: [4, 8]}
training: {max_length: 128, loss_type: [sigmoid, sft]}
evaluation: {prompts: 32, max_new_tokens: 24}
budget: {pairs: 144}
search: {trials: 5, concurrent: 1, seed: 7}
verify: {finalists: 2, seeds: 1, prompts: 128, pairs: 128}
resources: {gpu: 0}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the spec; its runs share what was prepared."""
    folder = tmp_path_factory.mktemp("searches")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def held(folder: Path) -> int:
    """Bytes of the files in a folder; what is removed meanwhile counts no more."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total


@pytest.fixture(scope="module")
def watched(place: Path) -> tuple[Run, str, int]:
    """A search that nothing disturbed, what it printed, and the most bytes that its trials kept."""
    folder, most = place / "runs" / "whole", 0
    process = start(place, "run", "tiny.yaml", "--name", "whole")
    while process.poll() is None:
        most = max(most, held(folder / "tune"))
        time.sleep(0.05)
    printed = process.communicate()[0]
    assert process.returncode == 0 and "Traceback" not in printed, printed
    return open_run(folder), printed, most


@pytest.fixture(scope="module")
def whole(watched: tuple[Run, str, int]) -> tuple[Run, str]:
    """The same search."""
    return watched[:2]


def test_run_ends_with_leaderboard_verdict_and_the_next_lines(whole: tuple[Run, str]) -> None:
    run, printed = whole
    assert run.state == "done" and run.missing() == []
    assert "5 of 5 trials" in printed and "reference" in printed and "Verdict" in printed
    assert "preftune chat whole" in printed and "ray get-auth-token" in printed
    assert len(printed.splitlines()) < 80  # no wall of worker logs


def test_run_folder_holds_what_the_docs_list(whole: tuple[Run, str]) -> None:
    run, _ = whole
    for name in ("spec.yaml", "run.json", "data_report.json", "study.journal", "decisions.jsonl"):
        assert (run.folder / name).is_file(), name
    assert list((run.folder / "tune").rglob("events.out.tfevents*"))  # TensorBoard
    for trial in run.trials():
        folder = run.folder / "trials" / str(trial.number)
        measured = {path.name for path in folder.iterdir()}
        assert {"measures.jsonl", "deltas.npz", "samples.jsonl", "log.txt"} <= measured
    report = run.data_report()
    assert report is not None
    assert run.info["reference"]["validation"]["win_rate"] == 0.5
    # Weights of the two finalists alone: every other trial's checkpoint is gone.
    assert len(list((run.folder / "tune").rglob("model.safetensors"))) <= 2
    assert not list(run.folder.rglob("optimizer.pt"))


def test_disk_holds_what_the_design_reckons(watched: tuple[Run, str, int]) -> None:
    """A checkpoint of what runs, one more while it is replaced, weights of the two finalists."""
    run, _, most = watched
    assert run.best is not None
    weights = (run.best / "model.safetensors").stat().st_size
    adam, finalists, concurrent = 2 * weights, 2, 1
    reckoned = (concurrent + 1) * (weights + adam) + finalists * weights
    print(f"{most / 1e6:.1f} MB held, {reckoned / 1e6:.1f} MB reckoned")  # noqa: T201
    assert weights + adam < most < 1.1 * reckoned  # tokenizers and events come on top


def test_token_of_the_environment_is_written_nowhere(whole: tuple[Run, str], place: Path) -> None:
    """Not in a log, a spec, Ray's own files, the report, the card or what was printed."""
    run, printed = whole
    preftune(place, "report", "whole")
    preftune(place, "push", "whole", "./for_the_token")
    read = [path for path in place.rglob("*") if path.is_file()]
    assert run.folder / "report.html" in read and len(read) > 50
    assert PLANTED not in printed
    assert [path for path in read if PLANTED.encode() in path.read_bytes()] == []


def test_winner_is_a_plain_folder_that_transformers_loads(whole: tuple[Run, str]) -> None:
    run, _ = whole
    verdict = run.verdict()
    assert verdict is not None and verdict["passing"], verdict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    best = run.folder / "best"
    tokenizer = AutoTokenizer.from_pretrained(best)
    model = AutoModelForCausalLM.from_pretrained(best)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )["input_ids"]
    assert model.generate(ids, max_new_tokens=5, do_sample=False).shape[1] > ids.shape[1]
    kinds = {path.suffix for path in best.iterdir()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".md", ".yaml"}


@pytest.mark.searches
def test_killed_and_resumed_search_is_the_undisturbed_one(
    place: Path, whole: tuple[Run, str]
) -> None:
    """A dead worker, then SIGKILL of the driver: same trials, decisions and winner."""
    folder = place / "runs" / "torn"
    decisions = folder / "decisions.jsonl"
    process = start(place, "run", "tiny.yaml", "--name", "torn")
    wait_for(lambda: len(lines(decisions)) >= 3, process)
    worker = next(
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "ImplicitFunc" in " ".join(child.cmdline())
    )
    worker.kill()
    known = len(lines(decisions))
    wait_for(lambda: len(lines(decisions)) > known, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    for child in family:  # a rebooted head leaves no Ray daemon behind either
        if child.is_running():
            child.kill()
    crashed = open_run(folder)
    assert crashed.state == "crashed" and crashed.missing()
    assert "crashed" in preftune(place, "list")

    preftune(place, "resume", "torn")
    torn = open_run(folder)
    assert torn.state == "done"
    assert story(torn) == story(whole[0])
    assert "is done" in preftune(place, "resume", "torn")


@pytest.mark.searches
def test_wild_search_ends_in_no_configuration_and_push_refuses(place: Path) -> None:
    """The original project's three, at a thousand times their learning rates.

    Without a limit on kl and without early stopping: all three are trained to the end and verified.
    """
    first = [
        {"learning_rate": rate, "per_device_train_batch_size": batch, "beta": beta, "optim": optim}
        for rate, batch, beta, optim in (
            (0.5, 4, 0.1, "adamw_torch"),
            (1.0, 8, 0.2, "rmsprop"),
            (2.0, 8, 0.3, "adamw_torch"),
        )
    ]
    printed = preftune(
        place,
        "run",
        "tiny.yaml",
        "--name",
        "wild",
        *("--set", "space.learning_rate={choice: [0.5, 1.0, 2.0]}"),
        *("--set", "space.beta={choice: [0.1, 0.2, 0.3]}"),
        *("--set", "space.optim={choice: [adamw_torch, rmsprop]}"),
        *("--set", f"search.try_first={json.dumps(first)}"),
        *("--set", "search.trials=3"),
        *("--set", "search.scheduler=none"),
        *("--set", "objective.constraints.kl=null"),
        *("--set", "verify.finalists=1"),
    )
    tried = [trial.params for trial in open_run(place / "runs" / "wild").trials()]
    assert tried == first
    assert "No configuration beats the reference" in printed
    run = open_run(place / "runs" / "wild")
    verdict = run.verdict()
    assert verdict is not None and verdict["outcome"] == "none" and not verdict["passing"]
    assert not (run.folder / "best").exists()
    assert "--force" in preftune(place, "push", "wild", "./published", code=1)
    assert not (place / "published").exists()


def test_winner_is_pushed_to_a_folder_once(place: Path, whole: tuple[Run, str]) -> None:
    printed = preftune(place, "push", "whole", "./winner")
    assert "model.safetensors" in printed
    names = {path.name for path in (place / "winner").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "chat_template.jinja"} <= names


def test_show_and_list(place: Path, whole: tuple[Run, str]) -> None:
    assert "whole" in preftune(place, "list")
    shown = preftune(place, "show", "whole")
    assert "Verdict" in shown and "learning" in shown
    one = preftune(place, "show", "whole", "--trial", "0")
    assert "0 of run whole" in one
    assert "77" in preftune(place, "show", "whole", "--trial", "77", code=1)


@pytest.mark.searches
def test_poisoned_test_split_changes_nothing_before_verification(
    whole: tuple[Run, str], place: Path
) -> None:
    """The same rows, but for those of the test split: answers swapped, on each other's prompts."""
    rows = load_rows("quickstart").data.to_list()
    poisoned_rows = list(rows)
    test = split_rows(len(rows), 0.2, 64, 42)["test"].tolist()
    for number, other in zip(test, [*test[1:], test[0]], strict=True):
        row = rows[number]
        swapped = {"chosen": row["rejected"], "rejected": row["chosen"]}
        poisoned_rows[number] = {"prompt": rows[other]["prompt"], **swapped}
    path = place / "poisoned.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in poisoned_rows))
    preftune(place, "run", "tiny.yaml", "--name", "poisoned", "--set", f"dataset.path={path}")
    run, clean = open_run(place / "runs" / "poisoned"), whole[0]

    def split(run: Run, name: str) -> bytes:
        data = run.storage / "prepared" / run.info["prepared"]["data"]
        return (data / f"{name}.parquet").read_bytes()

    assert split(run, "train") == split(clean, "train")
    assert split(run, "test") != split(clean, "test")
    searched, undisturbed = story(run), story(clean)
    assert searched["trials"] == undisturbed["trials"]
    assert searched["decisions"] == undisturbed["decisions"]
    for trial in clean.trials():
        assert run.samples(trial.number) == clean.samples(trial.number)
    # And the poison was there to be found: on the test split the order of the pairs is reversed.
    verdicts = [run.verdict() for run in (run, clean)]
    assert all(verdicts)
    poisoned, sound = (v["finalists"][0]["test"]["accuracy"] for v in verdicts if v)
    assert poisoned < 0.5 < sound


@pytest.mark.searches
def test_warm_start_takes_an_earlier_runs_trials_in(whole: tuple[Run, str], place: Path) -> None:
    """Two trials more, beside the five that are there already, weights included."""
    earlier, _ = whole
    settings = ("search.warm_start=whole", "search.trials=2")
    sets = [word for setting in settings for word in ("--set", setting)]
    printed = preftune(place, "run", "tiny.yaml", "--name", "warm", *sets)
    assert "taken from run whole: 5 trials, 0 left out" in printed and "2 of 2 trials" in printed
    run = open_run(place / "runs" / "warm")
    assert run.state == "done" and run.missing() == []
    for old, new in zip(earlier.trials(), run.trials(), strict=False):
        assert new.attrs["taken_from"] == f"whole, trial {old.number}"
        assert (new.params, new.value, new.state) == (old.params, old.value, old.state)
        assert new.measures == old.measures and new.rungs == old.rungs
    assert ["taken_from" in t.attrs for t in run.trials()] == [True] * 5 + [False] * 2
    assert run.decisions()[: len(earlier.decisions())] == earlier.decisions()
    # ASHA compares the new trials with the earlier ones, and any of them may win.
    first = next(d for d in run.decisions() if d["trial"] == 5)
    if first["decision"] != "infeasible":
        at_first_rung = [d["value"] for d in earlier.decisions() if d["rung"] == 0]
        assert first["others"] == at_first_rung
    complete = sorted((t.value for t in run.trials() if t.state == "complete"), reverse=True)
    verdict = run.verdict()
    assert verdict is not None
    finalists = [run.trial(f["number"]).value for f in verdict["finalists"]]
    assert finalists == complete[:2]
    for finalist in verdict["finalists"]:  # whatever becomes of the earlier run
        checkpoint = run.folder / run.trial(finalist["number"]).attrs["checkpoint"]
        assert checkpoint.is_relative_to(run.folder) and (checkpoint / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset.seed=43", "another dataset"),
        ("judge=null", "another judge; another objective"),
        ("objective.constraints.kl.max=30", "another objective"),
        ("evaluation.prompts=16", "another evaluation"),
        ("budget.pairs=288", r"another budget; rungs at \[16, 48, 144\] pairs"),
        ("search.seed=8", "search.seed 7, not 8"),
        ("search.warm_start=nowhere", "There is no run 'nowhere'"),
    ],
)
def test_warm_start_from_another_yardstick_is_refused(
    whole: tuple[Run, str], place: Path, tmp_path: Path, override: str, said: str
) -> None:
    earlier, _ = whole
    sets = [f"search.warm_start={earlier.folder}", override, f"storage={tmp_path}"]
    spec = load(str(place / "tiny.yaml"), sets)
    record = create(spec, "warm", True, "test")
    with pytest.raises(UserError, match=said):
        earlier_run(spec, record)


@pytest.mark.parametrize(
    ("override", "prepared", "said"),
    [
        ("search.trials=9", {"data": "data-other"}, "another data .data-.*, not data-other"),
        ("space.learning_rate={loguniform: [1.0e-9, 1.0e-8]}", {}, "none of the 5 trials"),
        ("training={max_length: 128, loss_type: [sigmoid]}", {}, "none of the 5 trials"),
    ],
)
def test_warm_start_with_nothing_to_take_is_refused(
    whole: tuple[Run, str],
    place: Path,
    override: str,
    prepared: dict[str, str],
    said: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    earlier, _ = whole
    spec = load(str(place / "tiny.yaml"), [override, f"storage={place / 'runs'}"])
    record = create(spec, tmp_path_factory.mktemp("warm").name, True, "test")
    record.update(prepared={**earlier.info["prepared"], **prepared})
    with pytest.raises(UserError, match=said):
        warm_study(spec, record, earlier)
    assert not (record.folder / "study.journal").exists()
