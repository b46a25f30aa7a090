"""The grammar of a search as types: every key, its default, and what can be said of it alone."""

import math
import os.path
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from search_spaces import yaml_io
from search_spaces.configuration import Configuration, configure
from search_spaces.domains import Domain
from search_spaces.objective import Objective
from search_spaces.yaml_io import is_number

Count = Annotated[int, Field(ge=1, le=2**53)]  # as far as every whole number is a float too
SEEDS = 2**32  # numpy's range; a seed that is derived from another wraps round in it
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


def _gpu(value: Any) -> Any:
    if value == "auto" or (is_number(value) and 0 <= value <= 1):
        return value if value == "auto" else float(value)
    # Ray would take 2, and the trial would leave the second device idle.
    raise PydanticCustomError(
        "gpu", ("a trial runs on at most one device; use auto, 0, or a fraction up to 1")
    )


def _storage(value: str) -> str:
    folder = os.path.expanduser(value) if value.isprintable() else ""
    if not folder or folder.startswith("~"):
        raise PydanticCustomError("storage", "names no folder; write a path, such as runs")
    return folder


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


PARTS = ("prompt", "chosen", "rejected", "system", "tools", "chat_template_kwargs")


def _columns(value: dict[str, str | list[str] | None]) -> dict[str, str | list[str] | None]:
    for part, column in value.items():
        if part not in PARTS:
            raise PydanticCustomError("part", f"{part!r} is none of {', '.join(PARTS)}")
        if part in ("chosen", "rejected") and column is None:
            raise PydanticCustomError("none", f"`{part}` needs a column; name it, or remove this")
        if isinstance(column, list) and (part != "prompt" or not column):
            raise PydanticCustomError(
                "several", "only `prompt` may be a list, of the columns that make one together"
            )
    return value


# Variables that transformers gives every template.
NO_SWITCHES = {"messages", "tools", "documents", "add_generation_prompt"}


def _switches(value: dict[str, Any]) -> dict[str, Any]:
    for name, switch in value.items():
        finite = not isinstance(switch, float) or math.isfinite(switch)
        known = isinstance(switch, bool | int | float | str) and finite
        if not name.isidentifier() or name in NO_SWITCHES or not known:
            raise PydanticCustomError(
                "switch",
                "each must be a variable of the template and true, false, a number or a text",
            )
    return value


class Dataset(_Section):
    """Where the preference pairs come from, how they are read and how they are split.

    `columns`: the column of a pair's part, where it has another name than the part; of `prompt` a
    list of columns too; null for a part that is not to be read. `text`: whether dialogues with role
    markers, messages that are kept as text, and answers that repeat their prompt are recognised.
    `chat_template_kwargs`: values of the template's variables, such as `enable_thinking`.
    """

    path: str
    name: str | None = None
    split: str = "train"
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    validation_pairs: Count = 1024
    seed: Seed = 42
    revision: str | None = None
    columns: Annotated[dict[str, str | list[str] | None], AfterValidator(_columns)] = {}
    text: Literal["auto", "plain"] = "auto"
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_switches)] = {}


class SFT(_Section):
    """The supervised pass that makes the reference."""

    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=2e-5, gt=0)


class Evaluation(_Section):
    """The answers sampled at each rung."""

    prompts: Count = 128
    max_new_tokens: Count = 128


class Budget(_Section):
    """What one full trial sees: `pairs`, or `steps` of whatever batch it has."""

    pairs: Count | None = None
    steps: Count | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Budget":
        if (self.pairs is None) == (self.steps is None):
            raise PydanticCustomError(
                "budget", "needs exactly one of the two; write {pairs: 4000} or {steps: 500}"
            )
        return self


class Search(_Section):
    """How the space is searched.

    `stuck_minutes`: a trial fails if it reports nothing for so long. Verification and
    `preftune train` end a training or measurement that has logged nothing and called no judge for
    so long; the command that resumes them makes it again.
    """

    trials: Count | None = 36
    minutes: float | None = Field(default=None, gt=0)
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    scheduler: Literal["asha", "none"] = "asha"
    rungs: list[Count] | None = None
    concurrent: Count | None = None
    seed: Seed = 42
    try_first: list[dict[str, Any]] = []
    warm_start: str | None = None
    stuck_minutes: float = Field(default=30.0, gt=0)


class Verify(_Section):
    """How finalists are proved, on the test split.

    `prompts` of its distinct prompts get a sampled answer, and `pairs` of its pairs are measured:
    at least one of each of these prompts.
    """

    finalists: Count = 3
    seeds: Count = 2
    prompts: Count = 512
    pairs: Count = 2048


class Resources(_Section):
    """What one trial asks Ray for."""

    cpu: float = Field(default=1.0, gt=0)
    gpu: Annotated[float | Literal["auto"], PlainValidator(_gpu)] = "auto"
    label: str | None = None


class Spec(_Section):
    """A whole search with every default filled.

    Made by `spec.load` or `spec.validate`, which check far more than the types.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    dataset: Dataset
    space: dict[str, Domain]
    training: dict[str, Any] = {}
    lora: dict[str, Any] | None = None
    sft: SFT | None = None
    judge: str | None = None
    evaluation: Evaluation = Evaluation()
    objective: Objective
    budget: Budget = Budget(pairs=4000)
    search: Search = Search()
    verify: Verify = Verify()
    resources: Resources = Resources()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    storage: Annotated[str, AfterValidator(_storage)] = "runs"
    checkpoints: Annotated[str, AfterValidator(_storage)] | None = None
    trackers: list[str] = []

    @property
    def rungs_pairs(self) -> list[int]:
        """The pairs at which a trial is measured, up to the budget; empty for a budget in steps."""
        if self.budget.pairs is None:
            return []
        if self.search.rungs is not None:
            return list(self.search.rungs)
        if self.search.scheduler == "none":
            return [self.budget.pairs]
        thirds = {round(self.budget.pairs / share) for share in (9, 3, 1)}
        return sorted(thirds - {0})

    @property
    def trials(self) -> int:
        """How many configurations the search tries, never more than a grid has."""
        if self.search.sampler != "grid":
            assert self.search.trials is not None  # `_search` refuses it
            return self.search.trials
        size = int(math.prod(domain.size() for domain in self.space.values()))
        return min(size, self.search.trials or size)

    def configuration(self, params: Mapping[str, Any]) -> Configuration:
        """Return what a trial is given that has these values of the searched fields."""
        return configure(yaml_io.plain(self.training), yaml_io.plain(self.lora), params)

    def to_yaml(self) -> str:
        """Return the resolved spec; it loads back to an equal one."""
        return yaml_io.dump(self.model_dump())
