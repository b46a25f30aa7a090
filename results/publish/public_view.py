"""What is said in public of a model and its search: figures, parameters, names without paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from results.formatting import compact, finalist_of, limits, plain
from results.publish.markdown import code, literal
from results.run.run import Run
from search_spaces.errors import UserError
from search_spaces.locations import is_hub_id

Part = Literal["model", "dataset", "judge"]


@dataclass(frozen=True)
class Candidate:
    """The model that is published, and what is known of it.

    Attributes:
        number: of its trial.
        params: the searched fields.
        split: `test` where it was verified, else `validation`.
        measures: on that split.
        reference: the reference's measures there.
        passing: whether the verdict, or `full.json`, is of this very model.
        full: what `full.json` holds, for the winner's configuration trained on all pairs.
        adapter: the LoRA adapter alone.
    """

    number: int
    params: dict[str, Any]
    split: str
    measures: dict[str, Any]
    reference: dict[str, Any]
    passing: bool
    full: Mapping[str, Any] | None = None
    adapter: bool = False


@dataclass(frozen=True)
class Search:
    """What the cards say of a search; `model`, `dataset` and `judge` are Markdown."""

    model: str
    dataset: str
    judge: str | None
    sft: bool
    metric: str
    limits: list[str]
    budget: str
    rungs: list[str]
    sampler: str
    scheduler: str
    trials: int
    space: list[tuple[str, str]]
    max_new_tokens: int | None
    switches: list[str]


def candidate(
    run: Run,
    trial: int | None = None,
    *,
    full: Mapping[str, Any] | None = None,
    adapter: bool = False,
) -> Candidate:
    """Return the winner of the verdict, or the given trial.

    Args:
        run: an opened run.
        trial: a trial other than the winner.
        full: what `full.json` holds, for the winner's configuration trained on all pairs.
        adapter: the LoRA adapter alone.

    Raises:
        UserError: the verdict names no winner and no trial was given.
    """
    verdict = run.verdict() or {}
    winner = verdict.get("winner")
    number = winner if trial is None else trial
    if number is None:
        raise UserError(
            f"Run {run.name} has no winner to publish. Name a trial that kept its weights with "
            "`--trial`, and give `--force` to publish it without a verdict."
        )
    chosen = run.trial(int(number))
    finalist = finalist_of(verdict, number)
    passing = bool(verdict.get("passing")) and (
        number == winner or bool(finalist.get("beats_reference"))
    )
    measures = (finalist.get("test") or {}) if finalist else chosen.measures
    return Candidate(
        number=int(number),
        params=chosen.params,
        split="test" if finalist else "validation",
        measures=dict(full.get("test") or {}) if full else measures,
        reference=(verdict.get("reference") or {}) if finalist else run.reference,
        passing=bool(full.get("passing")) if full else passing,
        full=full,
        adapter=adapter,
    )


def search_of(run: Run) -> Search:
    """Return what the cards say of a run's search."""
    search, budget = run.spec.get("search") or {}, run.spec.get("budget") or {}
    dataset = run.spec.get("dataset") or {}
    return Search(
        model=named(run, "model"),
        dataset=named(run, "dataset"),
        judge=named(run, "judge") if run.spec.get("judge") else None,
        sft=bool(run.spec.get("sft")),
        metric=run.metric,
        limits=limits(run),
        budget=f"{compact(budget.get('pairs') or budget.get('steps') or '?')} {run.unit}",
        rungs=[compact(rung) for rung in search.get("rungs") or []],
        sampler=str(search.get("sampler") or "tpe"),
        scheduler="none" if search.get("scheduler") == "none" else "asha",
        trials=len(run.trials()),
        space=[(name, _domain(domain)) for name, domain in (run.spec.get("space") or {}).items()],
        max_new_tokens=(run.spec.get("evaluation") or {}).get("max_new_tokens"),
        switches=[
            f"{name}={compact(value)}"
            for name, value in (dataset.get("chat_template_kwargs") or {}).items()
        ],
    )


def _domain(domain: object) -> str:
    """A domain on one line: loguniform 1e-5 to 0.003."""
    if not isinstance(domain, Mapping) or len(domain) != 1:
        return compact(domain)
    ((kind, values),) = domain.items()
    if kind == "choice" and isinstance(values, list):
        return ", ".join(compact(value) for value in values)
    if isinstance(values, list) and len(values) == 2:
        return f"{kind} {compact(values[0])} to {compact(values[1])}"
    return f"{kind} {compact(values)}"


def named(run: Run, part: Part) -> str:
    """A run's model, data set or judge as it is cited: a link to the Hub, or a local name."""
    if hub := hub_id(run, part):
        kind = "datasets/" if part == "dataset" else ""
        return f"[{literal(hub)}](https://huggingface.co/{kind}{hub})"
    return code(name_of(run, part))


def path_of(run: Run, part: Part) -> str | None:
    """What the search names as its model, data set or judge; None where it has none."""
    if part == "dataset":
        return (run.spec.get("dataset") or {}).get("path")
    recorded = (run.info.get("model") or {}).get("path") if part == "model" else None
    return recorded or run.spec.get(part)


def hub_id(run: Run, part: Part) -> str | None:
    """The Hub id of a run's model, data set or judge; None for a local one and the quickstart's.

    A folder can have a name like an id. Of what a run takes from the Hub, it records the commit.
    """
    path = path_of(run, part)
    local = (run.info.get("revisions") or {}).get(part, "not said") is None
    return path if not local and is_hub_id(str(path)) else None


def name_of(run: Run, part: Part) -> str:
    """The Hub id of a run's model, data set or judge, or the last part of a local path."""
    return hub_id(run, part) or last_part(path_of(run, part))


def last_part(path: object) -> str:
    """A name fit to publish: the last part of a path, on one line."""
    return Path(" ".join(plain(path or "unknown").split())).name
