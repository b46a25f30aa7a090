"""One self-contained HTML page of a run, readable offline and years later.

plotly.js and the figures are inside; the page asks nothing of any network, and its own policy
forbids it to. Texts of models, data and users are escaped, and would not run if they were not: the
policy names the two scripts that may, by their hashes.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from results import verdict_view, views
from results.doctor.data_warnings import data_warnings
from results.doctor.trial_warnings import trial_warnings
from results.formatting import compact, number, plain
from results.report.side_by_side import answers, cut
from results.run import layout
from results.run.files import write_text
from results.run.run import Run
from search_spaces.errors import UserError

SCALE = 2  # pixels of a PNG for each one of the page
SCRIPT = """
for (const place of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  const config = {responsive: true, displaylogo: false};
  config.modeBarButtonsToRemove = ["select2d", "lasso2d", "autoScale2d"];
  Plotly.newPlot(place, figure.data, figure.layout, config);
}
"""


def write_report(run: Run) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises:
        UserError: a file of the run is damaged, or the page cannot be written.
    """
    path = run.folder / layout.REPORT
    html = page(run)
    try:
        write_text(path, html)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}); make room, or set its permissions."
        ) from error
    return path


def write_figures(run: Run) -> list[Path]:
    """Write the page's figures as PNG under `figures/`, through a Chromium or Chrome.

    Raises:
        UserError: kaleido or the browser is not installed.
    """
    from results.report.plots import figures

    return _write(run, figures(run))


def front_png(run: Run) -> Path | None:
    """Return the figure of the objective against KL, drawn if it is missing or out of date.

    Returns:
        `figures/front.png` of the run folder; None where there is nothing to draw, or no browser
        to draw it with.
    """
    from results.report.plots import front_figure

    path = run.folder / "figures" / "front.png"
    sources = [run.folder / name for name in (layout.JOURNAL, layout.VERDICT, layout.SPEC)]
    newest = max((file.stat().st_mtime for file in sources if file.is_file()), default=0.0)
    if path.is_file() and path.stat().st_mtime >= newest:
        return path
    figure = front_figure(run)
    try:
        return None if figure is None else _write(run, {"front": figure})[0]
    except (UserError, OSError):
        return None


def _write(run: Run, figures: dict[str, Any]) -> list[Path]:
    try:
        import kaleido
        from choreographer.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError:
        raise UserError(
            "PNG figures need kaleido, which is not installed: pip install 'preftune[png]'"
        ) from None
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    drawn: list[dict[str, Any]] = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        size = {"width": 900, "height": figure.layout.height, "scale": SCALE}
        drawn.append({"fig": figure, "path": paths[-1], "opts": size})
    try:
        # The page in which kaleido draws fetches MathJax from the internet unless this is set.
        kaleido.write_fig_from_object_sync(drawn, kopts={"mathjax": False}, cancel_on_error=True)
    except (BrowserFailedError, ChromeNotFoundError):
        raise UserError(
            "PNG figures need a Chromium or Chrome, and none starts here: install one (on Debian: "
            "apt-get install chromium), or name it in BROWSER_PATH"
        ) from None
    return paths


def page(run: Run) -> str:
    """Return the page's HTML."""
    import plotly.offline
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from results.report.plots import figures
    from results.report.study_plots import comparable

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "number": number, "fold": _fold, "cut": cut}
    plotly_js = plotly.offline.get_plotlyjs()
    # plotly's JSON has no `<` (it writes \u003c): no text in it can end the element that holds it.
    drawn = {name: Markup(figure.to_json()) for name, figure in figures(run).items()}
    at, trials = comparable(run)
    return environment.get_template("report.jinja").render(
        run=run,
        scripts=f"{_hash(plotly_js)} {_hash(SCRIPT)}",
        plotly_js=Markup(plotly_js),
        script=Markup(SCRIPT),
        figures=drawn,
        curves=[name for name in drawn if name.startswith("curve_")],
        rung={"at": f"{at} {run.unit}", "trials": len(trials)},
        head=views.head(run),
        verdict=verdict_view.verdict(run),
        missing=run.missing(),
        budgets=views.other_budgets(run),
        board=views.leaderboard(run),
        warnings={trial.number: trial_warnings(run, trial) for trial in run.trials()},
        answers=answers(run),
        data=views.data(run),
        data_warnings=data_warnings(run),
        facts=_facts(run),
        spec=_text(run.folder / layout.SPEC),
    )


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _fold(name: str) -> str:
    """A field's name that may break after each underscore: its column's values are short."""
    return plain(name).replace("_", "_\N{ZERO WIDTH SPACE}")


def _facts(run: Run) -> list[tuple[str, str]]:
    """What `run.json` says of how the run came about."""
    names = ("command", "created", "ended", "state", "error", "commit", "host", "model", "hardware")
    values = {
        name: run.info.get(name) for name in (*names, "seeds", "seconds", "prepared", "versions")
    }
    return [(name, _flat(value)) for name, value in values.items() if value]


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_flat(v)}" for k, v in value.items() if v is not None)
    return ", ".join(map(compact, value)) if isinstance(value, list) else compact(value)


def _text(path: Path) -> str | None:
    try:
        return plain(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
