"""Which configuration the memory probe trains, and that it gets as far as its rung."""

from typing import Any

import pytest

from search_spaces.spec import Spec, validate
from trainables import rungs
from trainables.evaluation.evaluate import Evaluation
from trainables.memory_probe import LEARNING_RATE, optimizer_state, peak_of_a_step, widest
from trainables.prepared import Prepared
from trainables.quickstart.judge import judge
from trainables.quickstart.world import BASE


def space(small_spec: Spec, fields: dict[str, Any], lora: dict[str, Any] | None = None) -> Spec:
    raw = small_spec.model_dump(exclude_none=True)
    return validate({**raw, "space": fields, "lora": lora})


def test_choices_are_taken_by_their_memory_not_by_their_place(small_spec: Spec) -> None:
    fields = {
        "learning_rate": {"loguniform": [1e-6, 1e25]},
        "optim": {"choice": ["sgd", "rmsprop", "adamw_torch", "adafactor"]},
        "per_device_train_batch_size": {"choice": [2, 8, 4]},
        "beta": {"uniform": [0.1, 0.9]},
        "loss_type": {"choice": [["sigmoid"], ["sigmoid", "sft"]]},
    }
    assert widest(space(small_spec, fields), BASE) == {
        "learning_rate": LEARNING_RATE,
        "optim": "adamw_torch",
        "per_device_train_batch_size": 8,
        "beta": 0.9,
        "loss_type": ["sigmoid", "sft"],
    }


def test_lora_fields_are_taken_by_the_parameters_they_train(small_spec: Spec) -> None:
    every = ["c_attn", "c_proj", "c_fc"]
    fields = {
        "lora.target_modules": {"choice": [["c_attn"], "all-linear", every[:2]]},
        "lora.r": {"choice": [4, 16, 8]},
        "lora.use_dora": {"choice": [False, True]},
    }
    found = widest(space(small_spec, fields, {"fan_in_fan_out": True}), BASE)
    assert found["lora.target_modules"] == "all-linear"  # the four of each layer
    assert found["lora.r"] == 16
    assert found["lora.use_dora"] is True  # a magnitude for each column besides


def test_optimizers_are_ordered_by_the_state_they_keep() -> None:
    states = [optimizer_state(n) for n in ("sgd", "adafactor", "rmsprop", "adamw_torch")]
    assert states == sorted(states) and states[0] == 0
    assert states[-1] >= 2 * 64 * 64 * 4  # two moments in float32


def test_probe_reaches_its_rung_where_the_largest_learning_rate_diverges(
    small_spec: Spec, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = space(
        small_spec,
        {"learning_rate": {"choice": [1e25, 1e-4]}, "optim": {"choice": ["sgd", "adamw_torch"]}},
    )
    real, measured = rungs.Trial.evaluate, []

    def evaluate(trial: rungs.Trial) -> Evaluation:
        measured.append(type(trial.trainer.optimizer.optimizer).__name__)
        return real(trial)

    monkeypatch.setattr(rungs.Trial, "evaluate", evaluate)
    peak_of_a_step(spec, widest(spec, prepared.model), prepared, judge)
    assert measured == ["AdamW"]
