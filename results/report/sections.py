"""The words and numbers of a report's page, ready to be shown: its template only lays them out."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from results.doctor.trial_warnings import of_trial
from results.formatting import (
    columns,
    compact,
    ending,
    interval,
    judged,
    measure,
    number,
    plain,
    verdict_sentence,
)
from results.run.run import Run
from results.views import leaderboard


def head(run: Run) -> list[tuple[str, str]]:
    """What was searched, in a line."""
    limits = (run.spec.get("objective") or {}).get("constraints") or {}
    bounds = [
        f"{name} {'≤' if side == 'max' else '≥'} {compact(value)}"
        for name, bound in limits.items()
        for side, value in (bound or {}).items()
        if value is not None
    ]
    ends = Counter(ending(trial, run) for trial in run.trials())
    seconds = sum((run.info.get("seconds") or {}).values())
    found = {
        "model": (run.info.get("model") or {}).get("path") or run.spec.get("model"),
        "data": (run.spec.get("dataset") or {}).get("path"),
        "judge": run.spec.get("judge") or "none",
        "objective": " with ".join([run.metric, *([", ".join(bounds)] if bounds else [])]),
        "trials": ", ".join(f"{count} {name}" for name, count in ends.items()) or "none yet",
        "time": f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds else None,
        "started": (run.info.get("created") or "").replace("T", " ")[:16] or None,
    }
    return [(name, plain(value)) for name, value in found.items() if value]


def verdict_words(run: Run) -> dict[str, Any]:
    """The sentence, the finalists' rows on the test split, and what the intervals stand for."""
    verdict = run.verdict()
    shown: dict[str, Any] = {
        "sentence": verdict_sentence(run),
        "tone": "open" if verdict is None else "won" if verdict.get("passing") else "none",
        "judged": judged(verdict or {}),
        "full": (run.full() or {}).get("sentence"),
        "missing": run.missing(),
        "rows": [],
    }
    finalists = (verdict or {}).get("finalists") or []
    if verdict is None or not finalists:
        return shown
    metric = str(verdict.get("metric") or run.metric)
    scored = bool(run.spec.get("judge"))
    digits = 3 if metric == "pair_loss" else 2

    def row(kind: str, who: str, measures: dict[str, Any], *more: str) -> None:
        gain, score_gain, beats = more or ("", "", "")
        cells = [measure(measures, metric) if measures else "", gain]
        cells += [measure(measures, "judge_score") if measures else "", score_gain] * scored
        cells += [measure(measures, "kl") if measures else "", beats]
        shown["rows"].append({"kind": kind, "who": who, "cells": cells})

    row("reference", "reference", verdict.get("reference") or {})
    for one in finalists:
        broken = ", ".join(map(plain, one.get("broken") or []))
        beats = "yes" if one.get("beats_reference") else f"no: {broken}" if broken else "no"
        gain = interval(one.get("difference"), one.get("interval"), digits)
        score_gain = interval(one.get("judge_score_difference"), one.get("judge_score_interval"))
        who = f"trial {one.get('number')}, own checkpoint"
        kind = "winner" if one.get("number") == verdict.get("winner") else "finalist"
        row(kind, who, one.get("test") or {}, gain, score_gain, beats)
        over = one.get("configuration_difference"), one.get("configuration_interval")
        if over[0] is not None:
            row("seed", "over fresh seeds", {}, interval(*over, digits), "", "")
        for seed in one.get("fresh_seeds") or []:
            row("seed", f"fresh seed {seed.get('seed')}", seed.get("test") or {})
    shown["columns"] = [metric, "gain", *(["judge_score", "gain"] * scored), "kl", "beats it"]
    level, count = float(verdict.get("confidence") or 0.95), len(finalists)
    each = 100 * (1 - (1 - level) / count)
    shown["note"] = (
        f"{verdict.get('test_prompts', '?')} prompts and {verdict.get('test_pairs', '?')} pairs of "
        "the test split, which nothing had touched before. A gain is positive where the finalist "
        f"is better. Intervals are at {each:.4g} %, "
        + (
            f"corrected for {count} finalists: all of them hold together at {100 * level:g} %. "
            "Over fresh seeds only the lower end is asked for, and the interval is as wide as that "
            "needs."
            if count > 1
            else "for the only finalist: nothing to correct for."
        )
    )
    return shown


def board(run: Run) -> dict[str, Any]:
    """The reference's row and each trial's, best first, with what to be wary of."""
    measures = columns(run)
    winner = (run.verdict() or {}).get("winner")
    rows = [
        {
            "trial": trial,
            "ending": ending(trial, run),
            "params": [compact(trial.params.get(name, "-")) for name in run.searched],
            "measures": [measure(trial.measures, name) for name in measures],
            "won": trial.number == winner,
            "signs": of_trial(run, trial),
        }
        for trial in leaderboard(run)
    ]
    reference = [measure(run.reference, name) for name in measures]
    return {"measures": measures, "rows": rows, "reference": reference}


def data_rows(run: Run) -> dict[str, Any] | None:
    """The data report as rows over its splits."""
    report = run.data_report()
    if report is None:
        return None
    source, splits = report.get("source") or {}, report.get("splits") or {}
    found = [split or {} for split in splits.values()]
    dropped = [split.get("dropped") or {} for split in found]
    rows: list[tuple[str, list[str]]] = [("raw rows", _counts(s.get("raw") for s in found))]
    for reason, words in (report.get("reasons") or {}).items():
        if any(d.get(reason) for d in dropped):
            rows.append((f"dropped: {plain(words)}", _counts(d.get(reason) for d in dropped)))
    rows.append(("kept", _counts(s.get("kept") for s in found)))
    rows.append(("distinct prompts", _counts(s.get("distinct_prompts") for s in found)))
    for name, words in (
        ("truncated", "with an answer cut at max_length"),
        ("longer_is_chosen", "the longer answer is the chosen one"),
    ):
        shares = (s.get(name) for s in found)
        rows.append((words, [f"{number(100 * s, 1)} %" if s is not None else "-" for s in shares]))
    for name in ("prompt_tokens", "answer_tokens"):
        tokens = [s.get(name) or {} for s in found]
        cells = [" / ".join(_counts([t.get("median"), t.get("p95")])) for t in tokens]
        rows.append((f"{name.replace('_', ' ')}, median / 95th percentile", cells))
    facts = [
        ("source", source.get("path")),
        ("revision", source.get("revision")),
        ("split", source.get("split")),
        ("rows", source.get("rows")),
        *((name, report.get(name)) for name in ("test_fraction", "seed", "max_length")),
        ("chat template", (report.get("chat_template") or {}).get("origin")),
    ]
    told = [f"{name} {compact(value)}" for name, value in facts if value is not None]
    return {"facts": ", ".join(told), "splits": list(splits), "rows": rows}


def facts(run: Run) -> list[tuple[str, str]]:
    """What `run.json` says of how the run came about."""
    names = ("command", "created", "ended", "state", "error", "commit", "host", "model", "hardware")
    found = {
        name: run.info.get(name) for name in (*names, "seeds", "seconds", "prepared", "versions")
    }
    return [(name, _words(value)) for name, value in found.items() if value]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_words(v)}" for k, v in value.items() if v is not None)
    return ", ".join(map(compact, value)) if isinstance(value, list) else compact(value)


def _counts(values: Iterable[Any]) -> list[str]:
    return ["-" if v is None else f"{v:,}" if isinstance(v, int) else compact(v) for v in values]
