"""Leaderboard, verdict, data and head of a run as plain data.

Terminal, page, card and board render these. None of them makes a row or a sentence of its own.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from results.formatting import (
    columns,
    compact,
    count,
    ending,
    limits,
    measure,
    number,
    plain,
)
from results.pareto import choices
from results.run import layout
from results.run.run import Run
from results.run.trial import Trial


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial: its values as text, in the order of `Leaderboard.params` and `.measures`."""

    trial: Trial
    ending: str
    winner: bool
    params: list[str]
    measures: list[str]


@dataclass(frozen=True)
class Leaderboard:
    """The searched fields, the measures that are shown, the reference's and each trial's."""

    params: list[str]
    measures: list[str]
    reference: list[str]
    rows: list[LeaderboardRow]


@dataclass(frozen=True)
class BudgetRow:
    """What the search would have chosen under a limit on `kl`; no trial where nothing keeps it."""

    budget: str
    own: bool  # the search's own limit
    trial: int | None
    value: str
    kl: str
    pairs: str
    complete: bool


@dataclass(frozen=True)
class Data:
    """What was loaded, and of each split what was dropped, kept and cut."""

    facts: list[tuple[str, str]]
    splits: list[str]
    rows: list[tuple[str, list[str]]]


def ranked(run: Run) -> list[Trial]:
    """Trials best first: complete by objective, stopped by rung and value, the rest by number."""
    sign = -1.0 if run.maximize else 1.0

    def key(trial: Trial) -> tuple[float, ...]:
        unknown = trial.value is None or math.isnan(trial.value)
        value = math.inf if trial.value is None or unknown else sign * trial.value
        rank = layout.STATES.index(trial.state)
        # Values at different rungs are measures of different things: the rung goes first. Not the
        # pairs seen there, which a batch rounds up.
        rung = max(trial.rungs, default=0)
        measured = trial.state in ("complete", "stopped", "running", "paused")
        return (rank, -rung, value, trial.number) if measured else (rank, trial.number)

    return sorted(run.trials(), key=key)


def leaderboard(run: Run) -> Leaderboard:
    """Return the leaderboard, best first."""
    measures = columns(run)
    winner = (run.verdict() or {}).get("winner")
    rows = [
        LeaderboardRow(
            trial,
            ending(trial, run),
            trial.number == winner,
            [compact(trial.params.get(name, "-")) for name in run.searched],
            [measure(trial.measures, name) for name in measures],
        )
        for trial in ranked(run)
    ]
    reference = [measure(run.reference, name) for name in measures]
    return Leaderboard(run.searched, measures, reference, rows)


def other_budgets(run: Run) -> list[BudgetRow]:
    """What the search would have chosen by the validation split under other limits on `kl`."""
    own = run.limits.get("kl", {}).get("max")
    rows = []
    for choice in choices(run):
        point, budget = choice.point, compact(choice.budget)
        if point is None:
            rows.append(BudgetRow(budget, choice.budget == own, None, "", "", "", False))
            continue
        shown = measure({run.metric: point.value}, run.metric), measure({"kl": point.kl}, "kl")
        pairs = str(point.pairs)
        rows.append(
            BudgetRow(budget, choice.budget == own, point.trial, *shown, pairs, point.complete)
        )
    return rows


def head(run: Run) -> list[tuple[str, str]]:
    """What was searched, by name."""
    within = ", ".join(limits(run))
    ends = Counter(ending(trial, run) for trial in run.trials())
    seconds = sum((run.info.get("seconds") or {}).values())
    facts = {
        "model": (run.info.get("model") or {}).get("path") or run.spec.get("model"),
        "data": (run.spec.get("dataset") or {}).get("path"),
        "judge": run.spec.get("judge") or "none",
        "objective": f"{run.metric} with {within}" if within else run.metric,
        "trials": ", ".join(f"{number} {name}" for name, number in ends.items()) or "none yet",
        "time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds else None,
        "started": (run.info.get("created") or "").replace("T", " ")[:16] or None,
    }
    return [(name, plain(value)) for name, value in facts.items() if value]


def data(run: Run) -> Data | None:
    """The data report as rows over its splits; None before the data are prepared."""
    report = run.data_report()
    if report is None:
        return None
    source, by_name = report.get("source") or {}, report.get("splits") or {}
    splits = [split or {} for split in by_name.values()]
    rows: list[tuple[str, list[str]]] = [("raw rows", _counts(s.get("raw") for s in splits))]
    examples = report.get("examples") or {}

    def counted(title: str, texts: Mapping[str, Any], key: str) -> None:
        by_split = [split.get(key) or {} for split in splits]
        for name, text in texts.items():
            if any(counts.get(name) for counts in by_split):
                example = f" (row {examples[name]})" if name in examples else ""
                counts = _counts(counts.get(name) for counts in by_split)
                rows.append((f"{title}: {plain(text)}{example}", counts))

    counted("dropped", report.get("reasons") or {}, "dropped")
    rows.append(("kept", _counts(s.get("kept") for s in splits)))
    counted("read as", report.get("readings") or {}, "read_as")
    rows.append(("distinct prompts", _counts(s.get("distinct_prompts") for s in splits)))
    for name, text in (
        ("truncated", "with an answer cut at max_length"),
        ("longer_is_chosen", "the longer answer is the chosen one"),
    ):
        shares = (s.get(name) for s in splits)
        rows.append((text, [f"{number(100 * s, 1)} %" if s is not None else "-" for s in shares]))
    for name in ("prompt_tokens", "answer_tokens"):
        tokens = [s.get(name) or {} for s in splits]
        cells = [" / ".join(_counts([t.get("median"), t.get("p95")])) for t in tokens]
        rows.append((f"{name.replace('_', ' ')}, median / 95th percentile", cells))
    facts = {
        **{name: source.get(name) for name in ("path", "revision", "split")},
        "rows": source.get("rows"),
        **{name: report.get(name) for name in ("test_fraction", "seed", "max_length")},
        "columns": _columns(report.get("columns") or {}),
        "columns not read": ", ".join(map(str, report.get("unread") or ())) or None,
        "chat template": _template(report.get("chat_template") or {}),
    }
    shown = [
        (name, count(value) if name == "rows" else compact(value))
        for name, value in facts.items()
        if value is not None
    ]
    return Data(shown, [plain(name) for name in by_name], rows)


def _columns(columns: Mapping[str, Any]) -> str | None:
    """Return the columns of the parts of a pair, where they have other names than the parts."""
    named = {
        part: " + ".join(map(str, column)) if isinstance(column, list) else str(column)
        for part, column in columns.items()
    }
    return " ".join(f"{part}={column}" for part, column in named.items() if column != part) or None


def _template(template: Mapping[str, Any]) -> str | None:
    """Return where the chat template comes from, and which of its variables the search sets."""
    switches = (template.get("kwargs") or {}).items()
    parts = [template.get("origin"), *(f"{name}={value}" for name, value in switches)]
    if head := str(template.get("answer_begins_with") or "").strip():
        parts.append(f"answers that begin with {head!r}")
    return " with ".join(str(part) for part in parts if part is not None) or None


def _counts(values: Iterable[Any]) -> list[str]:
    return [count(value, "-") for value in values]
