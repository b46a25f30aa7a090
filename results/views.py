"""Leaderboard, verdict, data and head of a run as plain data.

Terminal, page, card and board render these. None of them makes a row or a sentence of its own.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.formatting import (
    DIGITS,
    columns,
    compact,
    count,
    ending,
    finalist_of,
    interval,
    limits,
    measure,
    number,
    plain,
)
from results.pareto import choices
from results.run import layout
from results.run.run import Run
from results.run.trial import Trial

THAN = {"better": "is better than", "same": "cannot be told from", "worse": "is worse than"}


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
class VerdictRow:
    """A line of the verdict's table; `kind` is reference, winner, finalist or seed."""

    kind: str
    name: str
    cells: list[str]


@dataclass(frozen=True)
class Verdict:
    """What verification came to.

    Attributes:
        sentence: the outcome, or why there is none yet.
        tone: `open` before a verdict, `won` where it passes, else `none`.
        details: further sentences: the judge's scores, the model trained on all pairs.
        columns: names of the cells.
        rows: reference, finalists and their fresh seeds, on the test split.
        note: what the gains and the intervals mean; empty without rows.
    """

    sentence: str
    tone: str
    details: list[str]
    columns: list[str]
    rows: list[VerdictRow]
    note: str


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


def verdict(run: Run) -> Verdict:
    """Return the verdict with its table."""
    found = run.verdict()
    sentence = verdict_sentence(run)
    if found is None:
        return Verdict(sentence, "open", [], [], [], "")
    full = run.full()
    details = [judged(found), full_sentence(full) if full else None]
    metric = str(found.get("metric") or run.metric)
    scored = bool(run.spec.get("judge"))
    names = [metric, "gain", *(["judge_score", "gain"] * scored), "kl", "beats it"]
    finalists = found.get("finalists") or []
    return Verdict(
        sentence,
        "won" if found.get("passing") else "none",
        [detail for detail in details if detail],
        names if finalists else [],
        list(_verdict_rows(found, metric, scored)) if finalists else [],
        _interval_note(found, len(finalists)) if finalists else "",
    )


def _verdict_rows(found: Mapping[str, Any], metric: str, scored: bool) -> Iterator[VerdictRow]:
    digits = 3 if metric == "pair_loss" else 2

    def row(
        kind: str, name: str, measures: Mapping[str, Any], *more: str, of_score: str = ""
    ) -> VerdictRow:
        gain, beats = more or ("", "")
        cells = [measure(measures, metric) if measures else "", gain]
        cells += [measure(measures, "judge_score") if measures else "", of_score] * scored
        return VerdictRow(kind, name, [*cells, measure(measures, "kl") if measures else "", beats])

    yield row("reference", "reference", found.get("reference") or {})
    for finalist in found.get("finalists") or []:
        yield row(
            "winner" if finalist.get("number") == found.get("winner") else "finalist",
            f"trial {finalist.get('number')}",
            finalist.get("test") or {},
            interval(finalist.get("difference"), finalist.get("interval"), digits),
            _beats(finalist),
            of_score=interval(
                finalist.get("judge_score_difference"), finalist.get("judge_score_interval")
            ),
        )
        over = finalist.get("configuration_difference"), finalist.get("configuration_interval")
        if over[0] is not None:
            yield row("seed", "over fresh seeds", {}, interval(*over, digits), "")
        for seed in finalist.get("fresh_seeds") or []:
            yield row("seed", f"seed {seed.get('seed')}", seed.get("test") or {})


def _beats(finalist: Mapping[str, Any]) -> str:
    if finalist.get("beats_reference"):
        return "yes"
    broken = _broken(finalist.get("broken") or [])
    return f"no: {broken}" if broken else "no"


def _broken(limits: Sequence[Any]) -> str:
    """The limits that do not hold; older files have them as text."""
    return plain(", ".join(map(_broken_limit, limits)))


def _broken_limit(limit: Any) -> str:
    if not isinstance(limit, Mapping):
        return str(limit)
    value = limit.get("value")
    shown = f"{value:.3g}" if isinstance(value, int | float) else "not known"
    over = " over fresh seeds" if limit.get("of") == "fresh_seeds" else ""
    return f"{limit.get('name')} {shown}{over}"


def _interval_note(found: Mapping[str, Any], finalists: int) -> str:
    level = float(found.get("confidence") or 0.95)
    prompts = f"{count(found.get('test_prompts'))} prompts"
    pairs = f" and {count(found['test_pairs'])} pairs" if found.get("test_pairs") else ""
    corrected = (
        f"corrected for {finalists} finalists: together they hold at {100 * level:g} %. Over fresh "
        "seeds only the lower end is tested."
        if finalists > 1
        else "for the only finalist: nothing to correct for."
    )
    return (
        f"Measured on {prompts}{pairs} of the test split. A gain is positive where the finalist is "
        "better than the reference. The first line of a finalist is its own checkpoint. Intervals "
        f"are at {100 * (1 - (1 - level) / finalists):.4g} %, {corrected}"
    )


