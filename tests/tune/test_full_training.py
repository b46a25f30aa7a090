"""The winner trained on all pairs: what it brings, what interrupts it, what refuses it."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from rich.console import Console
from run_folder import full_verdict, write_run
from searching import HANG, end_with_family, preftune, start, wait_for

from results.publish.card import published_texts
from results.publish.public_view import candidate
from results.run.listing import open_run
from results.run.run import Run
from results.verdict_view import full_sentence
from search_spaces.errors import UserError
from search_spaces.spec import load, validate
from trainables.artifacts import checksum, seal, write_json
from trainables.evaluation.metrics import reference_measures
from trainables.prepared import Split
from trainables.quickstart.world import rows
from trainables.reference_files import save_logps
from trainables.trial_report import Report
from tune.cluster.connection import connected
from tune.cluster.latest_checkpoint import newest
from tune.cluster.shipping import Shipment
from tune.full_training import Job, _drop_damaged, _on_test_split, train_winner
from tune.inputs import look_up
from tune.prepare import Preparation, prepare
from tune.record import claim, create, read_lines
from tune.study import Study
from tune.verdict import Measured, compare

SEARCH = """
model: quickstart
dataset: {{path: {folder}/pairs.jsonl, validation_pairs: 32}}
judge: {folder}/judge.py
space: {{learning_rate: {{choice: [3.0e-4]}}}}
training: {{max_length: 128, beta: 0.5, loss_type: [sigmoid, sft], per_device_train_batch_size: 4}}
evaluation: {{prompts: 16, max_new_tokens: 24}}
budget: {{pairs: 144}}
search: {{trials: 1, scheduler: none}}
verify: {{finalists: 1, seeds: 1, prompts: 128}}
resources: {{gpu: 0}}
storage: {folder}/runs
"""
# The quickstart's judge, which a file beside it breaks; another one slows training down.
JUDGE = """
import time
from pathlib import Path
from transformers import Trainer
from trainables.quickstart.judge import judge as exact

quick = Trainer.training_step

def step(self, *args, **kwargs):
    time.sleep(0.5)
    return quick(self, *args, **kwargs)

if Path(__file__).with_name("slow").exists():
    Trainer.training_step = step

def judge(prompts, answers):
    if Path(__file__).with_name("broken").exists():
        raise OverflowError("a score is too large")
    return exact(prompts, answers)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with two runs that are ready to train on.

    All but the search: its data are prepared by Ray, its one trial is said to equal the reference.
    """
    folder = tmp_path_factory.mktemp("trainings")
    (folder / "spec.yaml").write_text(SEARCH.format(folder=folder))
    (folder / "judge.py").write_text(JUDGE)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()[:1000]))
    spec = load(str(folder / "spec.yaml"))
    record = create(spec, "whole", True, "preftune run spec.yaml")
    with connected(None) as cluster:
        prepared = prepare(
            spec, look_up(spec), record, cluster, Shipment(cluster.node), lambda text: None
        )
    study = Study(spec, record.folder)
    number, params = study.ask()
    measures = {"win_rate": 0.5, "kl": 0.0}
    study.measured(number, 144, measures)
    study.tell(number, "budget", None)
    own = {"measures": measures, "gains": [0.0] * 128, "scores": [0.0] * 128}
    (record.folder / "verify").mkdir()
    write_json(record.folder / "verify" / f"{number}-own.json", own)
    assert prepared.test.answers is not None
    verdict = {
        **{"outcome": "winner", "passing": True},
        **{"winner": number, "params": params, "metric": "win_rate", "direction": "maximize"},
        "reference": reference_measures(read_lines(prepared.test.answers)),
        "finalists": [{"number": number, "params": params, "test": measures}],
    }
    write_json(record.folder / "verdict.json", verdict)
    record.update(state="done")
    assert record.lock is not None
    record.lock.release()
    shutil.copytree(record.folder, record.folder.with_name("torn"))
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[Run, str]:
    """A training that nothing disturbed, and what it printed."""
    printed = preftune(place, "train", "whole")
    return open_run(place / "runs" / "whole"), printed


def content(folder: Path) -> dict[str, str]:
    """The files of a folder, the driver's lock apart."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): checksum(path) for path in files}


