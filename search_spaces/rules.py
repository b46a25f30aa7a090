"""What has to hold between the keys of a search."""

import math
import os.path
import re
from collections.abc import Callable, Collection, Iterator
from urllib.parse import unquote, urlsplit

from search_spaces import objective
from search_spaces.errors import ABSENT, Problem, nearest
from search_spaces.locations import is_local, location_problem
from search_spaces.schema import Spec

MAX_GRID = 10_000  # a grid is enqueued as a whole
OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")  # of `pyarrow.fs`, by URI
SECRET = re.compile(r"(key|secret|token|password|sig)[^=&]*=", re.IGNORECASE)


def _space(spec: Spec) -> Iterator[Problem]:
    if not spec.space:
        reason = (
            "nothing is searched; name a field and its domain, such as beta: "
            "{loguniform: [0.01, 1.0]}"
        )
        yield Problem("space", {}, reason)


def _locations(spec: Spec) -> Iterator[Problem]:
    for key, value in (
        ("model", spec.model),
        ("dataset.path", spec.dataset.path),
        ("judge", spec.judge),
    ):
        if value is not None and (problem := location_problem(key, value)) is not None:
            yield problem


def _revisions(spec: Spec) -> Iterator[Problem]:
    reason = "only a Hub repository has revisions; leave it out"
    if spec.revision is not None and (spec.model == "quickstart" or is_local(spec.model)):
        yield Problem("revision", spec.revision, reason)
    path = spec.dataset.path
    if spec.dataset.revision is not None and (path == "quickstart" or is_local(path)):
        yield Problem("dataset.revision", spec.dataset.revision, reason)


def _not_yet(spec: Spec) -> Iterator[Problem]:
    for key, value in (
        ("trackers", spec.trackers),
        ("resources.label", spec.resources.label),
    ):
        if value not in (None, []):
            yield Problem(key, value, "not yet supported; leave it out")


def _storage(spec: Spec) -> Iterator[Problem]:
    if "://" in spec.storage:
        yield Problem(
            "storage",
            spec.storage,
            "run folders live on the driver's own file system; name a folder",
        )


