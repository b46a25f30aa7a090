"""Tables for the terminal, in plain text where the output is not one."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from results.doctor.data_warnings import of_data
from results.doctor.finding import Finding
from results.doctor.trial_warnings import of_trial
from results.formatting import (
    columns,
    compact,
    ending,
    interval,
    judged,
    measure,
    number,
    other_budgets,
    plain,
    verdict_sentence,
)
from results.run.listing import RunSummary
from results.run.run import Run
from results.run.trial import Trial
from results.views import leaderboard

STYLES = {"complete": "green", "running": "cyan", "infeasible": "yellow", "failed": "red"}


def runs_table(runs: Iterable[RunSummary]) -> Table:
    """Past runs, newest first as given."""
    table = _table("run", "state", "started", "model", "verdict")
    for run in runs:
        started = (run.created or "").replace("T", " ")[:16]
        cells = (run.name, run.state, started, run.model or "-", run.sentence or "-")
        table.add_row(*(Text(plain(cell)) for cell in cells))
    table.columns[2].no_wrap = True
    table.columns[4].ratio = 1
    return table


def leaderboard_table(run: Run, limit: int | None = None) -> RenderableType:
    """Trials best first under the reference's line; below them, what to be wary of and where."""
    names, measures = run.searched, columns(run)
    table = _table("trial", "ended", "pairs", *names, *measures)
    folded = [_fold(name) for name in names]
    for column in table.columns:
        column.header = Text(_fold(str(column.header)))
        column.justify, column.overflow = "right", "fold"
        # Only hyperparameters give way: a list or a name may fold, a measure may not.
        column.no_wrap = str(column.header) not in folded
    table.columns[1].justify = "left"
    reference = ["reference", "0", *("" for _ in names)]
    table.add_row("-", *reference, *(measure(run.reference, m) for m in measures), style="dim")
    winner = (run.verdict() or {}).get("winner")
    for trial in leaderboard(run)[:limit]:
        table.add_row(
            Text(f"{trial.number}{'*' if trial.number == winner else ''}"),
            Text(ending(trial, run), style=STYLES.get(trial.state, "")),
            str(trial.pairs or "-"),
            *(Text(compact(trial.params.get(name, "-"))) for name in names),
            *(measure(trial.measures, m) for m in measures),
            style="bold" if trial.number == winner else "",
        )
    warnings: dict[str, list[str]] = {}
    for trial in run.trials():
        for finding in of_trial(run, trial):
            warnings.setdefault(finding.sign, []).append(str(trial.number))
    notes = ["* the winner of the verdict"] if winner is not None else []
    notes += [f"{plain(sign)}: trial {', '.join(numbers)}" for sign, numbers in warnings.items()]
    notes += ["`preftune show` with `--trial N` says what each means"] if warnings else []
    return Group(table, *(Text(note, style="dim") for note in notes))


def verdict_panel(run: Run) -> Panel:
    """The verdict in words, and the finalists on the test split with their intervals."""
    verdict = run.verdict()
    sentence = Text(verdict_sentence(run), style="bold")
    if verdict is None:
        return Panel(Group(sentence, *_list(run.missing())), title="Verdict", title_align="left")
    metric = str(verdict.get("metric") or run.metric)
    compared = [metric, "judge_score"] if run.spec.get("judge") else [metric]
    heads = [head for name in compared for head in (name, "difference")]
    table = _table("trial", *heads, "kl", "beats it")

    def cells(measures: dict[str, Any], finalist: dict[str, Any] | None = None) -> list[str]:
        return [
            cell
            for name in compared
            for cell in (measure(measures, name), _change(finalist, name) if finalist else "")
        ]

    table.add_row("reference", *cells(verdict.get("reference") or {}))
    for finalist in verdict.get("finalists") or []:
        test = finalist.get("test") or {}
        broken = ", ".join(map(plain, finalist.get("broken") or []))
        beats = "yes" if finalist.get("beats_reference") else f"no: {broken}" if broken else "no"
        row = (*cells(test, finalist), measure(test, "kl"), beats)
        table.add_row(str(finalist.get("number")), *row)
        for seed in finalist.get("fresh_seeds") or []:
            again = seed.get("test") or {}
            row = (*cells(again), measure(again, "kl"))
            table.add_row(f"  seed {seed.get('seed')}", *row, style="dim")
    note = Text(
        f"{verdict.get('test_prompts', '?')} test prompts, {verdict.get('test_pairs', '?')} pairs; "
        "intervals at "
        f"{100 * float(verdict.get('confidence') or 0):g} %, all finalists together."
    )
    border = "green" if verdict.get("passing") else "yellow"
    told = [judged(verdict), other_budgets(verdict), (run.full() or {}).get("sentence")]
    words = [Text(plain(line)) for line in told if line]
    body = Group(sentence, *words, table, note)
    return Panel(body, title="Verdict", title_align="left", border_style=border)