@pytest.mark.searches
def test_winner_is_trained_on_all_pairs_and_compared(whole: tuple[Run, str]) -> None:
    run, printed = whole
    full, report = run.full(), run.data_report()
    assert full is not None and report is not None
    pairs = report["splits"]["train"]["kept"]
    assert (full["trial"], full["pairs"], full["winner_pairs"]) == (0, pairs, 144)
    assert full["passing"] and full["broken"] == []
    assert full_sentence(full) in printed
    assert f"The model trained on all {pairs:,} pairs is " in printed
    assert full["outcome"] == "better" and "it beats the reference" in printed
    assert f"win_rate {full['test']['win_rate']:.3f} against 0.500 (+0." in printed
    assert "preftune chat runs/whole/full" in printed
    assert f" of {pairs:,} pairs: loss 0." in printed
    low, high = full["against_winner"]["interval"]
    assert low <= full["against_winner"]["difference"] <= high
    assert run.state == "done" and run.info["seconds"]["train"] == full["seconds"] > 0
    assert not (run.folder / "full.checkpoint").exists()
    assert "loss" in (run.trial_folder(0) / "log.txt").read_text()


@pytest.mark.searches
def test_its_folder_is_a_model_that_says_what_it_is(whole: tuple[Run, str]) -> None:
    run, _ = whole
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run.folder / "full"
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert {path.suffix for path in folder.iterdir()} <= {
        *(".json", ".safetensors", ".jinja", ".md", ".yaml")
    }
    assert folder.joinpath("model.safetensors").stat().st_mode & 0o077 == 0o044


@pytest.mark.searches
def test_second_call_changes_nothing(place: Path, whole: tuple[Run, str]) -> None:
    run, _ = whole
    before = content(run.folder)
    assert "trained on all pairs already" in preftune(place, "train", "whole")
    assert content(run.folder) == before


@pytest.mark.chaos
def test_training_survives_dead_processes_a_notice_a_ctrl_c_and_a_broken_judge(
    place: Path, whole: tuple[Run, str]
) -> None:
    """Ends with the weights and figures of the undisturbed training, bit by bit."""
    folder = place / "runs" / "torn"
    home = folder / "full.checkpoint" / "0"

    def seen() -> int:
        names = os.listdir(home) if home.exists() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    process = start(place, "train", "torn")
    wait_for(lambda: seen() > 0, process)
    worker = next(
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "learn" in " ".join(child.cmdline())
    )
    worker.kill()
    known = seen()
    wait_for(lambda: seen() > known, process)
    end_with_family(process)
    known = seen()
    assert newest(home) == home / str(known)
    assert open_run(folder).full() is None and not (folder / "full").exists()

    (place / "slow").touch()  # a checkpoint in ten seconds
    process = start(place, "train", "torn")
    wait_for(lambda: seen() > known, process)
    (place / "slow").unlink()
    regular = seen()
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 130 and "Traceback" not in printed, printed
    assert f"continuing from {known} of" in printed
    assert "running trials (1) save a checkpoint first" in printed
    assert "Interrupted. Resume with: preftune train torn\n" in printed
    full = whole[0].full()
    assert full is not None and regular < seen() < regular + full["pairs"] / 10

    known = seen()
    process = start(place, "train", "torn")
    wait_for(lambda: seen() > known, process)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 130 and "Traceback" not in printed, printed
    assert f"continuing from {known} of" in printed
    assert "Interrupted. Resume with: preftune train torn\n" in printed

    (place / "broken").touch()
    printed = preftune(place, "train", "torn", code=1)
    assert "OverflowError: a score is too large" in printed and "`preftune train torn`" in printed
    assert {path.name for path in folder.glob("full*")} == {"full.checkpoint"}
    (place / "broken").unlink()

    assert "continuing from" in preftune(place, "train", "torn")
    torn, run = open_run(folder), whole[0]

    def timeless(full: dict[str, Any] | None) -> dict[str, Any]:
        assert full is not None
        varying = ("seconds", "created", "peak_memory_mb", "train_loss")
        test = {k: v for k, v in full["test"].items() if k not in varying}
        return {**{k: v for k, v in full.items() if k not in varying}, "test": test}

    assert timeless(torn.full()) == timeless(run.full())
    for name in ("model.safetensors", "dpo.yaml"):
        sums = [checksum(r.folder / "full" / name) for r in (torn, run)]
        assert (sums[0] == sums[1]) is (name != "dpo.yaml")  # which names the run
    assert torn.state == "done" and not home.parent.exists()


