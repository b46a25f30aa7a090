"""The figures of a report: verdict, front and curves here, the study's in `study_plots`."""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from results.formatting import compact, measure
from results.pareto import Point, front, points
from results.report.plot_style import (
    BARE,
    BLUE,
    GREY,
    HOVER,
    INK,
    ORANGE,
    STAR,
    STATES,
    VERMILLION,
    bend,
    bent_axis,
    blank,
    escaped,
    finite,
    hover_text,
    log_axis,
)
from results.report.study_plots import of_study, timeline
from results.run.run import Run

MANY = 40  # trials whose numbers and lines can still be distinguished
WON = {"size": 9, "line": {"color": INK, "width": 1}}


def figures(run: Run) -> dict[str, Any]:
    """Every figure that the run has something to show in, by name: a `plotly` figure each."""
    drawn = {
        "finalists": finalists(run),
        "front": front_figure(run),
        **{f"curve_{name}": curve(run, name) for name in curve_measures(run)},
        "timeline": timeline(run),
        **of_study(run),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def curve_measures(run: Run) -> list[str]:
    """The measures whose curves are drawn: the objective, how far it went, what the pairs say."""
    judged, unjudged = ("judge_score", "kl", "pair_loss"), ("kl", "chosen_drift", "ended")
    return list(dict.fromkeys([run.metric, *(judged if run.spec.get("judge") else unjudged)]))


def kl_limit(run: Run) -> float | None:
    """The search's limit on `kl`, where it has one."""
    limit = run.limits.get("kl", {}).get("max")
    return None if limit is None else float(limit)


def finalists(run: Run) -> Any:
    """What each finalist gains over the reference on the test split, with its intervals."""
    verdict = run.verdict() or {}
    metric = str(verdict.get("metric") or run.metric)
    minimize = verdict.get("direction") == "minimize"
    shown = [f for f in verdict.get("finalists") or [] if finite(f.get("difference"))]
    if not shown:
        return None
    figure = blank(160 + 56 * len(shown), f"gain in {metric} over the reference", "")
    rows = {f.get("number"): len(shown) - 1 - i for i, f in enumerate(shown)}
    kinds = (
        ("", "own checkpoint", 0.16, BLUE, "circle"),
        ("configuration_", "over fresh seeds", -0.16, GREY, "square"),
    )
    for prefix, name, shift, colour, symbol in kinds:
        known = [f for f in shown if f.get(f"{prefix}interval")]
        values = [f[f"{prefix}difference"] for f in known]
        bounds = [f[f"{prefix}interval"] for f in known]
        figure.add_scatter(
            x=values,
            y=[rows[f["number"]] + shift for f in known],
            error_x={
                "type": "data",
                "array": [high - v for v, (_, high) in zip(values, bounds, strict=True)],
                "arrayminus": [v - low for v, (low, _) in zip(values, bounds, strict=True)],
                "thickness": 2,
                "width": 6,
            },
            mode="markers",
            name=f"{name}, with interval",
            marker={"color": colour, "symbol": symbol, "size": 10},
            hovertemplate="%{x:+.3f}<extra>" + name + "</extra>",
        )
    before = 0.5 if metric == "win_rate" else (verdict.get("reference") or {}).get(metric)
    again = [
        ((before - value) if minimize else (value - before), rows[f["number"]] - 0.16, s)
        for f in shown
        for s in f.get("fresh_seeds") or []
        if finite(value := (s.get("test") or {}).get(metric)) and finite(before)
    ]
    if again:
        figure.add_scatter(
            x=[x for x, _, _ in again],
            y=[y for _, y, _ in again],
            mode="markers",
            name="fresh seeds",
            marker={"color": ORANGE, "symbol": "diamond-open", "size": 9, "line": {"width": 2}},
            hovertext=[f"seed {escaped(s.get('seed'))}: {x:+.3f}" for x, _, s in again],
            hovertemplate=HOVER,
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1.5})
    figure.add_annotation(x=0, y=1, yref="paper", text="reference", yanchor="bottom", **BARE)
    figure.update_yaxes(
        tickvals=list(rows.values()),
        ticktext=[f"trial {escaped(number)}" for number in rows],
        range=[-0.6, len(shown) - 0.4],
        showgrid=False,
    )
    return figure


