"""The board: runs, leaderboard, verdict, and what the search has seen so far."""

from typing import Any

import streamlit as st

from results import verdict_view, views
from results.doctor.data_warnings import data_warnings
from results.doctor.trial_warnings import trial_warnings
from results.formatting import number
from results.run.layout import ACTIVE
from results.run.listing import list_runs, open_run
from results.run.run import Run
from search_spaces.errors import UserError
from serve.choice import Choice, literal

REFRESH_SECONDS = 5


def page(choice: Choice) -> None:
    """Render the board of the chosen run; it refreshes itself while the run is active."""
    st.title("Board")
    if choice.run is None:
        st.info(literal(choice.problem or "Start the page with a run to see its board."))
        return
    folder = choice.run.folder
    every = REFRESH_SECONDS if choice.run.active else None

    @st.fragment(run_every=every)
    def live() -> None:
        try:
            run = open_run(folder)
            _run(run)
        except UserError as error:
            st.error(literal(error))
            return
        if every and run.state not in ACTIVE:
            st.rerun()  # the run has ended: render once more, without the clock

    live()
    with st.expander("All runs"):
        runs = list_runs(choice.run.storage)
        names = ("name", "state", "created", "model", "outcome", "sentence")
        st.dataframe([{name: getattr(r, name) for name in names} for r in runs], hide_index=True)


def _run(run: Run) -> None:
    trials = run.trials()
    ended = [t for t in trials if t.state not in ("running", "paused", "waiting")]
    best = next((t for t in views.ranked(run) if t.state in ("complete", "stopped")), None)
    wanted = (run.spec.get("search") or {}).get("trials")
    facts = [
        ("state", run.state),
        ("trials ended", f"{len(ended)} of {wanted or len(trials)}"),
        (f"best {run.metric}", number(best.value if best else None, 3)),
        (f"reference {run.metric}", number(run.reference.get(run.metric), 3)),
    ]
    for (label, value), column in zip(facts, st.columns(len(facts)), strict=True):
        column.metric(literal(label), value)
    _verdict(verdict_view.verdict(run))
    for sentence in run.missing():
        st.warning(literal(sentence))
    st.subheader("Leaderboard")
    board = views.leaderboard(run)
    warnings = {row.trial.number: trial_warnings(run, row.trial) for row in board.rows}
    st.dataframe(
        [
            {
                "trial": row.trial.number,
                "ended": row.ending,
                "pairs": row.trial.pairs,
                **dict(zip(board.params, row.params, strict=True)),
                **{name: row.trial.measures.get(name) for name in board.measures},
                "warnings": ", ".join(finding.title for finding in warnings[row.trial.number]),
                "cause": row.trial.cause or "",
            }
            for row in board.rows
        ],
        hide_index=True,
    )
    about = [("The data", data_warnings(run))]
    about += [(f"Trial {trial}", findings) for trial, findings in warnings.items()]
    lines = [
        f"- **{literal(subject)}, {literal(finding.title)}.** {literal(finding.sentence)}"
        for subject, findings in about
        for finding in findings
    ]
    if lines:
        with st.expander("Warnings"):
            st.markdown("\n".join(lines))
    left, right = st.columns(2)
    left.plotly_chart(_scatter(run), key="scatter", config={"displayModeBar": False})
    right.plotly_chart(_curves(run), key="curves", config={"displayModeBar": False})


def _verdict(verdict: verdict_view.Verdict) -> None:
    box = {"open": st.info, "won": st.success, "none": st.warning}[verdict.tone]
    box(" ".join(map(literal, [verdict.sentence, *verdict.details])))


def _figure(title: str, x: str, y: str) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        title=title,
        xaxis_title=x,
        yaxis_title=y,
        height=380,
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        legend={"orientation": "h", "y": -0.25},
    )
    return figure


def _scatter(run: Run) -> Any:
    """The objective against kl at each trial's last rung."""
    figure = _figure(f"{run.metric} against kl", "kl (nats per answer)", run.metric)
    trials = [t for t in run.trials() if t.measures.get("kl") is not None]
    for state in ("complete", "stopped", "infeasible", "running", "paused"):
        shown = [t for t in trials if t.state == state and t.measures.get(run.metric) is not None]
        if shown:
            figure.add_scatter(
                x=[t.measures["kl"] for t in shown],
                y=[t.measures[run.metric] for t in shown],
                mode="markers+text",
                text=[str(t.number) for t in shown],
                textposition="top center",
                name=state,
                marker={"size": 11},
            )
    if (before := run.reference.get(run.metric)) is not None:
        figure.add_hline(y=before, line_dash="dot", annotation_text="reference")
    return figure


def _curves(run: Run) -> Any:
    """The objective at each rung, one line for each trial."""
    figure = _figure(f"{run.metric} by pairs seen", "pairs", run.metric)
    for trial in run.trials():
        points = run.measures(trial.number)
        if points:
            figure.add_scatter(
                x=[p.get("pairs") for p in points],
                y=[p.get(run.metric) for p in points],
                mode="lines+markers",
                name=f"trial {trial.number}",
            )
    return figure
