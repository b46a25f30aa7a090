"""Check the names and values of TRL's and PEFT's own fields against the classes themselves."""

import dataclasses
import enum
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from search_spaces import trial_construction
from search_spaces.domains import Domain
from search_spaces.errors import ABSENT, Problem, nearest
from search_spaces.reserved_fields import IN_LORA, IN_SPACE, IN_TRAINING, Table, reason_for
from search_spaces.yaml_io import is_number

# TRL checks these two only once it trains. From `DPOConfig`'s help (TRL 1.16), as a test holds.
LOSS_TYPES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero "
    "apo_down discopop sft sigmoid_norm"
).split()
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

# Ranges that the two libraries do not check, or only by failing in the middle of training.
_ABOVE_ZERO = set("learning_rate beta adam_epsilon discopop_tau neftune_noise_alpha".split())
_NOT_NEGATIVE = set("weight_decay max_grad_norm warmup_steps router_aux_loss_coef".split())
_AT_LEAST_ONE = set(
    "per_device_train_batch_size gradient_accumulation_steps max_length r lora_alpha".split()
)
_BELOW_ONE = {"adam_beta1", "adam_beta2", "lora_dropout"}


# LoRA's usual fields, to know them where their prefix was forgotten.
_COMMON_LORA = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"}


def problems(
    space: Mapping[str, Domain],
    searched: Collection[str],
    training: Mapping[str, Any],
    lora: Mapping[str, Any] | None,
) -> Iterator[Problem]:
    """Yield everything that is wrong with the fields of a search.

    Args:
        space: the domains that are well formed.
        searched: the names of all domains, well formed or not.
        training: fixed DPOConfig fields.
        lora: fixed LoraConfig fields, or None where LoRA is off.
    """
    # Importing the two takes seconds; nothing outside this function may.
    from peft import LoraConfig
    from trl import DPOConfig

    dpo = _Upstream(DPOConfig, IN_TRAINING)
    peft = _Upstream(LoraConfig, IN_LORA)
    drops_out = training.get("disable_dropout") is False
    fixed: dict[str, dict[str, Any]] = {"training": {}, "lora": {}}
    for section, upstream, given in (("training", dpo, training), ("lora", peft, lora or {})):
        for name, value in given.items():
            key = f"{section}.{name}"
            if (name if section == "training" else key) in searched:
                yield Problem(key, value, "also in `space`; keep one of the two")
            wrong = list(upstream.check(key, name, [value], value, drops_out))
            yield from wrong
            if not wrong:
                fixed[section][name] = value

    tried: dict[str, list[Any]] = {}
    for name in searched:
        key = f"space.{name}"
        values = space[name].values if name in space else []
        shown = space[name].model_dump() if name in space else ABSENT
        if name.startswith("lora."):
            wrong = list(peft.check(key, name[5:], values, shown, drops_out))
            if lora is None:
                reason = "LoRA is off; turn it on with `lora: {}`, or take this out"
                wrong.insert(0, Problem(key, shown, reason))
        elif (reason_in_space := reason_for(name, IN_SPACE)) is not None:
            wrong = [Problem(key, shown, reason_in_space)]
        else:
            wrong = list(dpo.check(key, name, values, shown))
        yield from wrong
        if not wrong:
            tried[name] = values
    yield from trial_construction.constructed(
        DPOConfig, LoraConfig, fixed["training"], fixed["lora"], tried
    )
    yield from trial_construction.losses(fixed["training"], tried)