def verdict_sentence(run: Run) -> str:
    """The verdict in one sentence, or why there is none yet."""
    found = run.verdict()
    if found is None:
        return {
            "preparing": "The data and the reference are being prepared.",
            "searching": "The search is running; there is no verdict yet.",
            "verifying": "The finalists are being measured on the test split.",
            "crashed": "The run crashed before its verdict.",
            "failed": plain(f"The run failed: {run.info.get('error')}"),
        }.get(run.state, f"The run was {run.state} before its verdict.")
    if found.get("outcome") == "unverified":
        return _unverified(run, found)
    finalists = found.get("finalists") or []
    if not found.get("passing"):
        if not finalists:
            return (
                "No configuration beats the reference: no trial reached the last rung within its "
                "constraints."
            )
        outside = [
            f"trial {finalist.get('number')} ({_broken(finalist['broken'])})"
            for finalist in finalists
            if finalist.get("broken")
        ]
        limits = f" Outside the search's limits there: {'; '.join(outside)}." if outside else ""
        return f"No configuration beats the reference on the test split.{limits}"
    winner = finalist_of(found, found.get("winner"))
    metric = str(found.get("metric") or run.metric)
    # Better is more of a win rate and less of a pair loss: the sign says which way it moved.
    sign = -1 if found.get("direction") == "minimize" else 1
    digits = 2 if metric == "win_rate" else 3  # hundredths of a nat are too coarse near ln 2
    value = (winner.get("test") or {}).get(metric)
    before = number(_before(value, winner, sign), digits)
    text = (
        f"Trial {winner.get('number')} beats the reference on the untouched test split: {metric} "
        f"{number(value, digits)} against {before} ({_moved(winner, sign, digits)})"
    )
    if tied := " and ".join(str(trial) for trial in found.get("tied") or []):
        text += f"; the split cannot tell it from trial {tied}"
    return plain(f"{text}.")


def _unverified(run: Run, found: Mapping[str, Any]) -> str:
    """Say why nothing was verified, which trial is the best, and what continues the search."""
    pauses = [d.get("ended_by") for d in run.decisions() if d.get("ended_by") in ("stop", "time")]
    limited = bool((run.spec.get("search") or {}).get("minutes"))
    time_up = pauses[-1] == "time" if pauses else limited
    why = "its time was up" if time_up else "the search was stopped"
    best = found.get("best")
    metric = str(found.get("metric") or run.metric)
    so_far = (
        f"The best trial so far is trial {best.get('number')}: {metric} "
        f"{measure({metric: best.get('value')}, metric)} at {count(best.get('pairs'))} pairs on "
        "the validation split."
        if isinstance(best, Mapping)
        else "No trial has been measured yet."
    )
    more = ["--minutes", "+60"] if time_up else []
    command = shlex.join(["preftune", "resume", run.name, *more])
    return plain(
        f"Not verified: {why} before any trial reached the last rung. {so_far} `{command}` "
        "continues it."
    )


def _moved(entry: Mapping[str, Any], sign: int, digits: int) -> str:
    """A gain as the measure itself moved: where less is better, it fell."""
    gain, bounds = entry.get("difference"), entry.get("interval") or []
    if not isinstance(gain, int | float):
        return "-"
    return interval(sign * gain, sorted(sign * bound for bound in bounds), digits)


def _before(value: object, entry: Mapping[str, Any], sign: int) -> float | None:
    """What a measure is compared with, from its value and the gain over it."""
    gain = entry.get("difference")
    if not isinstance(value, int | float) or not isinstance(gain, int | float):
        return None
    return value - sign * gain


def full_sentence(full: Mapping[str, Any]) -> str:
    """What `preftune train` came to: the model against the search's winner and the reference.

    Args:
        full: what `full.json` holds; the winner's own value follows from the difference.
    """
    metric = str(full.get("metric"))
    sign = -1 if full.get("direction") == "minimize" else 1
    digits = DIGITS.get(metric, 2)
    winner, reference = full.get("against_winner") or {}, full.get("against_reference") or {}
    value = (full.get("test") or {}).get(metric)
    before = number(_before(value, winner, sign), digits)
    beats = (reference.get("interval") or [0])[0] > 0
    text = (
        f"The model trained on all {count(full.get('pairs'))} pairs "
        f"{THAN.get(str(full.get('outcome')), 'was compared with')} the search's winner, trial "
        f"{full.get('trial')} with {count(full.get('winner_pairs'))}: {metric} "
        f"{number(value, digits)} against {before} ({_moved(winner, sign, digits)}) on the test "
        f"split; it {'beats' if beats else 'does not beat'} the reference "
        f"({_moved(reference, sign, digits)})."
    )
    if broken := full.get("broken"):
        text += f" It is outside the search's limits there: {_broken(broken)}."
    return plain(text)


def judged(found: Mapping[str, Any], trial: int | None = None) -> str | None:
    """The judge's test scores of a finalist (default: the winner, or the first) and reference."""
    finalists = found.get("finalists") or []
    chosen = finalist_of(found, found.get("winner") if trial is None else trial)
    chosen = chosen or (finalists[0] if finalists and trial is None else {})
    score = (chosen.get("test") or {}).get("judge_score")
    before = (found.get("reference") or {}).get("judge_score")
    if score is None or before is None:
        return None
    difference = interval(chosen.get("judge_score_difference"), chosen.get("judge_score_interval"))
    return (
        f"On its {count(found.get('test_prompts'))} prompts the mean judge score is "
        f"{number(score)} for trial {chosen.get('number')} and {number(before)} for the "
        f"reference: {difference}."
    )


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
    dropped = [split.get("dropped") or {} for split in splits]
    rows: list[tuple[str, list[str]]] = [("raw rows", _counts(s.get("raw") for s in splits))]
    for reason, text in (report.get("reasons") or {}).items():
        if any(d.get(reason) for d in dropped):
            rows.append((f"dropped: {plain(text)}", _counts(d.get(reason) for d in dropped)))
    rows.append(("kept", _counts(s.get("kept") for s in splits)))
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
        "chat template": (report.get("chat_template") or {}).get("origin"),
    }
    shown = [
        (name, count(value) if name == "rows" else compact(value))
        for name, value in facts.items()
        if value is not None
    ]
    return Data(shown, [plain(name) for name in by_name], rows)


def _counts(values: Iterable[Any]) -> list[str]:
    return [count(value, "-") for value in values]
