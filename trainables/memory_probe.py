"""The peak device memory of a trial, and the configuration of a space that needs the most."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer
from trl import DPOConfig

from search_spaces.configuration import LORA
from search_spaces.spec import Spec
from trainables.budget import Plan, plan
from trainables.dpo import captured_log, release_memory, train_once
from trainables.judges import Judge
from trainables.prepared import Prepared
from trainables.rungs import Call

# So small that no weight moves: a probe that diverged would end before its rung, where most memory
# is needed, and memory does not depend on the learning rate.
LEARNING_RATE = 1e-12


def widest(spec: Spec, model: Path) -> dict[str, Any]:
    """Return the configuration of the space that needs the most memory.

    Numbers are at their largest, but for the learning rate. Of optimizers it is the one with the
    largest state, of a LoRA field's values the one with the most trainable parameters, of lists
    (such as losses) the longest.

    Args:
        spec: the resolved search.
        model: folder of the model, of which only the configuration is read.
    """
    params: dict[str, Any] = {}
    for name, domain in spec.space.items():
        values = domain.values
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            params[name] = max(values)
    others = {n: d.values for n, d in spec.space.items() if n not in params}
    for name, values in others.items():
        params[name] = max(values, key=lambda value: len(value) if isinstance(value, list) else 0)
    if "optim" in others:
        params["optim"] = max(others["optim"], key=optimizer_state)
    for name, values in others.items():
        if name.startswith(LORA):
            params[name] = max(
                values,
                key=lambda value, name=name: trainable(  # type: ignore[misc]
                    model, spec.configuration({**params, name: value}).lora or {}, spec
                ),
            )
    return params | {"learning_rate": LEARNING_RATE}


def optimizer_state(optim: str) -> int:
    """Return the bytes that an optimizer keeps for a weight of 64 x 64, by one real step of it.

    One that cannot be constructed for a single weight counts as zero.
    """
    weight = torch.nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    with tempfile.TemporaryDirectory(prefix="preftune-probe-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of upstream's about its own defaults
        arguments = DPOConfig(output_dir=folder, optim=optim, use_cpu=True, bf16=False)
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
            optimizer = kind([weight], **options)
            optimizer.step()
        except Exception:  # whatever an optimizer raises that needs a model or a GPU
            return 0
    return _bytes(list(optimizer.state.values()))


def _bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return _bytes(list(state.values()))
    if isinstance(state, Sequence) and not isinstance(state, str):
        return sum(_bytes(part) for part in state)
    return 0


def trainable(model: Path, lora: Mapping[str, Any], spec: Spec) -> int:
    """Return how many parameters an adapter with these `LoraConfig` fields trains.

    Counted on the meta device: nothing is loaded.
    """
    config = AutoConfig.from_pretrained(model, trust_remote_code=spec.trust_remote_code)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's about fields that the trial warns of itself
        base = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
        adapted = get_peft_model(base, LoraConfig(**{"task_type": "CAUSAL_LM", **lora}))
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def peak_of_a_step(
    spec: Spec, params: Mapping[str, Any], prepared: Prepared, judge: Judge | None
) -> int:
    """Return the device memory in bytes that a trial of this configuration peaks at.

    Two optimizer steps (the second with the optimizer's state in place) on the longest pairs there
    are, then a rung: sampled answers, scored by the reference beside the policy and by the judge.
    Where the micro-batch does not fit, a smaller one, as in the trial.

    Raises:
        torch.OutOfMemoryError: one pair does not fit on the device.
    """
    budget = plan(spec, params)
    probe = Plan(budget.micro_batch, budget.accumulation, 2, (2,))
    while True:
        release_memory()
        with (
            tempfile.TemporaryDirectory(prefix="preftune-probe-") as folder,
            captured_log() as text,
        ):
            call = Call(spec, params, prepared, spec.search.seed, judge, text)
            try:
                train_once(call, probe, Path(folder), None, longest_first=True)
                return int(torch.cuda.max_memory_allocated())
            except torch.OutOfMemoryError:
                smaller = probe.halved()
                if smaller is None:
                    raise
                probe = smaller
