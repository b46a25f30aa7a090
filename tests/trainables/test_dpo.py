"""One trial, in this process, without Ray."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from search_spaces.errors import UserError
from search_spaces.spec import Spec
from trainables import dpo, rungs
from trainables.artifacts import META, damage
from trainables.budget import Plan, in_order, plan
from trainables.dpo import failure, measure_once, train
from trainables.models import load_tokenizer
from trainables.prepared import Prepared
from trainables.quickstart.judge import judge
from trainables.trial_report import Report

PARAMS = {"learning_rate": 1e-4, "beta": 0.3, "per_device_train_batch_size": 8}
MEASURES = {
    "win_rate", "win_rate_length_controlled", "judge_score", "kl", "pair_loss", "accuracy",
    "margin", "chosen_drift", "length_ratio", "repetition", "ended",
}  # fmt: skip


def reports_of(
    spec: Spec, prepared: Prepared, params: dict[str, Any] = PARAMS, **options: Any
) -> list[Report]:
    found: list[Report] = []
    train(spec, params, prepared, found.append, seed=1, judge=judge, **options)
    return found


@pytest.mark.parametrize(
    ("params", "rung_steps", "pairs_at_the_end"),
    [
        ({"per_device_train_batch_size": 4}, (4, 12, 36), 144),  # 16, 48, 144 pairs
        ({"per_device_train_batch_size": 8}, (2, 6, 18), 144),
        ({"per_device_train_batch_size": 5}, (4, 10, 29), 145),  # rounded up
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, (2, 6, 18), 144),
    ],
)
def test_rungs_are_in_pairs(
    small_spec: Spec, params: dict[str, Any], rung_steps: tuple[int, ...], pairs_at_the_end: int
) -> None:
    found = plan(small_spec, params)
    assert found.rung_steps == rung_steps
    assert found.steps * found.effective_batch == pairs_at_the_end


def test_batch_that_reaches_several_rungs_at_once_reports_the_last(
    small_spec: Spec, prepared: Prepared
) -> None:
    """Rungs at 1, 3 and 8 pairs, and a batch of 8: one step reaches them all."""
    spec = small_spec.model_copy(
        update={"budget": small_spec.budget.model_copy(update={"pairs": 8})}
    )
    found = reports_of(spec, prepared)
    assert plan(spec, PARAMS).rung_steps == (1, 1, 1)
    assert [(report.rung, report.pairs) for report in found] == [(2, 8)]


def test_every_batch_size_sees_the_same_pairs_in_the_same_order() -> None:
    """10 rows, two and a half epochs: each epoch holds every row once."""
    order = in_order(10, 25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert list(in_order(10, 28, seed=3)[:25]) == list(
        order
    )  # a batch that rounds up adds, no more
    assert list(in_order(10, 25, seed=4)) != list(order)


@pytest.mark.parametrize(
    ("micro", "accumulation"), [(4, 1), (2, 4)], ids=["batch 4", "batch 2, accumulated 4 times"]
)
def test_trainers_see_the_same_pairs_up_to_a_rung_whatever_their_batch(
    small_spec: Spec,
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    micro: int,
    accumulation: int,
) -> None:
    """What TRL's trainer really computes its loss on, until the first two rungs."""
    seen: list[list[int]] = []
    step = dpo.PreparedDPOTrainer.training_step

    def noted(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        # Chosen answers stand in the first half of the batch, each after its prompt.
        seen.extend(inputs["input_ids"][: len(inputs["input_ids"]) // 2].tolist())
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(dpo.PreparedDPOTrainer, "training_step", noted)

    def rungs(params: dict[str, Any]) -> list[list[tuple[int, ...]]]:
        seen.clear()
        at_rungs: list[list[tuple[int, ...]]] = []

        def report(report: Report) -> None:
            if report.rung is not None:
                pad = load_tokenizer(prepared.tokenizer).pad_token_id
                at_rungs.append([tuple(i for i in ids if i != pad) for ids in seen])
            if report.rung == 1:
                raise SystemExit

        with pytest.raises(SystemExit):
            train(small_spec, {**PARAMS, **params}, prepared, report, seed=1, judge=judge)
        return at_rungs

    eight = rungs({"per_device_train_batch_size": 8})
    assert [len(pairs) for pairs in eight] == [16, 48]
    other = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    assert rungs(other) == eight


@pytest.mark.parametrize(
    ("micro", "accumulation", "smaller"), [(8, 1, (4, 2)), (6, 2, (3, 4)), (5, 1, (1, 5))]
)
def test_halving_keeps_the_effective_batch(
    micro: int, accumulation: int, smaller: tuple[int, int]
) -> None:
    found = Plan(micro, accumulation, 10, (10,)).halved()
    assert found is not None and (found.micro_batch, found.accumulation) == smaller
    assert Plan(1, 4, 10, (10,)).halved() is None


def test_trial_reports_every_measure_at_every_rung(small_spec: Spec, prepared: Prepared) -> None:
    kept: list[Path] = []

    def keep(report: Report) -> None:
        assert report.checkpoint is not None and damage(report.checkpoint) is None
        names = {path.name for path in report.checkpoint.iterdir()}
        assert "model.safetensors" in names and "training_args.bin" not in names
        # The last checkpoint is a result, not a stage: no optimizer in it.
        assert ("optimizer.pt" in names) is (report.step < 18)
        reports.append(report)
        kept.append(report.checkpoint)

    reports: list[Report] = []
    train(small_spec, PARAMS, prepared, keep, seed=1, judge=judge)
    at_rungs = [report for report in reports if report.rung is not None]
    assert [(r.rung, r.step, r.pairs) for r in at_rungs] == [(0, 2, 16), (1, 6, 48), (2, 18, 144)]
    for report in at_rungs:
        assert MEASURES <= set(report.measures)
        assert all(report.measures[name] is not None for name in MEASURES)
        assert report.deltas is not None and report.deltas.shape == (64,)
        assert len(report.samples) == 16
    first, last = at_rungs[0].measures, at_rungs[-1].measures
    assert last["pair_loss"] < first["pair_loss"] < math.log(2)  # type: ignore[operator]
    assert len(reports) > len(at_rungs)  # checkpoints between the rungs
    assert "step 18 of 18" in reports[-1].log
    assert not any(path.exists() for path in kept)  # nothing is left behind


def test_untrained_policy_measures_as_the_design_says(small_spec: Spec, prepared: Prepared) -> None:
    """A learning rate too small to move a weight leaves the reference."""
    last = reports_of(small_spec, prepared, {**PARAMS, "learning_rate": 1e-12})[-1].measures
    assert last["pair_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert last["kl"] == pytest.approx(0, abs=1e-3)
    assert last["margin"] == pytest.approx(0, abs=1e-3)
    assert last["chosen_drift"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("stop_at", [4, 6])
def test_resumed_trial_ends_exactly_like_an_uninterrupted_one(
    small_spec: Spec, prepared: Prepared, tmp_path: Path, stop_at: int
) -> None:
    """Between two rungs, and at a rung whose report was lost."""
    whole = reports_of(small_spec, prepared)
    saved = tmp_path / "checkpoint"

    def interrupt(report: Report) -> None:
        if report.step == stop_at:
            assert report.checkpoint is not None
            shutil.copytree(report.checkpoint, saved)
            raise SystemExit

    with pytest.raises(SystemExit):
        train(small_spec, PARAMS, prepared, interrupt, seed=1, judge=judge)
    rest = reports_of(small_spec, prepared, resume_from=saved)
    assert rest[0].step == (stop_at if stop_at == 6 else stop_at + 2)
    for one, other in zip(whole[-1:], rest[-1:], strict=True):
        assert {k: one.measures[k] for k in MEASURES} == {k: other.measures[k] for k in MEASURES}
        np.testing.assert_array_equal(one.deltas, other.deltas)
        assert one.samples == other.samples


def test_seconds_of_a_resumed_trial_count_those_before(
    small_spec: Spec, prepared: Prepared, tmp_path: Path
) -> None:
    saved = tmp_path / "checkpoint"

    def interrupt(report: Report) -> None:
        assert report.checkpoint is not None
        shutil.copytree(report.checkpoint, saved)
        raise SystemExit

    with pytest.raises(SystemExit):
        train(small_spec, PARAMS, prepared, interrupt, seed=1, judge=judge)
    meta = json.loads((saved / META).read_text())
    assert meta["seconds"] > 0
    (saved / META).write_text(json.dumps({**meta, "seconds": 1000.0}))
    measured = [
        r.measures["seconds"]
        for r in reports_of(small_spec, prepared, resume_from=saved)
        if r.rung is not None
    ]
    assert len(measured) == 3 and measured == sorted(measured)  # type: ignore[type-var]
    assert all(seconds is not None and 1000 < seconds < 1900 for seconds in measured)
    # A checkpoint of a version that kept no seconds counts from now on.
    (saved / META).write_text(json.dumps({k: v for k, v in meta.items() if k != "seconds"}))
    rest = reports_of(small_spec, prepared, resume_from=saved)
    assert 0 < rest[-1].measures["seconds"] < 1000  # type: ignore[operator]


def test_damaged_checkpoint_is_noticed_and_training_starts_again(
    small_spec: Spec, prepared: Prepared, tmp_path: Path
) -> None:
    saved = tmp_path / "checkpoint"

    def interrupt(report: Report) -> None:
        assert report.checkpoint is not None
        shutil.copytree(report.checkpoint, saved)
        raise SystemExit

    with pytest.raises(SystemExit):
        train(small_spec, PARAMS, prepared, interrupt, seed=1)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = reports_of(small_spec, prepared, resume_from=saved)
    assert found[0].step == 2 and found[-1].step == 18
    assert "model.safetensors has changed" in found[0].log


def test_nan_loss_ends_the_trial_with_its_step(small_spec: Spec, prepared: Prepared) -> None:
    last = reports_of(small_spec, prepared, {**PARAMS, "learning_rate": 1e25})[-1]
    assert last.diverged is not None and last.checkpoint is None
    assert "loss is nan at step" in last.diverged


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_one(
    small_spec: Spec, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device that has room for two pairs cannot be here: a step of more than that fails."""
    real = dpo.PreparedDPOTrainer.training_step

    def small_device(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
        if inputs["input_ids"].shape[0] > 2 * 2:  # chosen and rejected of two pairs
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, inputs, *args)

    monkeypatch.setattr(dpo.PreparedDPOTrainer, "training_step", small_device)
    found = reports_of(small_spec, prepared)
    assert found[-1].micro_batch == 2 and found[-1].halved and found[-1].pairs == 144
    assert "continuing with 2" in found[0].log
    monkeypatch.undo()
    whole = reports_of(small_spec, prepared)
    assert not whole[-1].halved
    loss, expected = (r[-1].measures["pair_loss"] for r in (found, whole))
    assert loss == pytest.approx(expected, rel=1e-3)  # the same steps, summed in another order


def test_rung_that_does_not_fit_names_what_to_lower(
    small_spec: Spec, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller micro-batch would not help: answers are sampled in batches of their own."""
    attempts = []

    def full(*args: Any, **kwargs: Any) -> Any:
        attempts.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rungs, "evaluate", full)
    found = measure_once(small_spec, PARAMS, prepared, seed=1, checkpoint=None, judge=None)
    assert found.failed is not None and "evaluation.max_new_tokens" in found.failed
    assert len(attempts) == 1


def test_one_pair_that_does_not_fit_fails_with_the_way_out(
    small_spec: Spec, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dpo.PreparedDPOTrainer, "training_step", full)
    found = measure_once(small_spec, PARAMS, prepared, seed=1, checkpoint=None, judge=None)
    assert found.failed is not None and "gradient_checkpointing" in found.failed


def test_lora_trains_an_adapter_and_leaves_the_reference(
    small_spec: Spec, prepared: Prepared
) -> None:
    lora = {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    spec = small_spec.model_copy(update={"lora": lora})
    params = {**PARAMS, "learning_rate": 5e-3, "lora.lora_alpha": 16}
    shapes = {}

    def look(report: Report) -> None:
        assert report.checkpoint is not None
        weights = load_file(report.checkpoint / "adapter_model.safetensors")
        shapes.update({name: tuple(tensor.shape) for name, tensor in weights.items()})
        assert not (report.checkpoint / "model.safetensors").exists()
        found.append(report)

    found: list[Report] = []
    train(spec, params, prepared, look, seed=1, judge=judge)
    assert {shape[0] for name, shape in shapes.items() if "lora_A" in name} == {4}
    last = found[-1].measures
    assert last["pair_loss"] < math.log(2) - 0.01  # type: ignore[operator]
    assert last["kl"] is not None and math.isfinite(last["kl"])


@pytest.mark.parametrize("params", [{"optim": "rmsprop"}, {"loss_type": ["sigmoid", "sft"]}])
def test_other_optimizers_and_losses(
    small_spec: Spec, prepared: Prepared, params: dict[str, Any]
) -> None:
    last = reports_of(small_spec, prepared, {**PARAMS, **params})[-1]
    assert last.step == 18 and math.isfinite(last.measures["pair_loss"] or math.nan)


def test_finished_checkpoint_is_measured_without_training(
    small_spec: Spec, prepared: Prepared, tmp_path: Path
) -> None:
    saved = tmp_path / "checkpoint"

    def keep(report: Report) -> None:
        found.append(report)
        if report.step == 18:
            assert report.checkpoint is not None
            shutil.copytree(report.checkpoint, saved)

    found: list[Report] = []
    train(small_spec, PARAMS, prepared, keep, seed=1, judge=judge)
    again = measure_once(small_spec, PARAMS, prepared, seed=1, checkpoint=saved, judge=judge)
    (saved / "config.json").write_text("{}")
    damaged = measure_once(small_spec, PARAMS, prepared, seed=1, checkpoint=saved, judge=judge)
    assert damaged.failed is not None and "config.json has changed" in damaged.failed
    assert again.measures["win_rate"] == found[-1].measures["win_rate"]
    np.testing.assert_array_equal(again.deltas, found[-1].deltas)


def test_failure_says_what_and_keeps_the_traceback() -> None:
    try:
        raise KeyError("beta")
    except KeyError as error:
        found = failure(error)
    assert found.failed == "KeyError: 'beta'" and "Traceback" in found.log
    assert failure(UserError("the judge x failed")).failed == "the judge x failed"