def front_figure(run: Run) -> Any:
    """The objective against kl at each trial's last rung, the front, the winner and the limit."""
    measured = [p for p in points(run) if math.isfinite(p.kl) and math.isfinite(p.value)]
    if not measured:
        return None
    figure = blank(440, "kl in nats per answer, on a scale of log(1 + kl)", run.metric)
    before, limit = run.reference.get(run.metric), kl_limit(run)
    sign = 1 if run.maximize else -1
    best = [
        p
        for p in front(measured, run.maximize)
        if not finite(before) or sign * p.value > sign * before
    ]
    start = [(0.0, before)] if finite(before) else []
    steps = [*start, *((bend(p.kl), p.value) for p in best)]
    figure.add_scatter(
        x=[x for x, _ in steps],
        y=[y for _, y in steps],
        mode="lines",
        name="front",
        line={"color": ORANGE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    winner = (run.verdict() or {}).get("winner")
    numbered = {p.trial for p in (measured if len(measured) <= MANY else best)}
    for state, (colour, symbol) in STATES.items():
        shown = [p for p in measured if run.trial(p.trial).state == state and p.trial != winner]
        marker = {"color": colour, "symbol": symbol, "size": 10}
        _points(figure, run, shown, state, marker, numbered)
    won = [p for p in measured if p.trial == winner]
    _points(figure, run, won, f"winner: trial {winner}", STAR, numbered)
    if start:
        figure.add_scatter(
            x=[0],
            y=[before],
            mode="markers",
            name="reference",
            marker={"color": INK, "symbol": "square", "size": 11},
            hovertext=[f"reference: {run.metric} {measure(run.reference, run.metric)}"],
            hovertemplate=HOVER,
        )
    if limit is not None:
        figure.add_vline(x=bend(limit), line={"color": VERMILLION, "dash": "dash", "width": 2})
        label = {"x": bend(limit), "y": 1, "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(text=f"kl limit {compact(limit)}", **label, **BARE)
    figure.update_xaxes(**bent_axis([p.kl for p in measured], limit))
    if run.metric == "pair_loss":
        figure.update_yaxes(**log_axis([p.value for p in measured]))
    return figure


def curve(run: Run, name: str) -> Any:
    """One measure by pairs seen: a line a trial from the reference on, the winner's in front."""
    before, winner = run.reference.get(name), (run.verdict() or {}).get("winner")
    place = bend if name == "kl" else float
    lines: dict[str, list[tuple[Any, Any, str]]] = {}
    values = []
    for trial in run.trials():
        seen = [m for m in run.measures(trial.number) if finite(m.get(name))]
        if not seen:
            continue
        line = [(0, place(before), "")] if finite(before) else []
        for record in seen:
            text = f"{name} {measure(record, name)} at {record['pairs']} pairs"
            line.append((record["pairs"], place(record[name]), hover_text(run, trial, text, False)))
        values += [record[name] for record in seen]
        group = "winner" if trial.number == winner else trial.state
        # A gap ends the line: one trace for a state, however many trials there are.
        lines.setdefault(group, []).extend([*line, (None, None, "")])
    if not lines:
        return None
    figure = blank(330, "pairs", name)
    for group in ("stopped", "infeasible", "failed", "running", "paused", "complete", "winner"):
        if group not in lines:
            continue
        colour, symbol = STATES.get(group, (ORANGE, "circle"))
        won = group == "winner"
        figure.add_scatter(
            x=[x for x, _, _ in lines[group]],
            y=[y for _, y, _ in lines[group]],
            mode="lines+markers",
            name=f"winner: trial {winner}" if won else group,
            line={"color": colour, "width": 3.5 if won else 1.5},
            marker={"symbol": symbol, "size": 6} if not won else WON,
            opacity=1 if won else 0.75 if len(run.trials()) <= MANY else 0.35,
            hovertext=[text for _, _, text in lines[group]],
            hovertemplate=HOVER,
        )
    if finite(before):
        figure.add_hline(y=place(before), line={"color": INK, "dash": "dot", "width": 1})
    if name == "kl":
        limit = kl_limit(run)
        figure.update_yaxes(**bent_axis(values, limit))
        if limit is not None:
            dashes = {"color": VERMILLION, "dash": "dash", "width": 2}
            figure.add_hline(y=bend(limit), line=dashes)
            label = {"x": 1, "xref": "paper", "xanchor": "right", "yanchor": "bottom"}
            figure.add_annotation(y=bend(limit), text=f"limit {compact(limit)}", **label, **BARE)
    elif name == "pair_loss":
        figure.update_yaxes(**log_axis([*values, *([before] if finite(before) else [])]))
    return figure


def _points(
    figure: Any,
    run: Run,
    shown: Sequence[Point],
    name: str,
    marker: Mapping[str, Any],
    numbered: Container[int],
) -> None:
    if not shown:
        return
    known = [(p, run.trial(p.trial)) for p in shown]
    texts = [
        hover_text(run, t, f"{run.metric} {p.value:.3f}, kl {p.kl:.1f} at {p.pairs} pairs")
        for p, t in known
    ]
    figure.add_scatter(
        x=[bend(p.kl) for p in shown],
        y=[p.value for p in shown],
        mode="markers+text",
        name=name,
        text=[str(p.trial) if p.trial in numbered else "" for p in shown],
        textposition="top center",
        textfont={"size": 11, "color": INK},
        marker=dict(marker),
        hovertext=texts,
        hovertemplate=HOVER,
    )
