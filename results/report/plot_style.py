"""How the figures of a report look, and how texts get into them.

plotly reads a small part of HTML in every label and hover text: what comes from models, data and
users goes through `escaped`, into fields of the data, never inside a hover template.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from plotly import graph_objects as go

from results.formatting import compact, ending, plain
from results.run.run import Run
from results.run.trial import Trial

# Okabe and Ito's palette, which is safe for any colour vision. Symbols and dashes repeat it.
INK, GREY, LINE = "#1c2128", "#8c959f", "#d8dee4"
BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#e69f00"
VERMILLION, PURPLE = "#d55e00", "#cc79a7"
STATES = {  # state -> colour, symbol of a point
    "complete": (BLUE, "circle"),
    "stopped": (GREY, "circle-open"),
    "infeasible": (VERMILLION, "x"),
    "running": (GREEN, "diamond-open"),
    "paused": (GREEN, "hourglass-open"),
    "failed": (INK, "cross"),
}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
HOVER = "%{hovertext}<extra></extra>"
BARE = {"showarrow": False, "font": {"size": 12, "color": INK}}
STAR = {"color": ORANGE, "symbol": "star", "size": 20, "line": {"color": INK, "width": 1.5}}
_KL_TICKS = (0, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def escaped(text: object) -> str:
    """Text that plotly shows as it is."""
    return html.escape(plain(text), quote=False)


def blank(height: int, x: str, y: str) -> Any:
    """An empty figure with titled axes and its legend below, `height` in pixels."""
    figure = go.Figure()
    figure.update_xaxes(title=escaped(x))
    figure.update_yaxes(title=escaped(y))
    # Below the axis' title, whose distance is in pixels and the legend's a share of the height.
    below = -54 / (height - 130)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": below, "yanchor": "top"})
    return restyled(figure, height, {"l": 10, "r": 20, "t": 30, "b": 10})


def restyled(figure: Any, height: int, margin: Mapping[str, int]) -> Any:
    """Give a figure, Optuna's too, the page's font, colours and grid; it is changed in place."""
    figure.update_layout(
        template="none",
        title=None,
        height=height,
        margin=margin,
        font={"family": FONT, "size": 13, "color": INK},
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"family": FONT}},
        hovermode="closest",
        plot_bgcolor="white",
    )
    axis = {"gridcolor": "#eaeef2", "zeroline": False, "linecolor": LINE, "automargin": True}
    axis |= {"title_font_size": 13, "title_standoff": 12}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def hover_text(run: Run, trial: Trial, what: str, params: bool = True) -> str:
    """The hover text of a trial, escaped: how it ended, `what`, and its hyperparameters."""
    lines = [f"trial {trial.number}, {ending(trial, run)}", what]
    lines += [f"{name} {compact(value)}" for name, value in trial.params.items() if params]
    return "<br>".join(escaped(short(line)) for line in lines)


def short(text: str, limit: int = 90) -> str:
    """Text of at most so many characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def finite(value: Any) -> TypeGuard[float]:
    """Whether this is a number that has a place in a figure."""
    return isinstance(value, int | float) and math.isfinite(value)


def bend(kl: float) -> float:
    """The place of a kl on an axis that shows 0, a limit of 20 and a collapse at 2,000 alike."""
    return math.log1p(max(0.0, kl))  # an estimate from samples may fall below zero


def bent_axis(values: Iterable[float], limit: float | None) -> dict[str, Any]:
    """An axis of `bend`'s places, labelled in nats, that shows these values and the limit."""
    top = bend(max([*values, limit or 0.0, 1.0])) * 1.06
    ticks = [0.0]
    for tick in _KL_TICKS:
        if bend(tick) <= top and bend(tick) - bend(ticks[-1]) > top / 12:
            ticks.append(tick)
    places = {"tickvals": [bend(t) for t in ticks], "ticktext": [compact(t) for t in ticks]}
    return {**places, "range": [-top / 30, top]}


def log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis where values span more than a decade.

    Its labels are whole, where plotly shortens 0.05 to 5.
    """
    if min(values) <= 0 or max(values) < 10 * min(values):
        return {}
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    digits = (1, 2, 5) if len(decades) < 4 else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
