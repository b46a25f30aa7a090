"""A small run folder, as a driver writes it from the reports of trials that nobody trained."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from filelock import FileLock

from results.run import layout
from search_spaces.spec import Spec, validate
from trainables.artifacts import build_once, write_json
from trainables.evaluation.metrics import reference_measures
from trainables.reference_files import save_logps
from trainables.trial_report import Report
from tune import measurement
from tune.inputs import judge_identity
from tune.record import Record, create, now, read_lines
from tune.rungs import Rungs
from tune.study import Study
from tune.verdict import Measured, compare, decide, fresh_seeds

RUNGS = (178, 533, 1600)
TEST_PROMPTS = 512
ROWS = 1600
DELTAS = np.linspace(-1, 4, 256, dtype=np.float32)  # of a trial's pairs, nats
SPEC: dict[str, Any] = {
    "model": "quickstart",
    "dataset": {"path": "quickstart", "validation_pairs": 200},
    "space": {
        "learning_rate": {"loguniform": [1e-5, 3e-3]},
        "beta": {"loguniform": [0.01, 1.0]},
        "per_device_train_batch_size": {"choice": [4, 8]},
        "loss_type": {"choice": [["sigmoid"], ["sigmoid", "sft"]]},
    },
    "training": {"max_length": 64, "gradient_accumulation_steps": 2},
    "judge": "quickstart",
    "objective": {"metric": "win_rate", "constraints": {"kl": {"max": 20}}},
    "budget": {"pairs": RUNGS[-1]},
    "search": {"trials": 6, "rungs": list(RUNGS)},
}
# Of each trial: learning rate, beta, batch and losses; then its win rate at each rung.
TRIALS: list[tuple[tuple[float, float, int, list[str]], list[float]]] = [
    ((2.1e-4, 0.3, 8, ["sigmoid", "sft"]), [0.62, 0.71, 0.81]),
    ((1.0e-5, 0.1, 4, ["sigmoid"]), [0.51]),
    ((3.0e-3, 0.05, 8, ["sigmoid"]), [0.12]),
    ((5.0e-4, 1.0, 4, ["sigmoid"]), [0.60, 0.66, 0.74]),
    ((8.0e-5, 0.5, 4, ["sigmoid"]), [0.55, 0.58]),
    ((1.0e-3, 0.02, 8, ["sigmoid"]), []),
]
DIVERGED, FAILED, UNFINISHED = 2, 5, 4
# The trials in the order of their reports: trial 4 meets a better one at its second rung, trial 1
# three better ones at its first.
REPORTS = [(4, 0), (3, 0), (3, 1), (4, 1), (3, 2), (0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
SAMPLE = {
    "row": 3,
    "prompt": "What is the capital of France?",
    "answer": " The [bold]capital[/bold] is <b>Paris</b>.\x1b[31m",
    "tokens": 9,
    "ended": True,
    "repetition": 0.0,
    "score": 1.0,
    "log_ratio": 0.8,
}
CORPUS = [
    "User: What is the capital of France? Assistant: The capital of France is Paris.",
    "User: What is the opposite of hot? Assistant: The opposite of hot is cold.",
    "User: What is two plus three? Assistant: Two plus three is five, of course.",
] * 5
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@cache
def _model_master(seed: int) -> Path:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = Path(mkdtemp(prefix="preftune-model-"))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        CORPUS, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random GPT-2 with a byte-level BPE tokenizer and a chat template."""
    shutil.copytree(_model_master(seed), folder)
    return folder


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _rows() -> list[dict[str, str]]:
    """Return pairs of which some have an empty answer, and some one too long for `max_length`."""
    rows = []
    for number in range(ROWS):
        chosen = "The capital of France is Paris." * (8 if number % 8 == 0 else 1)
        rejected = "" if number % 20 == 7 else "The opposite of hot is cold."
        rows.append({"prompt": f"What is {number}?", "chosen": chosen, "rejected": rejected})
    return rows


