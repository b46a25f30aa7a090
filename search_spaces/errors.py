"""The project's errors: what a user can cause, in words that lead out of it."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Marks a key that is not there at all, which `None` (YAML's null) cannot do.
ABSENT = ...


@dataclass(frozen=True)
class Problem:
    """One refusal: the key as the spec writes it, its value, and a reason with the way out."""

    key: str
    value: object
    reason: str

    def __str__(self) -> str:
        if self.value is ABSENT:
            return _one_line(f"{self.key}: {self.reason}")
        # JSON is how the value looks in the YAML: null, true, "text".
        try:
            shown = json.dumps(self.value, ensure_ascii=False, default=str)
        except (
            TypeError,
            ValueError,
        ):  # keys that JSON has no form for, or a mapping inside itself
            shown = repr(self.value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return _one_line(f"{self.key} = {shown}: {self.reason}")


def _one_line(text: str) -> str:
    """Write line breaks and what steers a terminal as Python would: keys may hold anything."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class UserError(Exception):
    """Names the thing, its value and the way out; shown as one sentence, without a traceback."""


class SpecError(UserError):
    """A spec that cannot run: `problems` holds all that is wrong, and its text a line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type["SpecError"], tuple[list[Problem]]]:
        return SpecError, (self.problems,)


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return the words that lead from a wrong name to the valid ones, all of them where few."""
    names = sorted(valid)
    # 0.5 rather than difflib's 0.6: `batch_size` should find `per_device_train_batch_size`.
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"`{one}`" for one in close) + "?"
    if len(names) <= 20:
        return "choose from " + ", ".join(names)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0)
    return "the nearest are " + ", ".join(f"`{one}`" for one in close)