def _checkpoints(spec: Spec) -> Iterator[Problem]:
    place = spec.checkpoints
    if place is None:
        return
    uri = urlsplit(place)
    # `//user:secret@`, also in an endpoint in the query, which is itself a URI.
    if re.search(r"//[^/?@]*:.*@", unquote(place)) or SECRET.search(uri.query):
        yield Problem(
            "checkpoints",
            f"{uri.scheme}://...",  # a refusal may end up in a log
            "a spec must not hold credentials; leave them out and set them in the environment, "
            "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    elif "://" in place and uri.scheme not in OBJECT_STORES:
        reason = f"pyarrow has no file system of this name; {nearest(uri.scheme, OBJECT_STORES)}"
        yield Problem("checkpoints", place, reason)
    elif "://" in place and not uri.netloc and uri.scheme != "file":
        yield Problem("checkpoints", place, "it names no bucket; write s3://bucket/path")
    elif "://" not in place and not os.path.isabs(place):
        reason = "neither a URI nor an absolute path; write s3://bucket/path, or start it with /"
        yield Problem("checkpoints", place, reason)


def _evaluation(spec: Spec) -> Iterator[Problem]:
    prompts, pairs = spec.evaluation.prompts, spec.dataset.validation_pairs
    if prompts > pairs:
        reason = (
            f"there are only {pairs} validation pairs; lower it, or raise dataset.validation_pairs"
        )
        yield Problem("evaluation.prompts", prompts, reason)


def _objective(spec: Spec) -> Iterator[Problem]:
    yield from objective.problems(spec.objective, spec.judge)


def _rungs(spec: Spec) -> Iterator[Problem]:
    rungs, budget = spec.search.rungs, spec.budget
    if budget.pairs is None:
        shown = budget.model_dump(exclude_none=True)
        if spec.search.scheduler == "asha":
            reason = (
                "ASHA compares trials after equal pairs, and steps of different batches are not; "
            )
            yield Problem(
                "budget", shown, reason + "set search.scheduler to none, or write {pairs: ...}"
            )
        if rungs is not None:
            yield Problem(
                "search.rungs", rungs, "rungs are in pairs and the budget in steps; leave them out"
            )
        return
    if rungs is None:
        return
    if any(low >= high for low, high in zip(rungs, rungs[1:], strict=False)):
        yield Problem(
            "search.rungs", rungs, "each rung must be above the one before; put them in order"
        )
    if not rungs or rungs[-1] != budget.pairs:
        reason = f"the last rung is the budget; end with {budget.pairs}, or change budget.pairs"
        yield Problem("search.rungs", rungs, reason)


def _trials(spec: Spec) -> Iterator[Problem]:
    if spec.search.trials is None and spec.search.sampler != "grid":
        reason = (
            "only a grid knows its own number of trials; write one, or set search.sampler to grid"
        )
        yield Problem("search.trials", None, reason)


def _grid_domains(spec: Spec) -> Iterator[Problem]:
    for name, domain in spec.space.items():
        if spec.search.sampler == "grid" and domain.kind not in ("choice", "int"):
            reason = "a grid needs a choice or int; list the values, or set search.sampler to tpe"
            yield Problem(f"space.{name}", domain.model_dump(), reason)


def _warm_start(spec: Spec) -> Iterator[Problem]:
    if spec.search.warm_start is not None and spec.search.sampler == "grid":
        reason = "a grid learns nothing from earlier trials; leave it out, or set sampler to tpe"
        yield Problem("search.warm_start", spec.search.warm_start, reason)


def _grid_size(spec: Spec) -> Iterator[Problem]:
    size = math.prod(domain.size() for domain in spec.space.values())
    if spec.search.sampler == "grid" and MAX_GRID < size < math.inf:
        reason = (
            f"the grid has {size:,} configurations, above {MAX_GRID:,}; narrow the "
            f"space, or use tpe"
        )
        yield Problem("search.sampler", "grid", reason)


# The keys that a check reads, then the check: left out where one of them is not even well formed.
CHECKS: tuple[tuple[tuple[str, ...], Callable[[Spec], Iterator[Problem]]], ...] = (
    (("space",), _space),
    ((), _locations),
    (("model", "dataset.path"), _revisions),
    ((), _not_yet),
    (("storage",), _storage),
    (("checkpoints",), _checkpoints),
    (("evaluation.prompts", "dataset.validation_pairs"), _evaluation),
    (("objective", "judge"), _objective),
    (("budget", "search.rungs", "search.scheduler"), _rungs),
    (("search.trials", "search.sampler"), _trials),
    (("search.sampler",), _grid_domains),
    (("search.warm_start", "search.sampler"), _warm_start),
    (("search.sampler", "space"), _grid_size),
)


def try_first(spec: Spec, searched: Collection[str]) -> Iterator[Problem]:
    """Yield what is wrong with the configurations to try first.

    Args:
        spec: the search; a field whose domain is not well formed is missing from its space.
        searched: the names of all fields of the space, well formed or not.

    An entry may leave fields to the sampler, but not in a grid, whose every point is given.
    """
    entries = spec.search.try_first
    for index, entry in enumerate(entries):
        key = f"search.try_first[{index}]"
        if not entry:
            yield Problem(key, entry, "it names no field; leave it out")
        if entry in entries[:index]:
            yield Problem(key, entry, "this configuration is there twice; keep one")
        for name, value in entry.items():
            if name in spec.training:
                yield Problem(f"{key}.{name}", value, "fixed under `training`; take it out here")
            elif name not in searched:
                reason = f"not a field of the space; {nearest(name, searched)}"
                yield Problem(f"{key}.{name}", value, reason)
            elif name in spec.space and not spec.space[name].holds(value):
                reason = f"outside {spec.space[name]}; change one of the two"
                yield Problem(f"{key}.{name}", value, reason)
        for name in searched:
            if spec.search.sampler == "grid" and entry and name not in entry:
                yield Problem(
                    f"{key}.{name}", ABSENT, "a grid has no sampler to fill it in; give it a value"
                )