@cache
def _prepared_master() -> tuple[Path, dict[str, str]]:
    """Return a folder of what stage 1 prepares, and the names of the stages' folders in it."""
    from datasets import Dataset

    from trainables.data.preferences import load_pairs, prepare_pairs
    from trainables.evaluation.sampling import Answer, answer_lines, distinct_prompts
    from trainables.models import load_tokenizer

    root = Path(mkdtemp(prefix="preftune-prepared-"))
    base = write_model(root / "base", seed=1)
    spec = validate(SPEC)
    d = spec.dataset

    def build_data(out: Path) -> None:
        prepare_pairs(
            Dataset.from_list(_rows()),
            load_tokenizer(base),
            max_length=spec.training["max_length"],
            test_fraction=d.test_fraction,
            validation_pairs=d.validation_pairs,
            seed=d.seed,
            out=out,
            source={"path": "quickstart", "revision": None, "split": "train"},
        )

    data = build_once(root, "data", {"of": "tests"}, build_data)

    def build_reference(out: Path) -> None:
        for split in ("train", "validation", "test"):
            logps = np.full(len(load_pairs(data / f"{split}.parquet")), -20.0, np.float32)
            save_logps(out / f"{split}.npz", logps, logps)

    def build_answers(out: Path) -> None:
        for split in ("validation", "test"):
            prompts = distinct_prompts(load_pairs(data / f"{split}.parquet"), TEST_PROMPTS)
            said = [Answer([5, 6, 7], " Paris.", True)] * len(prompts)
            scores = [float(23 * i % 50 < 23) for i in range(len(prompts))]
            lines = answer_lines(prompts, said, scores)
            (out / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    reference = build_once(root, "reference", {"of": "tests"}, build_reference)
    judge, _ = judge_identity(spec.judge, None)
    answers = build_once(root, "answers", {"judge": judge}, build_answers)
    return root, {"data": data.name, "reference": reference.name, "answers": answers.name}


def _prepare(storage: Path, record: Record) -> None:
    """Put there what stage 1 prepares, and record it as stage 1 does."""
    master, names = _prepared_master()
    prepared = storage / layout.PREPARED
    if not prepared.exists():
        shutil.copytree(master, prepared)
    report = (prepared / names["data"] / layout.DATA_REPORT).read_bytes()
    (record.folder / layout.DATA_REPORT).write_bytes(report)
    answers = read_lines(prepared / names["answers"] / "validation.jsonl")
    record.update(
        hardware={"nodes": 1, "cpus": 2.0, "gpus": 0.0},
        dashboard="http://127.0.0.1:8265",
        revisions={"model": None, "dataset": None, "judge": None},
        reference={"validation": reference_measures(answers)},
        model={"path": "quickstart", "revision": None, "folder": str(prepared / "base")},
        dataset={},
        prepared={**names, "sft": None},
        seconds={"prepare": 11.2},
    )


def _measures(win_rate: float, kl: float, rung: int = len(RUNGS) - 1) -> dict[str, float | None]:
    blown_up = kl > 20
    return {
        "win_rate": win_rate,
        "win_rate_length_controlled": win_rate - 0.01,
        "judge_score": win_rate - 0.04,
        "kl": kl,
        "pair_loss": 0.52,
        "accuracy": 0.99 if blown_up else 0.81,
        "margin": 1.1,
        "chosen_drift": -0.02,
        "length_ratio": 1.0,
        "repetition": 0.01,
        "ended": 0.3 if blown_up else 1.0,
        "train_loss": 0.61,
        "seconds": 5.0 * (rung + 1),
        "peak_memory_mb": 801.0,
    }


def _report(number: int, rung: int) -> Report:
    """Return what a trial reports at a rung."""
    params, win_rates = TRIALS[number]
    kl = 63.0 if number == DIVERGED else 1.0 + 3000 * params[0]
    return Report(
        step=RUNGS[rung] // 16,
        pairs=RUNGS[rung],
        rung=rung,
        measures=_measures(win_rates[rung], kl, rung),
        deltas=DELTAS,
        samples=[SAMPLE] if (number, rung) == (0, len(RUNGS) - 1) else [],
        log="" if rung else "started\n",
    )


def _search(spec: Spec, record: Record, done: bool) -> None:
    """Run the search: its trials report, and are told what the rule decides."""
    record.update(state="searching")
    study = Study(spec, record.folder)
    rungs = Rungs(spec.objective, spec.rungs_pairs, True, study, record)
    asked = [study.ask()[0] for _ in TRIALS[: None if done else FAILED]]
    for number, rung in REPORTS:
        if done or (number, rung) != (UNFINISHED, 1):
            study.note(number, device="cpu", node="here")
            rungs.reported(number, _report(number, rung))
    if FAILED in asked:
        study.note(FAILED, device="cpu", node="here")
        rungs.reported(FAILED, Report(failed="its process died", log="started\n"))


def _gains(win_rate: float, turn: int) -> np.ndarray:
    """Return win - 1/2 of each test prompt; another turn wins on other prompts."""
    won = np.arange(TEST_PROMPTS) < round(win_rate * TEST_PROMPTS)
    return np.roll(won, 40 * turn) - 0.5


def _measured(win_rate: float, turn: int) -> Measured:
    scores = np.zeros(TEST_PROMPTS)
    scores[: round((win_rate - 0.48) * TEST_PROMPTS)] = 1.0
    measures = _measures(win_rate, 1.7) | {"judge_score": win_rate - 0.02, "accuracy": 0.93}
    return Measured(measures, _gains(win_rate, turn), scores)


@cache
def _measurements(outcome: str) -> dict[tuple[int, int | None], Measured]:
    """Return both finalists' measurements on the test split, with their own and fresh seeds."""
    spec = validate(SPEC)
    rates = {0: 0.8, 3: 0.72} if outcome == "winner" else {0: 0.52, 3: 0.5}
    seeds = (None, *fresh_seeds(spec.search.seed, spec.verify.seeds))
    return {
        (number, seed): _measured(rate - 0.01 * turn, turn)
        for number, rate in rates.items()
        for turn, seed in enumerate(seeds)
    }


@cache
def _verdict(outcome: str) -> dict[str, Any]:
    spec = validate(SPEC)
    _, names = _prepared_master()
    measured = _measurements(outcome)
    fresh = fresh_seeds(spec.search.seed, spec.verify.seeds)
    params = {number: dict(zip(SPEC["space"], TRIALS[number][0], strict=True)) for number in (0, 3)}
    reference = _prepared_master()[0] / names["answers"] / "test.jsonl"
    return {
        **decide(spec.objective, spec.search.seed, fresh, params, measured),
        "test_prompts": TEST_PROMPTS,
        "test_pairs": 700,
        "reference": reference_measures(read_lines(reference)),
    }


@cache
def _full() -> dict[str, Any]:
    spec = validate(SPEC)
    winner = _measurements("winner")[0, None]
    return {
        **compare(spec.objective, spec.search.seed, _measured(0.86, 0), winner),
        "trial": 0,
        "params": _verdict("winner")["params"],
        "pairs": 48733,
        "winner_pairs": RUNGS[-1],
        "seconds": 71.3,
        "created": now(),
    }


def full_verdict(**fields: Any) -> dict[str, Any]:
    """Return what `preftune train` writes of a better model, with other fields where given."""
    return {**_full(), **fields}


DRIVEN: dict[Path, FileLock] = {}  # locks of the runs that this process drives


def crash(folder: Path) -> None:
    """Let go of a run as a driver that dies does."""
    DRIVEN.pop(folder).release()


def write_run(
    storage: Path, name: str = "quickstart-1122-0937", outcome: str = "winner", state: str = "done"
) -> Path:
    """Write a run folder and the prepared folders that it names.

    Args:
        storage: where run folders live.
        name: the run's name.
        outcome: the verdict, `winner` or `none`; `best/` is there unless it is `none`.
        state: anything but `done` leaves trial 4 running, trial 5 unborn, and no verdict; this
            process drives a run in an active one, until `crash`.
    """
    first = [dict(zip(SPEC["space"], params, strict=True)) for params, _ in TRIALS]
    search = {**SPEC["search"], "try_first": first}
    spec = validate({**SPEC, "search": search, "storage": str(storage)})
    record = create(spec, name, True, "preftune run quickstart")
    lock = record.lock
    assert lock is not None
    _prepare(storage, record)
    _search(spec, record, done=state == "done")
    seconds = record.seconds | {"search": 64.0}
    if state == "done":
        seconds["verify"] = 40.3
        folder = record.folder / layout.VERIFY
        folder.mkdir()
        for (number, seed), measured in _measurements(outcome).items():
            measurement.save(folder, number, seed, measured)
        if outcome != "none":
            write_model(record.folder / layout.BEST, seed=0)
        write_json(record.folder / layout.VERDICT, _verdict(outcome))
    record.update(state=state, seconds=seconds, ended=None if state in layout.ACTIVE else now())
    if state in layout.ACTIVE:
        DRIVEN[record.folder] = lock
    else:
        lock.release()
    return record.folder
