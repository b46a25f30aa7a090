"""The verdict as plain data: its sentences and the rows of its table, which all pages render."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.formatting import (
    DIGITS,
    count,
    finalist_of,
    interval,
    measure,
    number,
    plain,
)
from results.run.run import Run

THAN = {
    "better": "is better than",
    "same": "is not clearly better or worse than",
    "worse": "is worse than",
}


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


def verdict(run: Run) -> Verdict:
    """Return the verdict with its table."""
    record = run.verdict()
    sentence = verdict_sentence(run)
    if record is None:
        return Verdict(sentence, "open", [], [], [], "")
    full = run.full()
    details = [judged(record), full_sentence(full) if full else None]
    metric = str(record.get("metric") or run.metric)
    scored = bool(run.spec.get("judge"))
    names = [metric, "gain", *(["judge_score", "gain"] * scored), "kl", "beats it"]
    finalists = record.get("finalists") or []
    return Verdict(
        sentence,
        "won" if record.get("passing") else "none",
        [detail for detail in details if detail],
        names if finalists else [],
        list(_verdict_rows(record, metric, scored)) if finalists else [],
        _interval_note(record, len(finalists)) if finalists else "",
    )


def _verdict_rows(record: Mapping[str, Any], metric: str, scored: bool) -> Iterator[VerdictRow]:
    digits = 3 if metric == "pair_loss" else 2

    def row(
        kind: str, name: str, measures: Mapping[str, Any], *more: str, of_score: str = ""
    ) -> VerdictRow:
        gain, beats = more or ("", "")
        cells = [measure(measures, metric) if measures else "", gain]
        cells += [measure(measures, "judge_score") if measures else "", of_score] * scored
        return VerdictRow(kind, name, [*cells, measure(measures, "kl") if measures else "", beats])

    yield row("reference", "reference", record.get("reference") or {})
    for finalist in record.get("finalists") or []:
        yield row(
            "winner" if finalist.get("number") == record.get("winner") else "finalist",
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


def _interval_note(record: Mapping[str, Any], finalists: int) -> str:
    level = float(record.get("confidence") or 0.95)
    prompts = f"{count(record.get('test_prompts'))} prompts"
    pairs = f" and {count(record['test_pairs'])} pairs" if record.get("test_pairs") else ""
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
    record = run.verdict()
    if record is None:
        return {
            "preparing": "The data and the reference are being prepared.",
            "searching": "The search is running; there is no verdict yet.",
            "verifying": "The finalists are being measured on the test split.",
            "crashed": "The run crashed before its verdict.",
            "failed": plain(f"The run failed: {run.info.get('error')}"),
        }.get(run.state, f"The run was {run.state} before its verdict.")
    if record.get("outcome") == "unverified":
        return _unverified(run, record)
    finalists = record.get("finalists") or []
    if not record.get("passing"):
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
    winner = finalist_of(record, record.get("winner"))
    metric = str(record.get("metric") or run.metric)
    # Better is more of a win rate and less of a pair loss: the sign says which way it moved.
    sign = -1 if record.get("direction") == "minimize" else 1
    digits = 2 if metric == "win_rate" else 3  # hundredths of a nat are too coarse near ln 2
    value = (winner.get("test") or {}).get(metric)
    before = number(_before(value, winner, sign), digits)
    text = (
        f"Trial {winner.get('number')} beats the reference on the untouched test split: {metric} "
        f"{number(value, digits)} against {before} ({_moved(winner, sign, digits)})"
    )
    if tied := " and ".join(str(trial) for trial in record.get("tied") or []):
        text += f"; the split cannot tell it from trial {tied}"
    return plain(f"{text}.")


def _unverified(run: Run, record: Mapping[str, Any]) -> str:
    """Say why nothing was verified, which trial is the best, and what continues the search."""
    pauses = [d.get("ended_by") for d in run.decisions() if d.get("ended_by") in ("stop", "time")]
    limited = bool((run.spec.get("search") or {}).get("minutes"))
    time_up = pauses[-1] == "time" if pauses else limited
    why = "its time was up" if time_up else "the search was stopped"
    best = record.get("best")
    metric = str(record.get("metric") or run.metric)
    so_far = (
        f"The best trial so far is trial {best.get('number')}: {metric} "
        f"{measure({metric: best.get('value')}, metric)} at {count(best.get('pairs'))} "
        f"{run.unit} on the validation split."
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


def judged(record: Mapping[str, Any], trial: int | None = None) -> str | None:
    """The judge's test scores of a finalist (default: the winner, or the first) and reference."""
    finalists = record.get("finalists") or []
    chosen = finalist_of(record, record.get("winner") if trial is None else trial)
    chosen = chosen or (finalists[0] if finalists and trial is None else {})
    score = (chosen.get("test") or {}).get("judge_score")
    before = (record.get("reference") or {}).get("judge_score")
    if score is None or before is None:
        return None
    difference = interval(chosen.get("judge_score_difference"), chosen.get("judge_score_interval"))
    return (
        f"On its {count(record.get('test_prompts'))} prompts the mean judge score is "
        f"{number(score)} for trial {chosen.get('number')} and {number(before)} for the "
        f"reference: {difference}."
    )