class _Upstream:
    """One of the two dataclasses: its fields, their types, and which of them are refused."""

    def __init__(self, config: Any, refused: Table) -> None:
        self.name: str = config.__name__
        self.refused = refused
        self.fields = {field.name: field for field in dataclasses.fields(config) if field.init}
        self.types = typing.get_type_hints(config)

    def check(
        self, key: str, name: str, values: list[Any], shown: object, drops_out: bool = False
    ) -> Iterator[Problem]:
        """Yield what is wrong with a field's name, or else with each of its values.

        Args:
            key: where the field is in the spec.
            name: the field's own name, without `lora.`.
            values: the constant, the choices, or the two ends of a range.
            shown: what the user wrote.
            drops_out: whether dropout is on while training.
        """
        reason = reason_for(name, self.refused)
        if name == "lora_dropout" and not drops_out:
            reason = (
                "it has no effect while disable_dropout is on; set "
                "training.disable_dropout to false, or leave it out"
            )
        if name not in self.fields:
            yield Problem(key, shown, self._unknown(name))
        elif reason is not None:
            yield Problem(key, shown, reason)
        else:
            for value in values:
                if (reason := self._value_reason(name, value)) is not None:
                    yield Problem(key, value, reason)

    def _unknown(self, name: str) -> str:
        usable = [field for field in self.fields if not reason_for(field, self.refused)]
        lora_name = name.removeprefix("lora.")
        if self.name == "DPOConfig" and lora_name in _COMMON_LORA:
            return (
                f"a LoraConfig field; write {lora_name} under `lora`, or "
                f"lora.{lora_name} in `space`"
            )
        return f"{self.name} has no such field; {nearest(name, usable)}"

    def _value_reason(self, name: str, value: Any) -> str | None:
        """Say why a field cannot have a value, or return None."""
        hint = self.types[name]
        for option in (hint, *typing.get_args(hint)):
            if isinstance(option, type) and issubclass(option, enum.Enum):
                names = [str(member.value) for member in option]
                if value not in names:
                    return f"no such {name}; {nearest(value, names)}"
        choices = self.fields[name].metadata.get("choices")
        if choices is not None and value not in [*choices, None]:
            return f"no such {name}; {nearest(value, choices)}"
        if name == "loss_type":  # TRL takes one name for a list of one
            names = value if isinstance(value, list) else [value]
            for one in names:
                if one not in LOSS_TYPES:
                    return f"{one!r} is not a loss type of TRL; {nearest(one, LOSS_TYPES)}"
            return None if names else "name at least one loss type, such as [sigmoid]"
        if name == "f_divergence_type" and value not in F_DIVERGENCES:
            return f"no such divergence; {nearest(value, F_DIVERGENCES)}"
        if name == "max_length" and value is None:
            return "preparation needs a length to truncate at; give a number of tokens"
        if name == "truncation_mode" and value != "keep_start":
            return "TRL has deprecated it, and preparation keeps the start; leave it out"
        try:
            TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(
                value
            )
        except ValidationError as error:
            expected = error.errors()[0]["msg"].removeprefix("Input should be ")
            quoted = "; write numbers without quotes" if isinstance(value, str) else ""
            whole = (
                "; use a choice or int"
                if isinstance(value, float) and "integer" in expected
                else ""
            )
            return f"{self.name}.{name} takes {expected}{quoted}{whole}"
        return _range_reason(name, value) or _reference_reason(name, value)


def _range_reason(name: str, value: object) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not is_number(value):
            return "not a finite number; write one such as 1.0e-4"
        if name in _ABOVE_ZERO and value <= 0:
            return "must be above 0; raise it"
        if name in _NOT_NEGATIVE and value < 0:
            return "must not be negative; use 0 or more"
        if name in _AT_LEAST_ONE and value < 1:
            return "must be at least 1; raise it"
        if name in _BELOW_ONE and not 0 <= value < 1:
            return "must be at least 0 and below 1; change it"
        if name == "label_smoothing" and not 0 <= value < 0.5:
            return "the share of flipped labels must be at least 0 and below 0.5; change it"
    return None


def _reference_reason(name: str, value: object) -> str | None:
    """Say which values of LoRA's fields would spoil the reference or the log-probs."""
    if name == "target_modules" and isinstance(value, str | list):
        if value == "lm_head" or (isinstance(value, list) and "lm_head" in value):
            return (
                "TRL computes log-probs from lm_head's own weight, so its adapter would "
                "never train; take lm_head out"
            )
    if name == "bias" and value != "none":
        return (
            "trained biases stay when the adapter is off, so that would not be the "
            "reference; leave it out"
        )
    if name == "init_lora_weights" and value not in (True, "gaussian", "mica"):
        return "the trial would not start at the reference; use true, gaussian or mica"
    return None
