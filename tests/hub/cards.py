"""The metadata of a README.md: read as the Hub reads it, and refused where the Hub refuses it."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)\r?\n?---[ \t]*(\r?\n|\Z)", re.DOTALL)
REPO_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
# Those of the Hub's list that models and data sets of this field carry.
LICENCES = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m bsd "
    "bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 "
    "cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 "
    "mpl-2.0 odc-by pddl unlicense llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown "
    "other".split()
)


def metadata(card: str) -> dict[str, Any]:
    """Return a card's metadata; empty where there is none, or none that can be read."""
    found = FRONT_MATTER.match(card)
    try:
        value = yaml.safe_load(found["yaml"]) if found else None
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def validated(card: str) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) about a card's metadata, one sentence each."""
    found = FRONT_MATTER.match(card)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        value = yaml.safe_load(found["yaml"])
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {' '.join(str(error).split())}"], []
    if value is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(value, dict):
        return ["YAML Metadata Error: the metadata must be a mapping"], []
    return list(_errors(value)), []


def _errors(card: dict[str, Any]) -> Iterator[str]:
    for licence in _listed(card.get("license")):
        if licence not in LICENCES:
            yield f'"license" must be one of the Hub\'s licences, not {licence!r}'
    for key in ("base_model", "datasets"):
        for name in _listed(card.get(key)):
            if not isinstance(name, str) or not REPO_ID.fullmatch(name):
                yield f'"{key}" with value {name!r} is not valid: use a model or dataset id'
    for key in ("tags", "language"):
        for name in _listed(card.get(key)):
            if not isinstance(name, str):
                yield f'"{key}" must be a string or a list of strings, and holds {name!r}'
    for key in ("library_name", "pipeline_tag"):
        if not isinstance(card.get(key, ""), str):
            yield f'"{key}" must be a string'
    if "model-index" in card:
        yield from _model_index_errors(card["model-index"])


def _model_index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        where = f'"model-index[{i}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            yield f'{where}.name" is required'
            continue
        results = model.get("results")
        if not isinstance(results, list):
            yield f'{where}.results" is required and must be an array'
            continue
        for j, result in enumerate(results):
            at = f"{where}.results[{j}]"
            result = result if isinstance(result, dict) else {}
            if not isinstance(_at(result, "task", "type"), str):
                yield f'{at}.task.type" is required'
            for key in ("type", "name") if "dataset" in result else ():
                if not isinstance(_at(result, "dataset", key), str):
                    yield f'{at}.dataset.{key}" is required'
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                yield f'{at}.metrics" is required and must be an array'
                continue
            for k, metric in enumerate(metrics):
                if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
                    yield f'{at}.metrics[{k}].type" is required'
                elif "value" not in metric:
                    yield f'{at}.metrics[{k}].value" is required'


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _at(value: dict[str, Any], *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None  # type: ignore[assignment]
    return value
