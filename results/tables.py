"""Tables for the terminal, in plain text where the output is not one."""

from collections.abc import Iterable

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from results import verdict_view, views
from results.doctor.data_warnings import data_warnings
from results.doctor.finding import Finding
from results.doctor.trial_warnings import trial_warnings
from results.formatting import compact, ending, measure, number, plain
from results.run.listing import RunSummary
from results.run.run import Run
from results.run.trial import Trial

FOLDED = 7  # a hyperparameter's column is not folded below so many characters
STYLES = {"complete": "green", "running": "cyan", "infeasible": "yellow", "failed": "red"}


def runs_table(runs: Iterable[RunSummary]) -> Table:
    """Past runs in the order given."""
    table = _table("run", "state", "started", "model", "verdict")
    for run in runs:
        started = (run.created or "").replace("T", " ")[:16]
        cells = (run.name, run.state, started, run.model or "-", run.sentence)
        table.add_row(*(Text(plain(cell)) for cell in cells))
    table.columns[2].no_wrap = True
    table.columns[4].ratio = 1
    return table


class _Leaderboard:
    """The leaderboard in one table, or in two where a terminal is too narrow for one."""

    def __init__(self, board: views.Leaderboard, limit: int | None) -> None:
        self.board = board
        self.rows = board.rows[:limit]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A list or a name may fold within its column, but not to a letter or two a line.
        widths = [
            max(
                *map(len, _fold(name).split("\n")),
                min(FOLDED, max((len(row.params[i]) for row in self.rows), default=0)),
            )
            for i, name in enumerate(self.board.params)
        ]
        measured = self._table([])
        most = Measurement.get(console, options.update(width=10_000), measured).maximum
        if most + sum(width + 2 for width in widths) <= options.max_width:
            yield self._table(self.board.params)
            return
        yield measured
        configurations = _table("trial", "configuration")
        for row in self.rows:
            fields = zip(self.board.params, row.params, strict=True)
            configurations.add_row(_number(row), Text(" ".join(f"{n}={v}" for n, v in fields)))
        yield configurations

    def _table(self, params: list[str]) -> Table:
        table = _table("trial", "ended", "pairs", *params, *self.board.measures)
        folded = [_fold(name) for name in params]
        for column in table.columns:
            column.header = Text(_fold(str(column.header)))
            column.justify, column.overflow = "right", "fold"
            # Only hyperparameters give way: a list or a name may fold, a measure may not.
            column.no_wrap = str(column.header) not in folded
        table.columns[1].justify = "left"
        blank = ("" for _ in params)
        table.add_row("-", "reference", "0", *blank, *self.board.reference, style="dim")
        for row in self.rows:
            table.add_row(
                _number(row),
                Text(row.ending, style=STYLES.get(row.trial.state, "")),
                str(row.trial.pairs or "-"),
                *map(Text, row.params if params else []),
                *row.measures,
                style="bold" if row.winner else "",
            )
        return table


def _number(row: views.LeaderboardRow) -> Text:
    return Text(f"{row.trial.number}{'*' if row.winner else ''}")


def leaderboard_table(run: Run, limit: int | None = None) -> RenderableType:
    """Trials best first under the reference's line; below them, which warnings concern which."""
    board = views.leaderboard(run)
    warnings: dict[str, list[str]] = {}
    for trial in run.trials():
        for finding in trial_warnings(run, trial):
            warnings.setdefault(finding.title, []).append(str(trial.number))
    notes = ["* the winner of the verdict"] if any(row.winner for row in board.rows) else []
    notes += [f"{plain(title)}: trial {', '.join(numbers)}" for title, numbers in warnings.items()]
    notes += ["`preftune show` with `--trial N` explains the warnings"] if warnings else []
    return Group(_Leaderboard(board, limit), *(Text(note, style="dim") for note in notes))


def verdict_panel(run: Run) -> Panel:
    """The verdict's sentence, and the finalists on the test split with their intervals."""
    verdict = verdict_view.verdict(run)
    parts: list[RenderableType] = [Text(verdict.sentence, style="bold")]
    if verdict.tone == "open":
        return Panel(Group(*parts, *_list(run.missing())), title="Verdict", title_align="left")
    parts += [Text(plain(line)) for line in (*verdict.details, _other_budgets(run)) if line]
    if verdict.rows:
        table = _table("on the test split", *verdict.columns)
        for row in verdict.rows:
            seed = row.kind == "seed"
            name = Text(f"  {row.name}" if seed else row.name)
            table.add_row(name, *map(Text, row.cells), style="dim" if seed else "")
        parts += [table, Text(verdict.note, style="dim")]
    border = "green" if verdict.tone == "won" else "yellow"
    return Panel(Group(*parts), title="Verdict", title_align="left", border_style=border)


def _other_budgets(run: Run) -> str | None:
    """What the search would have chosen under other limits on `kl`, in a sentence."""
    rows = views.other_budgets(run)
    if all(row.trial is None for row in rows):
        return None
    chosen = []
    for row in rows:
        # A larger budget's choice may be one that the search ended on its way.
        at = "" if row.complete else f", ended at {row.pairs} pairs"
        figures = f"({run.metric} {row.value}, kl {row.kl}{at})"
        chosen.append("no trial" if row.trial is None else f"trial {row.trial} {figures}")
    budgets = [f"kl ≤ {row.budget}" for row in rows]
    if len({*chosen}) == 1:
        return f"By the validation split the best is {chosen[0]} under {', '.join(budgets)}."
    each = "; ".join(f"{b} {c}" for b, c in zip(budgets, chosen, strict=True))
    return f"By the validation split the best is, under {each}."


def trial_detail(run: Run, n: int, samples: int = 3) -> RenderableType:
    """One trial: how it ended, its rungs, warnings, decisions and some of its answers."""
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
    parts += _warnings(trial_warnings(run, trial))
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
    """What was loaded; of each split what was dropped, why, and what is left; the warnings."""
    data = views.data(run)
    if data is None:
        return Text("data_report.json is missing: what was loaded and dropped is unknown")
    table = _table("data", *data.splits)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cells in data.rows:
        table.add_row(Text(name), *map(Text, cells))
    facts = ", ".join(f"{name} {value}" for name, value in data.facts)
    return Group(Text(facts), table, *_warnings(data_warnings(run)))


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


def _warnings(findings: list[Finding]) -> list[Text]:
    """Warnings in full."""
    if not findings:
        return []
    lines = (f"{finding.title}: {finding.sentence}" for finding in findings)
    return [Text("Warnings", style="bold"), *_list(lines)]


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
