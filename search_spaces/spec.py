"""Load a search, say everything that is wrong with it, and fill in every default."""

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from search_spaces import objective, rules, upstream_fields, yaml_io
from search_spaces.errors import ABSENT, Problem, SpecError, nearest
from search_spaces.locations import resolve_paths
from search_spaces.schema import Spec

__all__ = ["Spec", "load", "validate"]


def load(source: str, overrides: Sequence[str] = ()) -> Spec:
    """Load a spec by its shipped name or its path, set the overrides, and check all of it.

    Args:
        source: a name from `yaml_io.shipped()`, or a path.
        overrides: `key.path=value` with YAML values; `space.<field>=null` takes a field out of the
            space. Relative paths in an override start from the working folder, those in a file from
            the file's folder.

    Raises:
        SpecError: with every problem found.
    """
    data, folder = yaml_io.read(source)
    resolve_paths(data, folder)
    return _checked(data, yaml_io.override(data, overrides))


def validate(data: Mapping[str, Any]) -> Spec:
    """Check a raw spec and fill in its defaults; relative paths start from the working folder.

    Raises:
        SpecError: with every problem found.
    """
    raw = yaml_io.plain(data)
    resolve_paths(raw, Path.cwd())
    return _checked(raw, [])


def _checked(raw: dict[str, Any], problems: list[Problem]) -> Spec:
    """Return the spec of raw data, or raise with the problems so far and all that are found."""
    data = _text_keys(raw, "", problems)
    _loss_lists(data)
    data["objective"] = objective.with_defaults(data.get("objective"), data.get("judge"))
    space = data.get("space")
    searched = list(space) if isinstance(space, dict) else []
    spec, structural = _structured(data)
    problems = problems + structural
    broken = [problem.key for problem in structural]
    for keys, check in rules.CHECKS:
        # A check that reads a broken key would judge the default that replaces it.
        if not any(_related(key, wrong) for key in keys for wrong in broken):
            problems += check(spec)
    problems += upstream_fields.problems(spec.space, searched, spec.training, spec.lora)
    if "space" not in broken:
        problems += rules.try_first(spec, searched)
    if problems:
        raise SpecError(problems)
    return spec


def _text_keys(data: Any, key: str, problems: list[Problem]) -> Any:
    """Return a copy without the keys that are not text, each of which is a problem.

    So is text that no file can hold: half of a surrogate pair, which YAML can spell.
    """
    if isinstance(data, list):
        return [_text_keys(item, f"{key}[{index}]", problems) for index, item in enumerate(data)]
    if isinstance(data, str) and not _utf8(data):
        problems.append(Problem(key, ABSENT, "holds half of a character; write a whole one"))
        return None
    if not isinstance(data, dict):
        return data
    kept = {}
    for name, value in data.items():
        path = f"{key}.{name}".removeprefix(".")
        if isinstance(name, str) and _utf8(name):
            kept[name] = _text_keys(value, path, problems)
        else:
            problems.append(
                Problem(path, ABSENT, f"the key {name!r} is not text; name a key of the grammar")
            )
    return kept


def _utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _loss_lists(data: dict[str, Any]) -> None:
    """Write every loss type as the list that TRL wants, in place: `sigmoid` is `[sigmoid]`."""

    def in_list(value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    search, space = data.get("search"), data.get("space")
    entries = search.get("try_first") if isinstance(search, dict) else None
    for section in [data.get("training"), *(entries if isinstance(entries, list) else [])]:
        if isinstance(section, dict) and "loss_type" in section:
            section["loss_type"] = in_list(section["loss_type"])
    domain = space.get("loss_type") if isinstance(space, dict) else None
    if isinstance(domain, dict) and isinstance(domain.get("choice"), list):
        domain["choice"] = [in_list(value) for value in domain["choice"]]


# What replaces a required key while the rest is checked.
_STAND_INS: dict[str, Any] = {
    "model": "quickstart",
    "dataset": {"path": "quickstart"},
    "dataset.path": "quickstart",
    "space": {},
    "objective": {"metric": "pair_loss", "constraints": {}},
    "objective.metric": "pair_loss",
    "objective.constraints": {},
}


def _structured(data: dict[str, Any]) -> tuple[Spec, list[Problem]]:
    """Return the spec of what is well formed, and a problem for each key that is not."""
    problems: list[Problem] = []
    while True:  # each round takes keys out, or puts well-formed ones in their place
        try:
            return Spec.model_validate(data), problems
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                loc, key = detail["loc"], _dotted(detail["loc"])
                if not any(_related(key, earlier.key) for earlier in problems):
                    value = ABSENT if detail["type"] == "missing" else detail["input"]
                    reason = _reason(detail["type"], detail["msg"], value, loc)
                    problems.append(Problem(key, value, reason))
                _remove(data, loc)


def _remove(data: dict[str, Any], loc: tuple[int | str, ...]) -> None:
    """Take a key out, or put its stand-in there; an entry of a list takes the list with it."""
    section, depth = data, 0
    while depth < len(loc) - 1 and isinstance(inner := section.get(str(loc[depth])), dict):
        section, depth = inner, depth + 1
    stand_in = _STAND_INS.get(_dotted(loc[: depth + 1]))
    if stand_in is not None:
        section[str(loc[depth])] = yaml_io.plain(stand_in)
    else:
        section.pop(str(loc[depth]), None)


def _dotted(loc: Sequence[int | str]) -> str:
    """Write a location as the user would: `search.try_first[0].beta`."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc
    ).removeprefix(".")


def _related(key: str, other: str) -> bool:
    """Tell whether two keys are the same or one is inside the other."""
    short, long = sorted((key, other), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))


def _section(loc: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model whose keys are at a location, if the grammar has one there."""
    here: Any = Spec
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:  # a mapping of names to sections, such as the constraints
            here = (None, None, *typing.get_args(here))[-1]
        optional = [one for one in typing.get_args(here) if one is not type(None)]
        here = optional[0] if len(optional) == 1 else here
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _reason(kind: str, message: str, value: object, loc: Sequence[int | str]) -> str:
    """Put pydantic's word for a structural error into ours."""
    if kind == "missing":
        return (
            "needed, and has no default; every spec names a `model`, a `dataset: {path: "
            "...}` and a `space`"
        )
    if kind == "extra_forbidden":
        section = _section(loc[:-1])
        return f"no such key; {nearest(loc[-1], section.model_fields if section else ())}"
    if kind in ("model_type", "dict_type"):
        section = _section(loc)
        keys = f" with keys from {', '.join(section.model_fields)}" if section else ""
        return f"a mapping goes here; write {{key: value}}{keys}"
    reason = message.replace("Input should be ", "must be ")
    if kind == "string_type":
        return reason + "; put text that looks like a number or date in quotes"
    if isinstance(value, str) and kind.startswith(("int", "float")):
        return reason + "; write numbers without quotes"
    return reason
