"""A search on real preference pairs with GPT-2's own tokenizer: no judge, a supervised pass first.

The model is random, so the verdict may be anything: it has to be reached in order.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from searching import ROOT, preftune
from transformers import GPT2Config, GPT2LMHeadModel

from results.run.listing import open_run
from results.run.run import Run
from results.verdict_view import verdict_sentence

DATA = ROOT.parent / "shared" / "data"
PAIRS = DATA / "ultrafeedback-argilla" / "train.parquet"
TOKENIZER = DATA / "gpt2-tokenizer"

pytestmark = [
    pytest.mark.skipif(
        not (PAIRS.is_file() and TOKENIZER.is_dir()), reason=f"the real pairs are not in {DATA}"
    ),
    pytest.mark.searches,
]

SPEC = f"""
model: ./gpt2-tiny
dataset: {{path: {PAIRS}, test_fraction: 0.1, validation_pairs: 40}}
space:
  learning_rate: {{loguniform: [1.0e-5, 1.0e-1]}}
  per_device_train_batch_size: {{choice: [2, 4]}}
training: {{max_length: 64}}
sft: {{epochs: 0.2, learning_rate: 1.0e-3}}
evaluation: {{prompts: 8, max_new_tokens: 16}}
objective:
  constraints: {{ended: {{min: 0.0}}}}  # a random model does not end its answers
budget: {{pairs: 18}}
search:
  trials: 3
  rungs: [6, 18]
  try_first:  # the first of them falls apart
    - {{learning_rate: 1.0e-1, per_device_train_batch_size: 2}}
    - {{learning_rate: 1.0e-3, per_device_train_batch_size: 2}}
verify: {{finalists: 1, seeds: 1, prompts: 16, pairs: 24}}
resources: {{gpu: 0}}
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The run of a search that was given nothing but a spec file, and what it printed."""
    place = tmp_path_factory.mktemp("real")
    model = place / "gpt2-tiny"
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(model)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, model)
    (place / "real.yaml").write_text(SPEC)
    printed = preftune(place, "run", "real.yaml", "--name", "real")
    return open_run(place / "runs" / "real"), printed


def test_search_ends_in_a_verdict(searched: tuple[Run, str]) -> None:
    run, printed = searched
    verdict = run.verdict()
    assert run.state == "done" and run.missing() == [] and verdict is not None
    assert verdict["metric"] == "pair_loss" and verdict_sentence(run).split()[0] in printed
    assert verdict["passing"] == (verdict["outcome"] != "none") == (run.best is not None)
    report = run.data_report()
    assert report is not None and verdict["test_pairs"] == 24 < report["splits"]["test"]["kept"]
    assert "scoring pairs under the reference: " in printed and " 24 of " in printed
    assert " pairs can be used; " in printed and "the prompt alone fills max_length" in printed


def test_report_accounts_for_every_row(searched: tuple[Run, str]) -> None:
    report = searched[0].data_report()
    assert report is not None and report["source"]["rows"] == 800
    splits = report["splits"]
    # 800 rows, a tenth for the test, 40 for validation.
    assert {name: split["raw"] for name, split in splits.items()} == {
        "train": 680,
        "validation": 40,
        "test": 80,
    }
    for split in splits.values():
        assert split["raw"] == split["kept"] + sum(split["dropped"].values())
        assert split["dropped"]["prompt_too_long"] > 0


def test_reference_is_the_supervised_pass(searched: tuple[Run, str]) -> None:
    run, _ = searched
    folder = run.storage / "prepared" / run.info["prepared"]["sft"]
    assert run.reference_model() == str(folder / "model")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    # A random model gives each of 50,257 tokens about the same chance: ln 50,257 = 10.82.
    assert losses[0] == pytest.approx(math.log(50_257), abs=0.1)
    assert losses[-1] < losses[0]


def test_every_limit_of_pair_loss_is_applied(searched: tuple[Run, str]) -> None:
    run, printed = searched
    assert yaml.safe_load((run.folder / "spec.yaml").read_text())["objective"] == {
        "metric": "pair_loss",
        "constraints": {
            "kl": {"min": None, "max": 20.0},
            "chosen_drift": {"min": -0.2, "max": None},
            "repetition": {"min": None, "max": 0.2},
            "ended": {"min": 0.0, "max": None},
        },
    }
    wild, sound = run.trials()[:2]
    assert wild.state == "infeasible" and wild.ended_by == "constraint"
    assert sound.state == "complete"
    for trial in (wild, sound):
        measures = trial.measures
        violations = {  # relative to the limits; that of `ended` is zero here
            "kl": (measures["kl"] - 20) / 20,
            "chosen_drift": (-0.2 - measures["chosen_drift"]) / 0.2,
            "repetition": (measures["repetition"] - 0.2) / 0.2,
            "ended": 0 - measures["ended"],
        }
        broken = {name: value for name, value in violations.items() if value > 0}
        assert trial.constraints == pytest.approx(broken)
        assert all(f"{name} {measures[name]:.3g}" in printed for name in broken)


def test_leaderboard_shows_the_objective_and_no_judge(searched: tuple[Run, str]) -> None:
    run, printed = searched
    head, rows = printed.split("verifying the finalists")[1].split("─" * 20, 1)
    assert "pair" in head and "_loss" in head and "judge" not in head and "win" not in head
    reference = next(line for line in rows.splitlines() if "reference" in line).split()
    # pair_loss ln 2, kl, accuracy, length_ratio, chosen_drift, repetition, ended
    assert reference[2:] == ["0", "0.693", "0.0", "0.50", "1.00", "0.000", "0.00", "0.00"]
    trial = run.trials()[1]
    (deltas,) = [array for name, array in np.load(run.trial_folder(1) / "deltas.npz").items()][-1:]
    assert trial.measures["pair_loss"] == pytest.approx(np.log1p(np.exp(-deltas)).mean())
    assert f"{trial.measures['pair_loss']:.3f}" in rows
