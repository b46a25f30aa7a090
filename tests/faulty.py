"""A small search whose trials break as `faults.json` says, and count the pairs they train on."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

SPEC = """
model: quickstart
dataset: {path: quickstart, validation_pairs: 64}
judge: ./judge.py
space:
  learning_rate: {loguniform: [1.0e-4, 4.0e-4]}
  beta: {loguniform: [0.3, 1.0]}
  per_device_train_batch_size: {choice: [4, 8]}
training: {max_length: 128, loss_type: [sigmoid, sft]}
evaluation: {prompts: 24, max_new_tokens: 24}
budget: {pairs: 216}
search: {trials: 8, concurrent: 1, seed: 7}
verify: {finalists: 2, seeds: 1, prompts: 96, pairs: 96}
resources: {gpu: 0}
"""

# The quickstart's judge. Being loaded in the trial's own process, it also counts the pairs that are
# trained on, and does to the process what `faults.json` says, at a step of training: once, unless
# the fault is one that comes back.
JUDGE = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from ray.tune import get_context
from transformers import Trainer
from trainables.quickstart.judge import judge as exact

HERE = Path(__file__).parent
with (HERE / "executed.log").open("a") as log:
    log.write(f"{os.getpid()}\\n")

def trial():
    return str(get_context().get_trial_name())

def fault(place):
    known = json.loads((HERE / "faults.json").read_text()).get(trial())
    if not known or known["place"] != place:
        return None
    marker = HERE / f"{trial()}.{known['kind']}"
    if known["once"] and marker.exists():
        return None
    return known, marker

def step(self, *args, **kwargs):
    with (HERE / "pairs.log").open("a") as log:
        log.write(f"{trial()} {self.args.per_device_train_batch_size}\\n")
    loss = before(self, *args, **kwargs)
    found = fault("step")
    if found and self.state.global_step >= found[0]["step"]:
        known, marker = found
        with marker.open("a") as log:
            log.write(f"{os.getpid()}\\n")
        if known["kind"].startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, known["kind"]))
        elif known["kind"] == "memory":
            if self.args.per_device_train_batch_size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory, as if")
        elif known["kind"] == "slow":
            time.sleep(0.3)
        elif known["kind"] == "nan":
            return loss * float("nan")
        elif known["kind"] == "exit":
            os._exit(3)
        else:
            raise ArithmeticError("the training step broke")
    return loss

if not hasattr(Trainer, "counted"):
    before, Trainer.counted = Trainer.training_step, True
    Trainer.training_step = step

def judge(prompts, answers):
    return exact(prompts, answers)
"""


def seeded() -> random.Random:
    """Return what draws moments and steps; PREFTUNE_CHAOS_SEED repeats them."""
    seed = int(os.environ.get("PREFTUNE_CHAOS_SEED", random.randrange(10**6)))
    print(f"PREFTUNE_CHAOS_SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    return random.Random(seed)


def laid_out(folder: Path, **faults: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "judge.py").write_text(JUDGE)
    (folder / "faults.json").write_text(json.dumps(faults))
    return folder


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def trained(place: Path) -> Counter[str]:
    """Pairs that each trial was trained on since the last look."""
    path = place / "pairs.log"
    counted: Counter[str] = Counter()
    for line in path.read_text().splitlines() if path.exists() else []:
        trial, pairs = line.split()
        counted[trial] += int(pairs)
    path.unlink(missing_ok=True)
    return counted


def searched(pairs: Counter[str]) -> int:
    """Without those of verification, which no trial of Ray Tune trains."""
    return sum(count for trial, count in pairs.items() if trial != "None")
