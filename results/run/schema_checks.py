"""What belongs under which key of a run's files, as far as readers rely on it.

A file that was edited, or damaged into other JSON, is refused where it is read: an error in some
table or plot would not name the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from search_spaces.errors import UserError

TEXT, NUMBER, FLAG = "text", "a whole number", "true or false"
LIST, MAPPING, RECORDS, SECTIONS = "a list", "a mapping", "a list of mappings", "named mappings"
TYPES: dict[str, type] = {TEXT: str, NUMBER: int, FLAG: bool, LIST: list, RECORDS: list}

Shape = Mapping[str, str]

RUN: Shape = {
    **dict.fromkeys(("name", "state", "error", "command", "created", "ended"), TEXT),
    **dict.fromkeys(("seconds", "versions", "seeds", "model", "prepared", "hardware"), MAPPING),
    **dict.fromkeys(("warm_start", "dataset", "revisions"), MAPPING),
    "reference": SECTIONS,
}
SPEC: Shape = {
    **dict.fromkeys(("model", "judge", "precision"), TEXT),
    **dict.fromkeys(("dataset", "training", "lora", "sft", "budget", "search"), MAPPING),
    **dict.fromkeys(("evaluation", "verify", "resources", "objective"), MAPPING),
    "space": SECTIONS,
}
DATA_REPORT: Shape = {"source": MAPPING, "reasons": MAPPING, "splits": SECTIONS}
VERDICT: Shape = {
    **dict.fromkeys(("outcome", "sentence", "metric", "direction"), TEXT),
    **dict.fromkeys(("finalists", "choices"), RECORDS),
    **dict.fromkeys(("params", "reference"), MAPPING),
    "passing": FLAG,
    "winner": NUMBER,
    "tied": LIST,
}
OF_A_WINNER = ("winner", "params", "finalists", "reference")  # keys of a verdict that passes
FULL: Shape = {
    **dict.fromkeys(("outcome", "sentence", "metric"), TEXT),
    **dict.fromkeys(("params", "test", "against_reference", "against_winner"), MAPPING),
    "passing": FLAG,
    "trial": NUMBER,
    "broken": LIST,
}


def check(path: Path, value: Mapping[str, Any], shape: Shape, needed: Sequence[str] = ()) -> None:
    """Refuse a file with a value of another kind, or without a key that is `needed`.

    Raises:
        UserError: with the file, the key and what stands there.
    """
    for key, kind in shape.items():
        found = value.get(key)
        if not _is(found, kind) and (found is not None or key in needed):
            shown = shorten(repr(found), 60) if key in value else "missing"
            raise UserError(
                f"{path} cannot be used: its `{key}` is {shown}, and {kind} belongs there; restore "
                "it, or open another run."
            )


def _is(value: object, kind: str) -> bool:
    inside: list[Any] = []
    if isinstance(value, list) and kind == RECORDS:
        inside = value
    elif isinstance(value, dict) and kind == SECTIONS:
        inside = list(value.values())
    return isinstance(value, TYPES.get(kind, dict)) and all(isinstance(i, dict) for i in inside)
