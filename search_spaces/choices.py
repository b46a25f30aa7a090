"""How a choice that is a list or a mapping is stored as an Optuna category, and read back."""

import json
from typing import Any

# Text that starts like JSON is itself written as JSON: decoding is exact for `[qk]_proj` too.
_JSON_STARTS = ("[", "{", '"')

Category = None | bool | int | float | str


def encode(name: str, value: Any) -> Category:
    """Return the form of a field's value that Optuna stores.

    Raises:
        TypeError: the value is neither a scalar nor made of lists and mappings of scalars.
    """
    if isinstance(value, list | dict) or (
        isinstance(value, str) and value.startswith(_JSON_STARTS)
    ):
        return json.dumps(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: {value!r} cannot be a choice")


def decode(name: str, value: Category) -> Any:
    """Return the value that `encode` was given.

    Raises:
        ValueError: the text starts like JSON and is none, so it never came from `encode`.
    """
    if isinstance(value, str) and value.startswith(_JSON_STARTS):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError(
                f"{name}: the study holds {value!r}, which no spec of ours wrote"
            ) from None
    return value
