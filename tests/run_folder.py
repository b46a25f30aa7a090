"""A small run folder as docs/run_folder.md describes it, through real Optuna and transformers."""

import json
import os
import shutil
import socket
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import optuna
import yaml
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from results.run import layout
from tune.record import claim

RUNGS = (178, 533, 1600)
REFERENCE = {
    "win_rate": 0.5,
    "judge_score": 0.46,
    "kl": 0.0,
    "pair_loss": 0.6931,
    "accuracy": 0.5,
    "length_ratio": 1.0,
    "repetition": 0.01,
    "ended": 1.0,
}
SPEC = {
    "model": "quickstart",
    "revision": None,
    "dataset": {"path": "quickstart", "name": None, "split": "train"},
    "space": {
        "learning_rate": {"loguniform": [1e-5, 3e-3]},
        "beta": {"loguniform": [0.01, 1.0]},
        "per_device_train_batch_size": {"choice": [4, 8]},
        "loss_type": {"choice": [["sigmoid"], ["sigmoid", "sft"]]},
    },
    "training": {"max_length": 64, "gradient_accumulation_steps": 2},
    "lora": None,
    "sft": None,
    "judge": "quickstart",
    "objective": {"metric": "win_rate", "constraints": {"kl": {"max": 20}}},
    "budget": {"pairs": 1600},
    "search": {"trials": 6, "seed": 42, "rungs": list(RUNGS)},
    "precision": "auto",
}
# learning rate, beta, batch, loss_type; the win rate at each rung; how it ended
TRIALS: list[tuple[tuple[float, float, int, str], list[float], str]] = [
    ((2.1e-4, 0.3, 8, '["sigmoid", "sft"]'), [0.62, 0.71, 0.81], "budget"),
    ((1.0e-5, 0.1, 4, '["sigmoid"]'), [0.51], "asha"),
    ((3.0e-3, 0.05, 8, '["sigmoid"]'), [0.12], "constraint"),
    ((5.0e-4, 1.0, 4, '["sigmoid"]'), [0.60, 0.66, 0.74], "budget"),
    ((8.0e-5, 0.5, 4, '["sigmoid"]'), [0.55, 0.58], "asha"),
    ((1.0e-3, 0.02, 8, '["sigmoid"]'), [], "error"),
]
# What `preftune train` writes.
FULL = {
    "outcome": "better",
    "passing": True,
    "trial": 0,
    "params": {"beta": 0.3},
    "pairs": 48733,
    "winner_pairs": 1600,
    "metric": "win_rate",
    "direction": "maximize",
    "confidence": 0.95,
    "test": {"win_rate": 0.86, "judge_score": 0.83, "kl": 2.2, "ended": 1.0},
    "broken": [],
    "against_reference": {"difference": 0.36, "interval": [0.31, 0.41]},
    "against_winner": {"difference": 0.06, "interval": [0.02, 0.08]},
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


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _measures(rung: int, win_rate: float, kl: float) -> dict[str, Any]:
    return {
        "rung": rung,
        "pairs": RUNGS[rung],
        "step": RUNGS[rung] // 16,
        "seconds": 5.0 * (rung + 1),
        "peak_memory_mb": 801.0,
        "feasible": kl <= 20,
        "broken": [] if kl <= 20 else ["kl"],
        "train_loss": 0.61,
        "win_rate": win_rate,
        "win_rate_length_controlled": win_rate - 0.01,
        "judge_score": win_rate - 0.04,
        "kl": kl,
        "pair_loss": 0.52,
        "accuracy": 0.81 if kl <= 20 else 0.99,
        "margin": 1.1,
        "chosen_drift": -0.02,
        "length_ratio": 1.0,
        "repetition": 0.01,
        "ended": 1.0 if kl <= 20 else 0.3,
    }


def _write_search(folder: Path, unfinished: bool) -> None:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize")
    decisions: list[dict[str, Any]] = []
    for number, (params, values, ended_by) in enumerate(TRIALS):
        names = ("learning_rate", "beta", "per_device_train_batch_size", "loss_type")
        study.enqueue_trial(dict(zip(names, params, strict=True)))
        trial = study.ask()
        trial.suggest_float("learning_rate", 1e-5, 3e-3, log=True)
        trial.suggest_float("beta", 0.01, 1.0, log=True)
        trial.suggest_categorical("per_device_train_batch_size", [4, 8])
        trial.suggest_categorical("loss_type", ['["sigmoid"]', '["sigmoid", "sft"]'])
        home = folder / "trials" / str(number)
        home.mkdir(parents=True)
        kl = 63.0 if ended_by == "constraint" else 1.0 + 3 * params[0] * 1000
        lines = [_measures(rung, value, kl) for rung, value in enumerate(values)]
        write_lines(home / "measures.jsonl", lines)
        (home / "log.txt").write_text("started\n")
        for rung, value in enumerate(values):
            trial.report(value, RUNGS[rung])
            last = rung == len(values) - 1
            decision = {"budget": "complete", "asha": "stop", "constraint": "infeasible"}
            decisions.append(
                {
                    "time": "2026-01-31T09:38:00+00:00",
                    "trial": number,
                    "rung": rung,
                    "pairs": RUNGS[rung],
                    "value": value,
                    "others": [],
                    "reduction_factor": 3,
                    "direction": "maximize",
                    "decision": decision[ended_by] if last else "continue",
                    "ended_by": ended_by if last else None,
                    "reason": "among the best third" if not last else "the last rung it reaches",
                }
            )
        trial.set_user_attr("device", "cpu")
        trial.set_user_attr("seconds", 11.0)
        trial.set_constraint("kl", kl - 20)
        if unfinished and number == 4:
            break
        trial.set_user_attr("ended_by", ended_by)
        if ended_by == "budget":
            study.tell(trial, values[-1])
        elif ended_by == "error":
            trial.set_user_attr("cause", "The worker ran out of memory three times.")
            study.tell(trial, state=TrialState.FAIL)
        else:
            if ended_by == "constraint":
                trial.set_user_attr("cause", "kl 63 is over its limit of 20 at 178 pairs.")
            study.tell(trial, state=TrialState.PRUNED)
    write_lines(folder / "decisions.jsonl", decisions)
    sample = {
        "row": 3,
        "prompt": "What is the capital of France?",
        "answer": " The [bold]capital[/bold] is <b>Paris</b>.\x1b[31m",
        "tokens": 9,
        "ended": True,
        "score": 1.0,
        "log_ratio": 0.8,
        "pairs": 1600,
    }
    write_lines(folder / "trials" / "0" / "samples.jsonl", [sample])


def _verdict(outcome: str) -> dict[str, Any]:
    winner = outcome != "none"
    params = {
        "learning_rate": 2.1e-4,
        "beta": 0.3,
        "per_device_train_batch_size": 8,
        "loss_type": ["sigmoid", "sft"],
    }
    test = {**REFERENCE, "win_rate": 0.80, "judge_score": 0.78, "kl": 1.7, "accuracy": 0.93}
    finalist = {
        "number": 0,
        "params": params,
        "beats_reference": winner,
        "difference": 0.30 if winner else 0.02,
        "interval": [0.24, 0.37] if winner else [-0.05, 0.08],
        "judge_score_difference": 0.32,
        "judge_score_interval": [0.26, 0.39],
        "test": test,
        "fresh_seeds": [{"seed": 1042, "test": {**test, "win_rate": 0.79}}],
    }
    second = {**finalist, "number": 3, "difference": 0.22, "interval": [0.15, 0.29]}
    sentence = (
        "Trial 0 beats the reference: judge score 0.78 against 0.46 on 512 test prompts."
        if winner
        else "No configuration beats the reference."
    )
    return {
        "outcome": outcome,
        "sentence": sentence,
        "passing": winner,
        "winner": 0 if winner else None,
        "params": params if winner else None,
        "metric": "win_rate",
        "direction": "maximize",
        "confidence": 0.95,
        "test_prompts": 512,
        "test_pairs": 700,
        "reference": REFERENCE,
        "finalists": [finalist, second] if winner else [finalist],
    }


DRIVEN: dict[Path, FileLock] = {}  # locks of the runs that this process drives


def crash(folder: Path) -> None:
    """Let go of a run as a driver that dies does."""
    DRIVEN.pop(folder).release()


def write_run(
    storage: Path, name: str = "quickstart-1122-0937", outcome: str = "winner", state: str = "done"
) -> Path:
    """Write a run folder and the prepared folders it names.

    Args:
        storage: where run folders live.
        name: the run's name.
        outcome: the verdict; `best/` is there unless it is `none`.
        state: anything but `done` leaves trial 4 running, trial 5 unborn, and no verdict; this
            process drives a run in an active one, until `crash`.
    """
    folder = storage / name
    folder.mkdir(parents=True)
    if state in layout.ACTIVE:
        DRIVEN[folder] = claim(folder)
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    prepared = storage / "prepared"
    if not (prepared / "base").exists():
        write_model(prepared / "base", seed=1)
        tokenizer = prepared / "data-0a1b" / "tokenizer"
        tokenizer.mkdir(parents=True)
        for path in (prepared / "base").iterdir():
            if path.suffix != ".safetensors" and "config.json" != path.name:
                shutil.copy(path, tokenizer)
    info = {
        "format": 1,
        "name": name,
        "state": state,
        "error": None,
        "command": "preftune run quickstart",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "created": "2026-01-31T09:37:58+00:00",
        "ended": "2026-01-31T09:40:11+00:00" if state == "done" else None,
        "seconds": {"prepare": 11.2, "search": 64.0, "verify": 40.3},
        "versions": {"preftune": "0.1.0", "torch": "2.13.0", "trl": "1.16.0"},
        "commit": "0123abc",
        "seeds": {"search": 42, "split": 42, "verify": [1042, 1043]},
        "model": {"path": "quickstart", "revision": None, "folder": str(prepared / "base")},
        "prepared": {"data": "data-0a1b", "sft": None, "reference": "reference-2c3d"},
        "hardware": {"nodes": 1, "cpus": 2, "gpus": 0, "gpu_names": []},
        "dashboard": "http://127.0.0.1:8265",
        "reference": {"validation": REFERENCE},
    }
    write_json(folder / "run.json", info)
    write_json(
        folder / "data_report.json",
        {
            "source": {"path": "quickstart", "revision": None, "split": "train", "rows": 4000},
            "test_fraction": 0.2,
            "seed": 42,
            "max_length": 128,
            "reasons": {"empty_answer": "an answer is empty", "template": "it is refused"},
            "splits": {
                "train": {
                    "raw": 2000,
                    "kept": 1950,
                    "dropped": {"empty_answer": 50, "template": 0},
                    "distinct_prompts": 1900,
                    "truncated": 0.125,
                    "longer_is_chosen": 0.51,
                    "prompt_tokens": {"median": 20, "p95": 24},
                    "answer_tokens": {"median": 12, "p95": 18.6},
                }
            },
        },
    )
    _write_search(folder, unfinished=state != "done")
    if state == "done":
        write_json(folder / "verdict.json", _verdict(outcome))
        if outcome != "none":
            write_model(folder / "best", seed=0)
    return folder
