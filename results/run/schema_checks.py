"""The files of a run as pydantic models, as far as readers rely on them.

A file that was edited, or damaged into other JSON, is refused where it is read: an error in a table
or a plot would not name the file. Keys that no model names may hold anything. Most keys may be
missing or null, since an older preftune did not write all of them.
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from search_spaces.errors import UserError

# The type of pydantic's error -> what belongs there.
KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "a list of two numbers",
    "too_long": "a list of two numbers",
}

# A key that must be there: its default does not pass.
NEEDED: Any = Field(None, validate_default=True)
Text: TypeAlias = str | None
Number: TypeAlias = float | None
Whole: TypeAlias = int | None
Mapped: TypeAlias = dict[str, Any] | None
Interval: TypeAlias = Annotated[list[float], Field(min_length=2, max_length=2)] | None


class Record(BaseModel):
    """A JSON object or a YAML mapping; its values must be of the right type as they are."""

    model_config = ConfigDict(strict=True)


class Measures(Record):
    """What was measured of a model, or of a trial at a rung."""

    win_rate: Number = None
    win_rate_length_controlled: Number = None
    judge_score: Number = None
    kl: Number = None
    pair_loss: Number = None
    accuracy: Number = None
    margin: Number = None
    chosen_drift: Number = None
    length_ratio: Number = None
    repetition: Number = None
    ended: Number = None


class RungMeasures(Measures):
    """A line of `measures.jsonl`."""

    rung: int = NEEDED
    pairs: int = NEEDED


class Decision(Record):
    """A line of `decisions.jsonl`."""

    trial: int = NEEDED
    pairs: int = NEEDED
    decision: str = NEEDED
    ended_by: Text = None


class Sample(Record):
    """A line of `samples.jsonl`, or of the reference's answers."""

    row: int = NEEDED
    answer: str = NEEDED
    ended: bool | None = None
    prompt: Text = None
    score: Number = None
    pairs: Whole = None


class Seeds(Record):
    """The seeds of a run."""

    search: Whole = None


class Hardware(Record):
    """What a search ran on."""

    gpus: Number = None


class Info(Record):
    """`run.json`."""

    name: Text = None
    state: Text = None
    error: Text = None
    command: Text = None
    created: Text = None
    ended: Text = None
    seconds: dict[str, float] | None = None
    versions: Mapped = None
    seeds: Seeds | None = None
    model: dict[str, Text] | None = None
    dataset: Mapped = None
    prepared: dict[str, Text] | None = None
    revisions: dict[str, Text] | None = None
    hardware: Hardware | None = None
    warm_start: Mapped = None
    reference: dict[str, Measures] | None = None


class Dataset(Record):
    """`dataset` of a search."""

    path: Text = None
    name: Text = None
    split: Text = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Training(Record):
    """`training` of a search, as far as it is more than fields to be shown."""

    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    loss_type: Annotated[list[str], BeforeValidator(_listed)] | None = None


class Limit(Record):
    """A limit of a search on a measure."""

    min: Number = None
    max: Number = None


class Objective(Record):
    """`objective` of a search."""

    metric: Text = None
    constraints: dict[str, Limit | None] | None = None


class Budget(Record):
    """`budget` of a search."""

    pairs: Whole = None
    steps: Whole = None


class Search(Record):
    """`search` of a search."""

    trials: Whole = None
    minutes: Number = None
    rungs: list[Any] | None = None


class Spec(Record):
    """`spec.yaml`, the resolved search."""

    model: Text = None
    judge: Text = None
    precision: Text = None
    dataset: Dataset | None = None
    space: dict[str, dict[str, Any]] | None = None
    training: Training | None = None
    lora: Mapped = None
    sft: Mapped = None
    evaluation: Mapped = None
    objective: Objective | None = None
    budget: Budget | None = None
    search: Search | None = None
    verify: Mapped = None
    resources: Mapped = None


class Split(Record):
    """A split in the data report."""

    raw: Whole = None
    dropped: dict[str, int] | None = None
    read_as: dict[str, int] | None = None
    truncated: Number = None
    longer_is_chosen: Number = None
    prompt_tokens: Mapped = None
    answer_tokens: Mapped = None


class DataReport(Record):
    """`data_report.json`."""

    source: Mapped = None
    chat_template: Mapped = None
    reasons: Mapped = None
    readings: Mapped = None
    examples: Mapped = None
    columns: Mapped = None
    unread: list[str] | None = None
    splits: dict[str, Split | None] | None = None


class FreshSeed(Record):
    """A finalist that was trained again."""

    test: Measures | None = None


class Finalist(Record):
    """A finalist of a verdict."""

    number: int = NEEDED
    difference: Number = None
    interval: Interval = None
    configuration_difference: Number = None
    configuration_interval: Interval = None
    judge_score_difference: Number = None
    judge_score_interval: Interval = None
    broken: list[Any] | None = None
    test: Measures | None = None
    fresh_seeds: list[FreshSeed] | None = None


class Verdict(Record):
    """`verdict.json`."""

    outcome: Text = None
    metric: Text = None
    direction: Text = None
    passing: bool | None = None
    winner: Whole = None
    params: Mapped = None
    confidence: Number = None
    reference: Measures | None = None
    tied: list[int] | None = None
    best: Mapped = None
    finalists: list[Finalist] | None = None


class PassingVerdict(Verdict):
    """`verdict.json` that passes."""

    winner: int = NEEDED
    params: dict[str, Any] = NEEDED
    reference: Measures = NEEDED
    finalists: list[Finalist] = NEEDED


class Gain(Record):
    """How much better one model is than another."""

    difference: Number = None
    interval: Interval = None


class Full(Record):
    """`full.json`."""

    trial: int = NEEDED
    pairs: int = NEEDED
    params: dict[str, Any] = NEEDED
    test: Measures = NEEDED
    against_reference: Gain = NEEDED
    against_winner: Gain | None = None
    outcome: Text = None
    metric: Text = None
    direction: Text = None
    passing: bool | None = None
    broken: list[Any] | None = None


def check(path: Path, value: Mapping[str, Any], model: type[Record]) -> None:
    """Refuse a file with a value of another type, or without a key that it must have.

    Raises:
        UserError: it names the file, the key, what is there and what belongs there.
    """
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        shown = "missing" if first["input"] is None else shorten(repr(first["input"]), 60)
        kind = KINDS.get(first["type"], first["msg"])
        raise UserError(
            f"{path} cannot be used: its `{key}` is {shown}, and {kind} belongs there; restore it, "
            "or open another run."
        ) from error