def quiet() -> Console:
    return Console(quiet=True)


def prepared(folder: Path, stage: str) -> Path:
    """Return a prepared folder of a run."""
    name = json.loads((folder / "run.json").read_text())["prepared"][stage]
    return folder.parent / "prepared" / str(name)


def with_pairs(folder: Path, pairs: int) -> None:
    """Give a run as many training pairs."""
    data = prepared(folder, "data")
    table = pa.table({"prompt_ids": [[1]] * pairs})
    pyarrow.parquet.write_table(table, data / "train.parquet")
    seal(data)


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """The folder of a run whose winner can be trained on 2,000 pairs: it has seen 1,600."""
    folder = write_run(tmp_path)
    with_pairs(folder, 2000)
    return folder


def state(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        info = json.loads((folder / "run.json").read_text())
        write_json(folder / "run.json", {**info, "state": name, "pid": os.getpid()})

    return change


def no_winner(folder: Path) -> None:
    verdict = json.loads((folder / "verdict.json").read_text())
    verdict |= {"passing": False, "winner": None, "outcome": "none"}
    write_json(folder / "verdict.json", verdict)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no verdict": (lambda f: (f / "verdict.json").unlink(), "has no winner to train on all pairs"),
    "not passing": (no_winner, "has no winner .* No configuration beats the reference"),
    "crashed": (state("searching"), "'crashed'.*finish it with `preftune resume .*` first"),
    "interrupted": (
        state("interrupted"),
        "'interrupted'.*finish it with `preftune resume .*`",
    ),
    "no spec": (lambda f: (f / "spec.yaml").unlink(), "has no spec.yaml"),
    "no data": (lambda f: shutil.rmtree(prepared(f, "data")), "prepared.*is gone"),
    "other data": (
        lambda f: (prepared(f, "data") / "train.parquet").write_bytes(b"PAR1"),
        "prepared.*has changed",
    ),
    "other judge": (
        lambda f: seal(prepared(f, "answers"), inputs={"judge": "another"}),
        "the judge 'quickstart' is not the one",
    ),
    "no measurement": (lambda f: shutil.rmtree(f / "verify"), "0-own.json is missing"),
    "all pairs": (
        lambda f: with_pairs(f, 1600),
        "trial 0, the winner of .*, has seen all 1,600 training pairs: there is nothing more",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_one_sentence(ended: Path, name: str) -> None:
    change, sentence = REFUSALS[name]
    change(ended)
    before = content(ended)
    with pytest.raises(UserError, match=sentence):
        train_winner(open_run(ended), None, quiet())
    assert content(ended) == before


def test_refused_while_another_process_has_the_run(ended: Path) -> None:
    lock = claim(ended)
    with pytest.raises(UserError, match=rf"being trained by process {os.getpid()} on"):
        train_winner(open_run(ended), None, quiet())
    state("searching")(ended)
    with pytest.raises(UserError, match="is running .*preftune stop"):
        train_winner(open_run(ended), None, quiet())
    lock.release()


def test_training_of_an_earlier_winner_is_not_this_ones(ended: Path) -> None:
    write_json(ended / "full.json", full_verdict(trial=3))
    assert open_run(ended).full() is None
    write_json(ended / "full.json", full_verdict())
    assert (open_run(ended).full() or {})["trial"] == 0


def job(gains: np.ndarray, metric: str = "win_rate", winner: float = 0.7) -> Job:
    """A job whose winner has the given gains."""
    spec = validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart" if metric == "win_rate" else None,
            "space": {"beta": {"choice": [0.1, 0.3]}},
            "objective": {"metric": metric, "constraints": {"kl": {"max": 20}}},
        }
    )
    before = Measured({metric: winner}, gains, np.zeros(0))
    return Job(spec, 7, {"beta": 0.1}, 2944, 1600, before, Path("nowhere"))


WINS = np.where(np.arange(400) < 280, 0.5, -0.5)  # a win rate of 0.7


