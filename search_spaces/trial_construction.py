"""Try fields together, as every trial will: on the real classes, and by TRL's own rules."""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces.errors import Problem

# The loss types that TRL lets another divergence into (`DPOTrainer.__init__`, TRL 1.16).
_DIVERGING = set("sigmoid sigmoid_norm hinge ipo exo_pair robust discopop sft".split())


def constructed(
    dpo_config: Any,
    lora_config: Any,
    training: Mapping[str, Any],
    lora: Mapping[str, Any],
    tried: Mapping[str, list[Any]],
) -> Iterator[Problem]:
    """Construct the real classes: from the fixed fields, then from each value of the space on top.

    Args:
        dpo_config: `trl.DPOConfig`.
        lora_config: `peft.LoraConfig`.
        training: fixed DPOConfig fields.
        lora: fixed LoraConfig fields.
        tried: the values to try of each field in the space.
    """
    quiet = {"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none"}
    # Its length is compared with every loss in `losses`.
    training = {name: value for name, value in training.items() if name != "loss_weights"}
    of_dpo = {name: values for name, values in tried.items() if not name.startswith("lora.")}
    of_lora = {name[5:]: values for name, values in tried.items() if name.startswith("lora.")}
    of_dpo.pop("loss_weights", None)
    yield from _each(dpo_config, "training", "space.", quiet, training, of_dpo)
    yield from _each(lora_config, "lora", "space.lora.", {}, lora, of_lora)


def _each(
    config: Any,
    section: str,
    searched: str,
    base: Mapping[str, Any],
    fixed: Mapping[str, Any],
    tried: Mapping[str, list[Any]],
) -> Iterator[Problem]:
    together = _failure(config, {**base, **fixed})
    if together is not None:
        alone = [
            Problem(f"{section}.{name}", value, failure)
            for name, value in fixed.items()
            if (failure := _failure(config, {**base, name: value})) is not None
        ]
        yield from alone or [Problem(section, dict(fixed), together)]
        fixed = {}
    for name, values in tried.items():
        for value in values:
            failure = _failure(config, {**base, **fixed, name: value})
            if failure is not None:
                yield Problem(f"{searched}{name}", value, failure)


def _failure(config: Any, arguments: Mapping[str, Any]) -> str | None:
    """Return the first line of what a class says against its arguments, or None."""
    try:
        with warnings.catch_warnings():
            # Deprecations of upstream's own defaults are not this user's doing.
            warnings.simplefilter("ignore")
            made = config(**arguments)
            if "optim" in arguments:
                from transformers import Trainer

                # Finds an optimizer whose package is not installed.
                Trainer.get_optimizer_cls_and_kwargs(made)
    except Exception as error:  # whatever a library raises for a value that it does not take
        text = str(error).strip().split("\n")[0] or type(error).__name__
        # An optimizer that asks for the model cannot be tried; every other complaint is real.
        return None if "pass a model" in text else f"{config.__name__} refuses it: {text}"
    return None


def losses(fixed: Mapping[str, Any], tried: Mapping[str, list[Any]]) -> Iterator[Problem]:
    """Yield the combinations of loss fields that `DPOTrainer.__init__` refuses (TRL 1.16)."""
    names = ("loss_type", "loss_weights", "label_smoothing", "f_divergence_type", "use_weighting")
    defaults = (["sigmoid"], None, 0.0, "reverse_kl", False)
    axes = [
        tried.get(name) or [fixed.get(name, default)]
        for name, default in zip(names, defaults, strict=True)
    ]
    seen = set()
    for types, weights, smoothing, divergence, weighting in itertools.product(*axes):
        losses = [types] if isinstance(types, str) else types
        reasons = []
        if weights is not None and len(weights) != len(losses):
            reasons.append(
                f"loss_weights has {len(weights)} entries for {len(losses)} losses; make them equal"
            )
        if "exo_pair" in losses and smoothing == 0:
            reasons.append(
                "exo_pair needs label_smoothing above 0; set training.label_smoothing, "
                "1.0e-3 in its paper"
            )
        if divergence != "reverse_kl" and not set(losses) <= _DIVERGING:
            reasons.append(f"no {divergence} for this loss; use f_divergence_type: reverse_kl")
        if weighting and {"aot", "aot_unpaired"} & set(losses):
            reasons.append(
                "use_weighting does not go with aot, which sorts the pairs; set it to false"
            )
        for reason in reasons:
            if (str(losses), reason) not in seen:
                seen.add((str(losses), reason))
                section = "space" if "loss_type" in tried else "training"
                yield Problem(f"{section}.loss_type", types, reason)
