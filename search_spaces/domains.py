"""The five ways in which a field may vary."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from search_spaces.errors import nearest
from search_spaces.yaml_io import is_number

KINDS = ("choice", "uniform", "loguniform", "int", "logint")


class Domain(BaseModel):
    """What one field may be: `{choice: [...]}`, or a range such as `{uniform: [low, high]}`.

    `kind` is one of choice, uniform, loguniform, int and logint; `values` holds the choices, or low
    and high, both of which belong to the range.
    """

    model_config = ConfigDict(frozen=True, strict=True)
    kind: Literal["choice", "uniform", "loguniform", "int", "logint"]
    values: list[Any]

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, data: Any) -> Any:
        if isinstance(data, Domain):
            return data
        reason = _reason(data)
        if reason is not None:
            # Braces in a user's value would be taken for the template's own.
            raise PydanticCustomError("domain", "{reason}", {"reason": reason})
        ((kind, values),) = data.items()
        if kind in ("uniform", "loguniform"):
            values = [float(value) for value in values]
        return {"kind": kind, "values": values}

    @model_serializer
    def _to_mapping(self) -> dict[str, list[Any]]:
        return {self.kind: self.values}

    def holds(self, value: object) -> bool:
        """Tell whether the domain contains a value."""
        if self.kind == "choice":
            return any(same(value, one) for one in self.values)
        if not is_number(value) or (self.kind in ("int", "logint") and not isinstance(value, int)):
            return False
        return bool(self.values[0] <= value <= self.values[1])

    def size(self) -> float:
        """Return how many values there are; infinite for a range of real numbers."""
        if self.kind == "choice":
            return len(self.values)
        if self.kind in ("int", "logint"):
            return int(self.values[1] - self.values[0] + 1)
        return math.inf

    def __str__(self) -> str:
        return f"{{{self.kind}: {self.values}}}"


def same(one: object, other: object) -> bool:
    """Compare two values as Optuna does, except that true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _reason(data: Any) -> str | None:
    """Say why a raw value is not a domain, or return None."""
    if not isinstance(data, dict):
        return (
            "a field of the space needs a domain; put a constant under `training` "
            "(lora.* under `lora`), or write {choice: [...]}"
        )
    if len(data) != 1:
        return f"a domain has exactly one of {', '.join(KINDS)}; this has {len(data)} keys"
    ((kind, values),) = data.items()
    if kind not in KINDS:
        return f"`{kind}` is not a kind of domain; {nearest(kind, KINDS)}"
    if kind == "choice":
        return _choice_reason(values)
    if not isinstance(values, list) or len(values) != 2:
        return f"a range is its two ends; write {{{kind}: [low, high]}}"
    for value in values:
        if not is_number(value):
            return (
                f"{value!r} is not a finite number; write {{{kind}: [low, high]}} with "
                f"numbers, not in quotes"
            )
        if kind in ("int", "logint") and not isinstance(value, int):
            return f"{value!r} is not a whole number; write one, or use uniform or loguniform"
    low, high = values
    if low >= high:
        return (
            f"the first end must be below the second; write {{{kind}: [low, high]}}, or "
            f"{{choice: [{low}]}} for one value"
        )
    if kind in ("loguniform", "logint") and low <= 0:
        return (
            f"a logarithmic range starts above 0; raise {low} or use "
            f"{'int' if kind == 'logint' else 'uniform'}"
        )
    return None


def _choice_reason(values: Any) -> str | None:
    if not isinstance(values, list) or not values:
        return "a choice is a list of at least one value; write {choice: [a, b]}"
    for index, value in enumerate(values):
        if any(value == earlier for earlier in values[:index]):
            return f"{value!r} is given twice among the choices (Optuna takes true for 1); keep one"
        if not _is_plain(value):
            return (
                f"{value!r} cannot be a choice; use text, finite numbers, true, false, "
                f"null, or lists and mappings of them"
            )
    return None


def _is_plain(value: object) -> bool:
    """Tell whether JSON holds a value without loss."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, str | bool) or is_number(value)