@pytest.mark.parametrize(
    ("share", "kl", "outcome", "passing"),
    [
        (0.8, 2.0, "better", True),
        (0.7, 2.0, "same", True),
        (0.6, 2.0, "worse", True),
        (0.5, 2.0, "worse", False),
        (0.8, 30.0, "better", False),
    ],
)
def test_outcome(share: float, kl: float, outcome: str, passing: bool) -> None:
    gains = np.where(np.arange(400) < 400 * share, 0.5, -0.5)
    measured = Measured({"win_rate": share, "kl": kl}, gains, gains)
    training = job(WINS)
    full = compare(training.spec.objective, 1, measured, training.winner)
    assert (full["outcome"], full["passing"]) == (outcome, passing)
    assert full["broken"] == [{"name": "kl", "value": kl, "of": "own"}] * (kl > 20)
    assert full["against_winner"]["difference"] == pytest.approx(share - 0.7)
    assert full["against_reference"]["difference"] == pytest.approx(share - 0.5)


def test_pair_loss_is_better_when_it_falls() -> None:
    spread = np.linspace(-0.1, 0.1, 400)
    measured = Measured({"pair_loss": 0.2, "kl": 1.0}, spread + 0.49, np.zeros(0))
    training = job(spread + 0.29, "pair_loss", 0.4)
    full = compare(training.spec.objective, 1, measured, training.winner)
    assert full["outcome"] == "better" and full["direction"] == "minimize"
    assert full["against_winner"]["interval"] == pytest.approx([0.2, 0.2])


def test_training_that_broke_down_says_how(tmp_path: Path, ended: Path) -> None:
    answers = ended / "answers.jsonl"
    answers.write_text("")
    pyarrow.parquet.write_table(pa.table({"prompt_ids": [[1]]}), ended / "test.parquet")
    save_logps(ended / "test.npz", np.zeros(1), np.zeros(1))
    split = Split(ended / "test.parquet", ended / "test.npz", answers)
    prepared = Preparation(search=None, test=split)  # type: ignore[arg-type]
    for report, sentence in (
        (Report(diverged="the training loss is nan at step 40"), r"nan at step 40\): the search's"),
        (Report(rung=0), "not finite"),
        (
            Report(failed="no room"),
            "failed: no room. Fix the cause, then continue with `preftune t",
        ),
    ):
        home = tmp_path / "full.checkpoint" / "7"
        home.mkdir(parents=True)
        with pytest.raises(UserError, match=sentence):
            _on_test_split(replace(job(WINS), home=home), prepared, report)
        assert home.exists() == bool(report.failed)


def test_damaged_checkpoint_is_left_out_aloud(tmp_path: Path) -> None:
    for pairs in (80, 160):
        folder = tmp_path / str(pairs)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        seal(folder, step=pairs // 8)
    assert newest(tmp_path) == tmp_path / "160"
    (tmp_path / "160" / "model.safetensors").write_bytes(b"weighty")
    assert newest(tmp_path) == tmp_path / "80"
    said: list[str] = []
    _drop_damaged(tmp_path, said.append)
    assert len(said) == 1 and "160/model.safetensors has changed" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["80"]


def test_card_and_config_say_that_all_pairs_were_seen(ended: Path) -> None:
    run = open_run(ended)
    full = {
        **{"outcome": "better", "trial": 0, "winner_pairs": 1600, "metric": "win_rate"},
        **{"against_winner": {"difference": 0.1, "interval": [0.0, 0.2]}},
        "passing": True,
        "test": {"win_rate": 0.91},
        "pairs": 2000,
    }
    texts = published_texts(run, candidate(run, full=full))
    assert "on all\n2,000 training pairs" in texts["README.md"]
    assert "| win_rate | 0.500 | 0.800 | 0.910 |" in texts["README.md"]
    assert "trained on all 2,000 pairs is better" in texts["README.md"].replace("\n", " ")
    config = yaml.safe_load(texts["dpo.yaml"])
    assert config["max_steps"] == 125  # 2,000 pairs by 8, accumulated twice
    assert "all 2,000 pairs" in texts["dpo.yaml"]
    assert "2,000" not in "".join(published_texts(run).values())
