"""What only a CUDA device can show: its memory, its arithmetic, and trials that share it."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import preftune

from results.run.listing import open_run
from search_spaces.spec import Spec
from trainables.dpo import measure_once, train
from trainables.memory_probe import peak_of_a_step
from trainables.prepared import Prepared
from trainables.quickstart.judge import judge
from trainables.trial_report import Report

pytestmark = pytest.mark.gpu

PARAMS = {"learning_rate": 1e-4, "beta": 0.3, "per_device_train_batch_size": 8}
MB = 1e6


@pytest.fixture
def whole_device() -> Iterator[None]:
    """A test may limit the memory; the next one has all of it."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def reports_of(spec: Spec, prepared: Prepared, params: dict[str, Any]) -> list[Report]:
    found: list[Report] = []
    train(spec, params, prepared, found.append, seed=1, judge=judge)
    return found


def with_budget(spec: Spec, pairs: int) -> Spec:
    return spec.model_copy(update={"budget": spec.budget.model_copy(update={"pairs": pairs})})


def test_trial_that_is_stopped_leaves_no_memory_behind(
    small_spec: Spec, prepared: Prepared
) -> None:
    """Ray ends a trial by SystemExit out of its report; the next one gets the same process."""

    def stop(report: Report) -> None:
        raise SystemExit

    left = []
    for _ in range(4):
        with pytest.raises(SystemExit):
            train(small_spec, PARAMS, prepared, stop, seed=1, judge=judge)
        left.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    # After the first there is what the libraries keep (cuBLAS' workspace); nothing is added.
    assert len({allocated for allocated, _ in left}) == 1, left
    assert all(reserved < 100 * MB for _, reserved in left), left


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_one(
    small_spec: Spec, prepared: Prepared, whole_device: None
) -> None:
    spec = with_budget(small_spec, 2048).model_copy(update={"precision": "fp32"})
    params = {**PARAMS, "per_device_train_batch_size": 512}
    whole = reports_of(spec, prepared, params)
    assert whole[-1].micro_batch == 512 and whole[-1].pairs == 2048
    peak = peak_of_a_step(spec, params, prepared, judge)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
    found = reports_of(spec, prepared, params)
    assert found[-1].micro_batch < 512 and found[-1].pairs == 2048
    assert "out of device memory at micro-batch 512: continuing with 256" in found[0].log
    loss, expected = (r[-1].measures["pair_loss"] for r in (found, whole))
    assert loss == pytest.approx(expected, rel=1e-2)


def test_one_pair_that_does_not_fit_fails_with_the_way_out(
    small_spec: Spec, prepared: Prepared, whole_device: None
) -> None:
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((taken + 8 * MB) / total)
    found = measure_once(small_spec, PARAMS, prepared, seed=1, checkpoint=None, judge=None)
    assert found.failed is not None and "gradient_checkpointing" in found.failed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_probe_sees_the_peak_of_a_trial(
    small_spec: Spec, prepared: Prepared, precision: str
) -> None:
    spec = with_budget(small_spec, 2048).model_copy(update={"precision": precision})
    params = {**PARAMS, "per_device_train_batch_size": 64}
    probed = peak_of_a_step(spec, params, prepared, judge)
    peaks = [r.measures["peak_memory_mb"] for r in reports_of(spec, prepared, params) if r.measures]
    assert max(p for p in peaks if p is not None) * MB <= probed * 1.02


def test_a_trial_twice_in_fp32_and_once_in_bf16_is_the_same_policy(
    small_spec: Spec, prepared: Prepared
) -> None:
    """The same pairs in the same order: rounding is all that differs."""
    spec = small_spec.model_copy(update={"precision": "fp32"})
    last = reports_of(spec, prepared, PARAMS)[-1].measures
    again = reports_of(spec, prepared, PARAMS)[-1].measures
    half = reports_of(spec.model_copy(update={"precision": "bf16"}), prepared, PARAMS)[-1].measures
    for name, tolerance in (("pair_loss", 1e-3), ("margin", 1e-2), ("chosen_drift", 1e-3)):
        assert last[name] == pytest.approx(again[name], abs=tolerance)
    # The reference's log-probs are the CPU's: an untrained policy still stands at ln 2.
    still = reports_of(spec, prepared, {**PARAMS, "learning_rate": 1e-12})[-1].measures
    assert still["pair_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert half["pair_loss"] == pytest.approx(last["pair_loss"], abs=0.05)


def test_lora_in_bf16(small_spec: Spec, prepared: Prepared) -> None:
    lora = {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    spec = small_spec.model_copy(update={"lora": lora, "precision": "bf16"})
    last = reports_of(spec, prepared, {**PARAMS, "learning_rate": 5e-3})[-1].measures
    assert last["pair_loss"] is not None and last["pair_loss"] < math.log(2)
    assert last["kl"] is not None and math.isfinite(last["kl"])


SPEC = """
model: quickstart
dataset: {path: quickstart, validation_pairs: 64}
judge: quickstart
space:
  learning_rate: {loguniform: [1.0e-4, 4.0e-4]}
  beta: {loguniform: [0.3, 1.0]}
training: {max_length: 128, loss_type: [sigmoid, sft]}
evaluation: {prompts: 32, max_new_tokens: 24}
budget: {pairs: 864}
search: {trials: 6, seed: 7}
verify: {finalists: 2, seeds: 1, prompts: 128}
resources: {gpu: auto}
"""


def test_search_shares_the_device_and_gives_it_back(tmp_path: Path) -> None:
    """Probe, six trials that share a device, verification; then the device is as it was."""
    (tmp_path / "gpu.yaml").write_text(SPEC)
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    printed = preftune(tmp_path, "run", "gpu.yaml", "--name", "gpu")
    run = open_run(tmp_path / "runs" / "gpu")
    assert run.state == "done" and len(run.trials()) == 6
    assert "of a GPU each" in printed
    name = torch.cuda.get_device_name(0)
    for trial in run.trials():
        assert trial.state != "failed" and trial.attrs["device"] == name, trial
    assert run.verdict() is not None
    assert torch.cuda.mem_get_info()[0] >= before - 64 * MB
    shutil.rmtree(tmp_path)
