"""Read a spec's YAML, apply overrides to it, and find the files it names."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search_spaces.errors import ABSENT, Problem, SpecError, nearest
from search_spaces.locations import resolve_paths

SHIPPED = Path(__file__).parent
# YAML 1.1, which PyYAML speaks, takes 1e-3 for text; who writes it means the number.
_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases and repeated keys, of which the last would win in silence."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                None, None, "aliases are not supported; repeat the value", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.MarkedYAMLError(
                    None,
                    None,
                    f"the key `{key}` is there twice; keep one",
                    node.value[index][0].start_mark,
                )
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse(text: str, key: str) -> Any:
    """Return the value of a YAML text; a syntax error is a SpecError about `key`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SpecError([Problem(key, ABSENT, f"not valid YAML: {error.problem}{place}")]) from None
    # PyYAML lets its constructors' own errors through: an impossible date, an empty `!!int`.
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as e:
        reason = f"not valid YAML: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
        raise SpecError([Problem(key, ABSENT, reason)]) from None


def dump(data: Mapping[str, Any]) -> str:
    """Return the YAML text of plain data, in its own order."""
    flow = None  # sections as blocks, what is innermost on one line
    return yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=flow,
    )


def shipped() -> list[str]:
    """Return the names of the specs that come with preftune."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read(source: str) -> tuple[dict[str, Any], Path]:
    """Return a spec's raw mapping and the folder that its relative paths start from.

    Raises:
        SpecError: no such name or file, unreadable, not YAML, or not a mapping.
    """

    def refuse(reason: str) -> SpecError:
        return SpecError([Problem(source, ABSENT, reason)])

    if source in shipped():
        path = SHIPPED / f"{source}.yaml"
    elif source.endswith((".yaml", ".yml")) or os.path.isfile(source):
        path = Path(source)
    else:
        raise refuse(
            "no shipped spec has this name, and a spec of your own is a path ending in .yaml; "
            + nearest(source, shipped())
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refuse(
            "there is no such file; check the path, or name a shipped spec: " + ", ".join(shipped())
        ) from None
    except UnicodeDecodeError:
        raise refuse("not a text file in UTF-8; save it as one") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        cause = error.strerror if isinstance(error, OSError) else error
        raise refuse(f"cannot be read ({cause}); check the path and its permissions") from None
    data = parse(text, source)
    if data is None:
        raise refuse("the file is empty; start from a shipped spec: " + ", ".join(shipped()))
    if not isinstance(data, dict):
        raise refuse(
            "a spec is a mapping that starts with `model:`, `dataset:` and `space:`; this "
            "file holds something else"
        )
    return data, path.parent.absolute()


def override(data: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Set `key.path=value` for each override, in place; the values are YAML.

    Sections on the way are made where they are missing or null. `space.<field>=null` takes the
    field out of the space. Relative paths start from the working folder, not from the spec's.
    """
    problems = []
    for text in overrides:
        path, equals, value_text = text.partition("=")
        keys = _split(path.strip())
        if not equals or not all(keys):
            problems.append(
                Problem(f"--set {text}", ABSENT, "write key.path=value, such as search.trials=8")
            )
            continue
        try:
            value = parse(value_text, f"--set {text}")
        except SpecError as error:
            problems += error.problems
            continue
        section = data
        for key in keys[:-1]:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                reason = f"`{key}` holds no keys of its own; set {key}={{...}} as a whole"
                problems.append(Problem(f"--set {text}", ABSENT, reason))
                break
        else:
            if keys[0] == "space" and len(keys) == 2 and value is None:
                section.pop(keys[-1], None)
            else:
                section[keys[-1]] = value
                resolve_paths(data, Path.cwd(), only=".".join(keys))
    return problems


def _split(path: str) -> list[str]:
    """Split an override's key at its dots; `lora.r` inside `space` is one key."""
    keys = path.split(".")
    if keys[:2] == ["space", "lora"] and len(keys) > 2:
        keys[1:3] = [".".join(keys[1:3])]
    return keys


def plain(value: Any) -> Any:
    """Return a deep copy in dicts and lists, whatever kinds of mapping and sequence came in."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number, whole ones up to 2**53; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 2**53 if isinstance(value, int) else math.isfinite(value)