def trial_detail(run: Run, n: int, samples: int = 3) -> RenderableType:
    """One trial: how it ended, its rungs, what to be wary of, decisions, some of its answers."""
    trial = run.trial(n)
    facts = _table("", "")
    facts.show_header = False
    for key, value in _facts(run, trial):
        facts.add_row(Text(key), Text(value))
    parts: list[RenderableType] = [facts]
    if rungs := run.measures(n):
        table = _table("measure", "reference", *(f"{r.get('pairs', '?')} pairs" for r in rungs))
        names = dict.fromkeys(
            k for r in rungs for k, v in r.items() if isinstance(v, float) or v is None
        )
        for name in names:
            values = [measure(run.reference, name), *(measure(r, name) for r in rungs)]
            table.add_row(name, *values)
        parts.append(table)
    parts += _wary(of_trial(run, trial))
    decisions = [
        f"{d.get('pairs')} pairs: {d.get('decision')} at {number(d.get('value'), 3)}, "
        f"{d.get('reason')}"
        for d in run.decisions()
        if d.get("trial") == n
    ]
    parts += [Text("Decisions", style="bold"), *_list(decisions)] if decisions else []
    for sample in run.samples(n)[-samples:]:
        answer = Text()
        answer.append(plain(sample.get("prompt", "")).strip() + "\n", style="dim")
        answer.append(plain(sample.get("answer", "")).strip())
        title = f"score {number(sample.get('score'))}, {sample.get('pairs', '?')} pairs"
        parts.append(Panel(answer, title=title, title_align="left", border_style="dim"))
    return Group(*parts)


def data_report_table(run: Run) -> RenderableType:
    """What was loaded; of each split what was dropped, why, what is left; what to be wary of."""
    report = run.data_report()
    if report is None:
        return Text("data_report.json is missing: what was loaded and dropped is unknown")
    source, splits = report.get("source") or {}, report.get("splits") or {}
    revision = f" at {source['revision']}" if source.get("revision") else ""
    head = (
        f"{source.get('path', '?')}{revision}, split {source.get('split', '?')}: "
        f"{_count(source.get('rows'))} rows, test {_count(report.get('test_fraction'))}, "
        f"seed {_count(report.get('seed'))}, max_length {_count(report.get('max_length'))}"
    )
    table = _table("data", *splits)
    for column in table.columns[1:]:
        column.justify = "right"

    def row(label: str, cells: Iterable[str]) -> None:
        table.add_row(label, *(Text(plain(cell)) for cell in cells))

    found: list[dict[str, Any]] = [split or {} for split in splits.values()]
    row("raw rows", (_count(split.get("raw")) for split in found))
    for reason, words in (report.get("reasons") or {}).items():
        dropped = [(split.get("dropped") or {}).get(reason) for split in found]
        if any(dropped):
            row(f"- {plain(words)}", map(_count, dropped))
    row("kept", (_count(split.get("kept")) for split in found))
    row("distinct prompts", (_count(split.get("distinct_prompts")) for split in found))
    row("with an answer cut at max_length", (_share(split.get("truncated")) for split in found))
    longer = (_share(split.get("longer_is_chosen")) for split in found)
    row("the longer answer is the chosen one", longer)
    for name in ("prompt_tokens", "answer_tokens"):
        tokens = [split.get(name) or {} for split in found]
        label = f"{name.replace('_', ' ')}, median / 95th percentile"
        row(label, (f"{_count(t.get('median'))} / {_count(t.get('p95'))}" for t in tokens))
    return Group(Text(plain(head)), table, *_wary(of_data(run)))


def _count(value: object) -> str:
    return "-" if value is None else compact(value)


def _share(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "-"


def _facts(run: Run, trial: Trial) -> list[tuple[str, str]]:
    facts = [("trial", f"{trial.number} of run {run.name}"), ("ended", ending(trial, run))]
    facts += [("cause", plain(trial.cause))] if trial.cause else []
    facts += [(name, compact(value)) for name, value in trial.params.items()]
    skipped = ("ended_by", "cause")
    facts += [(k, compact(v)) for k, v in trial.attrs.items() if k not in skipped]
    return facts


def _table(*columns: str) -> Table:
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.show_edge = False
    return table


def _change(finalist: dict[str, Any], name: str) -> str:
    """How far a finalist moved a measure from the reference, with its interval."""
    prefix = "judge_score_" if name == "judge_score" else ""
    difference, bounds = (finalist.get(prefix + key) for key in ("difference", "interval"))
    if name != "pair_loss":
        return interval(difference, bounds)
    # The verdict counts what is gained; the column beside it holds a loss, which falls.
    low_is_good = [-value for value in reversed(bounds or [])]
    return interval(None if difference is None else -difference, low_is_good, 3)


def _wary(findings: list[Finding]) -> list[Text]:
    """What the doctor found, in full."""
    if not findings:
        return []
    lines = (f"{finding.sign}: {finding.sentence}" for finding in findings)
    return [Text("What to be wary of", style="bold"), *_list(lines)]


def _list(lines: Iterable[str]) -> list[Text]:
    return [Text(f"- {plain(line)}") for line in lines]


def _fold(name: str, width: int = 7) -> str:
    """Break a long field name before underscores, so that its column is as narrow as its values."""
    first, *rest = name.split("_")
    lines = [first]
    for part in rest:
        if len(lines[-1]) + 1 + len(part) > width:
            lines.append("")
        lines[-1] += f"_{part}"
    return "\n".join(lines)
