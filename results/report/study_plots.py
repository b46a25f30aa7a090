"""When the trials of a study ran, and Optuna's own figures of their hyperparameters."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

from results.formatting import compact, ending
from results.report.plot_style import (
    BLUE,
    GREEN,
    GREY,
    HOVER,
    INK,
    LINE,
    ORANGE,
    PURPLE,
    VERMILLION,
    blank,
    escaped,
    hover_text,
    restyled,
    short,
)
from results.run import layout
from results.run.journal import open_study
from results.run.run import Run
from search_spaces.choices import decode

ENDINGS = {  # how a trial ended -> colour, hatching of a bar
    "complete": (BLUE, ""),
    "asha": (GREY, ""),
    "infeasible": (VERMILLION, "/"),
    "nan": (PURPLE, "x"),
    "failed": (INK, ""),
    "running": (GREEN, "."),
    "paused": (GREEN, "/"),
    "unfinished": (GREEN, "."),
}
OTHER_ENDING = (ORANGE, "")  # by user, out of time
ENOUGH = 10  # trials that a rung needs before importances say more than chance


def timeline(run: Run) -> Any:
    """When each trial ran, on which device, and how it ended; minutes since the first began."""
    study, _ = open_study(run.folder / layout.JOURNAL)
    frozen = study.get_trials(deepcopy=False) if study else []
    # Trials of an earlier run did not run in this one.
    started = [t for t in frozen if t.datetime_start and "taken_from" not in t.user_attrs]
    if not started:
        return None
    begin = min(_start(t) for t in started)
    known = [moment for t in started for moment in (t.datetime_start, t.datetime_complete)]
    # Optuna's times are local and without a zone.
    now = datetime.now() if run.active else max(moment for moment in known if moment)
    devices = {t.number: _device(t) for t in started}
    started.sort(key=lambda t: (devices[t.number], _start(t)), reverse=True)
    figure = blank(110 + 22 * len(started), "minutes since the first trial began", "")
    groups: dict[str, list[FrozenTrial]] = {name: [] for name in ENDINGS}  # the legend's order
    for one in started:
        groups.setdefault(ending(run.trial(one.number), run), []).append(one)
    for name, members in groups.items():
        if not members:
            continue
        colour, hatch = ENDINGS.get(name, OTHER_ENDING)
        spans = [(_start(t) - begin, (t.datetime_complete or now) - _start(t)) for t in members]
        texts = [
            hover_text(
                run, run.trial(t.number), f"{devices[t.number]}, {length.total_seconds():.0f} s"
            )
            for t, (_, length) in zip(members, spans, strict=True)
        ]
        figure.add_bar(
            orientation="h",
            base=[start.total_seconds() / 60 for start, _ in spans],
            x=[length.total_seconds() / 60 for _, length in spans],
            y=[[devices[t.number] for t in members], [f"trial {t.number}" for t in members]],
            name=escaped(name),
            marker={
                "color": colour,
                "pattern": {"shape": hatch, "fillmode": "overlay", "fgcolor": "white", "size": 6},
            },
            hovertext=texts,
            hovertemplate=HOVER,
        )
    order = [[devices[t.number] for t in started], [f"trial {t.number}" for t in started]]
    # An invisible trace first: the axis takes its order from it, not from the endings.
    figure.add_bar(orientation="h", x=[0] * len(started), y=order, showlegend=False)
    figure.data = (figure.data[-1], *figure.data[:-1])
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_yaxes(showgrid=False, dividercolor=LINE)
    return figure


def of_study(run: Run) -> dict[str, Any]:
    """Optuna's own figures of how parameters and objective hang together; none without trials."""
    at, trials = comparable(run)
    if not trials:
        return {}
    drawn = {}
    with _quiet():
        study = optuna.create_study(direction="maximize" if run.maximize else "minimize")
        study.add_trials(trials)
        parallel = optuna.visualization.plot_parallel_coordinate(study, target_name=run.metric)
        drawn["parallel"] = restyled(parallel, 420, {"l": 60, "r": 10, "t": 40, "b": 40})
        parallel.update_traces(selector={"mode": "lines"}, opacity=0.9, line_width=2)
        bar = {"title": {"text": ""}, "thickness": 14}  # the first axis says what it is
        parallel.update_traces(selector={"mode": "markers"}, marker_colorbar=bar)
        parallel.update_annotations(bgcolor="rgba(255, 255, 255, 0.8)", font_color=INK)
        parallel.update_layout(plot_bgcolor="#f0f2f5")  # the palest lines are almost white
        if len(trials) >= ENOUGH and len({t.value for t in trials}) > 1:
            importances = optuna.visualization.plot_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target_name=run.metric
            )
            height = 110 + 34 * len({name for t in trials for name in t.params})
            drawn["importances"] = restyled(
                importances, height, {"l": 10, "r": 45, "t": 20, "b": 50}
            )
            importances.update_traces(marker_color=BLUE)
            importances.update_xaxes(title_text="share of the importance")
            importances.update_yaxes(title="", automargin=True)
            importances.update_layout(showlegend=False)
    return drawn


def comparable(run: Run) -> tuple[int, list[FrozenTrial]]:
    """Trials by their objective at one rung: the last that enough of them reached, or the first.

    Optuna looks at complete trials alone: the few that were promoted to the end. At an earlier rung
    the ones that were stopped count as well, and all were trained alike.

    Returns:
        The rung in the budget's unit, and complete trials with the objective there. Choices are
        text.
    """
    study, _ = open_study(run.folder / layout.JOURNAL)
    frozen = study.get_trials(deepcopy=False) if study else []
    reached: dict[int, list[FrozenTrial]] = {}
    for trial in frozen:
        for rung, value in trial.intermediate_values.items():
            if math.isfinite(value):
                reached.setdefault(rung, []).append(trial)
    if not reached:
        return 0, []
    enough = [rung for rung, trials in reached.items() if len(trials) >= ENOUGH]
    at = max(enough, default=min(reached))
    # Optuna takes a trial without any constraint for infeasible where another one has some.
    limits = {name: 0.0 for trial in reached[at] for name in trial.constraints}
    shown = []
    for trial in reached[at]:
        params, domains = _labelled(trial)
        shown.append(
            optuna.trial.create_trial(
                value=trial.intermediate_values[at],
                params=params,
                distributions=domains,
                constraints=limits | dict(trial.constraints),
            )
        )
    return at, shown


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's log of a study made for drawing, and its notes on new functions, to itself."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _start(trial: FrozenTrial) -> datetime:
    assert trial.datetime_start is not None  # asked for before it is drawn
    return trial.datetime_start


def _device(trial: FrozenTrial) -> str:
    known = [trial.user_attrs.get(name) for name in ("node", "device")]
    return escaped(short(" ".join(str(name) for name in known if name) or "no device", 30))


def _labels(name: str, distribution: BaseDistribution) -> dict[Any, str] | None:
    """A label for each choice; choices whose texts begin alike are numbered. None for a number."""
    if not isinstance(distribution, CategoricalDistribution):
        return None
    labels: dict[Any, str] = {}
    for number, choice in enumerate(distribution.choices):
        label = escaped(short(compact(decode(name, choice)), 40))
        labels[choice] = f"{label} ({number})" if label in labels.values() else label
    return labels


def _labelled(trial: FrozenTrial) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """A trial's parameters and domains with labels in the place of choices."""
    params, domains = dict(trial.params), dict(trial.distributions)
    for name, distribution in trial.distributions.items():
        if (labels := _labels(name, distribution)) is not None:
            params[name] = labels[params[name]]
            domains[name] = CategoricalDistribution(list(labels.values()))
    return params, domains
