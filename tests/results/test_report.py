"""The report of a run: what it says, what it shows, and that a real browser runs nothing else."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import create_trial
from run_folder import crash, write_lines, write_run
from searching import HANG

from results.report.page import page, write_figures, write_report
from results.report.plots import figures
from results.report.side_by_side import FIRST, LONGEST, MOST, answers
from results.report.study_plots import ENOUGH, comparable, timeline
from results.run.listing import open_run
from search_spaces.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"
)
SECTIONS = (
    "Verdict",
    "Leaderboard",
    "Objective and KL",
    "Learning curves",
    "Timeline",
    "Hyperparameters",
    "Answers",
    "Data",
    "Warnings",
    "Settings",
)
CURVES = {f"curve_{name}" for name in ("win_rate", "judge_score", "kl", "pair_loss")}
# Without quotes: it stands inside JSON inside JSON in a journal.
EVIL = "<b>bold</b></script><script>hit()</script><img src=x onerror=hit()>"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sample(row: int, score: float | None, answer: str = "Paris.", pairs: int = 1600) -> Any:
    return {"row": row, "prompt": f"Question {row}?", "answer": answer, "tokens": 3} | {
        "ended": True,
        "score": score,
        "pairs": pairs,
    }


def write_answers(folder: Path, reference: list[Any], trial: list[Any], number: int = 0) -> None:
    home = folder.parent / "prepared" / "answers-4e5f"
    home.mkdir(exist_ok=True)
    write_lines(home / "validation.jsonl", reference)
    prepared = json.loads((folder / "run.json").read_text())["prepared"]
    edit(folder / "run.json", prepared=prepared | {"answers": home.name})
    write_lines(folder / "trials" / str(number) / "samples.jsonl", trial)


def add_trials(folder: Path, count: int, **changes: Any) -> None:
    """Add complete trials, copies of the first, that reached the first rung."""
    study = optuna.load_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
    )
    first = study.get_trials()[0]
    for index in range(count):
        values = {178: 0.5 + index / 100, 1600: 0.6}
        study.add_trial(
            create_trial(
                value=0.6,
                params=first.params | {"learning_rate": 1e-4 * (index + 1)},
                distributions=first.distributions,
                intermediate_values=values,
                **changes,
            )
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, "won")


@pytest.mark.parametrize("state", ["won", "lost", "live", "crashed", "no_judge", "no_trials"])
def test_a_run_in_any_state_has_a_whole_page(tmp_path: Path, state: str) -> None:
    active = state in ("live", "crashed", "no_trials")
    outcome = "none" if state == "lost" else "winner"
    folder = write_run(tmp_path, state, outcome, "searching" if active else "done")
    sentence, drawn = "Trial 0 beats the reference", {"finalists"}
    if state == "lost":
        sentence = "No configuration beats the reference on the test split."
    if active:
        sentence, drawn = "The search is running; there is no verdict yet.", set()
    if state == "crashed":
        crash(folder)
        sentence = "The run crashed before its verdict."
    if state == "no_judge":
        spec = (folder / "spec.yaml").read_text().replace("judge: quickstart", "judge: null")
        (folder / "spec.yaml").write_text(spec.replace("win_rate", "pair_loss"))
    if state == "no_trials":
        shutil.rmtree(folder / "trials")
        for name in ("study.journal", "decisions.jsonl", "spec.yaml", "data_report.json"):
            (folder / name).unlink()
    run = open_run(folder)
    path = write_report(run)
    assert path == run.folder / "report.html" and path.stat().st_size < 6_000_000
    html = path.read_text()
    assert html.count("* plotly.js v") == 1 and sentence in html
    assert all(f"<h2>{title}</h2>" in html for title in SECTIONS)
    assert "spec.yaml is missing" in html or state != "no_trials"
    if state == "no_trials":
        assert figures(run) == {}
        return
    curves = {f"curve_{n}" for n in ("pair_loss", "kl", "chosen_drift", "ended")}
    drawn |= {"front", "timeline", "parallel", *(curves if state == "no_judge" else CURVES)}
    assert set(figures(run)) == drawn
    assert "5 comparable trials are too few" in html or active


def test_the_verdict_section_says_what_it_was_corrected_for(folder: Path) -> None:
    html = page(open_run(folder))
    assert "Intervals are at 97.5 %, corrected for 2 finalists" in html
    assert "+0.30 [+0.26, +0.34]" in html and "seed 1042" in html
    # Half of the limit on kl, the limit, twice of it.
    assert all(f"<td>{budget}</td>" in html for budget in ("10", "20 (this search)", "40"))


def test_pair_loss_gains_are_positive_where_the_loss_fell(folder: Path) -> None:
    verdict = json.loads((folder / "verdict.json").read_text())
    finalist = verdict["finalists"][0] | {"difference": 0.2, "interval": [0.1, 0.3]}
    finalist["fresh_seeds"] = [{"seed": 1042, "test": {"pair_loss": 0.5931}}]
    finalist |= {"configuration_difference": 0.15, "configuration_interval": [0.05, 0.25]}
    edit(folder / "verdict.json", metric="pair_loss", direction="minimize", finalists=[finalist])
    drawn = figures(open_run(folder))["finalists"]
    seeds = next(trace for trace in drawn.data if trace.name == "fresh seeds")
    assert seeds.x == (pytest.approx(math.log(2) - 0.5931),)
    assert drawn.layout.xaxis.title.text == "gain in pair_loss over the reference"
    html = page(open_run(folder))
    assert "+0.200 [+0.100, +0.300]" in html and "+0.150 [+0.050, +0.250]" in html
    assert "for the only finalist: nothing to correct for" in html


def test_answers_are_the_first_and_those_that_differ_most(folder: Path) -> None:
    early = [sample(row, 9.0, pairs=178) for row in range(20)]
    gains = {4: 0.5, 5: -1.0, 6: 0.0, 7: 2.0, 8: -0.5, 9: 1.0, 10: 0.25, 11: -0.25, 12: -2.0}
    late = [sample(row, gains.get(row, 0.0), "x" * 2000) for row in range(20)]
    write_answers(folder, [sample(row, 0.0) for row in range(20) if row != 1], [*early, *late])
    shown = answers(open_run(folder))
    assert shown.names == ["reference", "trial 0, the winner"]
    titles = [title for title, _ in shown.groups]
    assert titles == ["The first prompts", "Where trial 0 gains most", "Where trial 0 loses most"]
    prompts = [[one.prompt for one in group] for _, group in shown.groups]
    assert prompts[0] == [f"Question {row}?" for row in range(FIRST)]
    assert prompts[1] == [f"Question {row}?" for row in (7, 9, 4)[:MOST]]
    assert prompts[2] == [f"Question {row}?" for row in (12, 5, 8)[:MOST]]
    assert shown.groups[0][1][1].answers[0] is None  # the reference has none to that row
    html = page(open_run(folder))
    assert "no answer on the disk" in html and "score 2.00" in html
    assert "x" * LONGEST in html and "x" * (LONGEST + 1) not in html


def test_without_scores_or_reference_answers_the_first_prompts_are_shown(folder: Path) -> None:
    write_answers(folder, [], [sample(row, None) for row in range(20)])
    shown = answers(open_run(folder))
    assert [title for title, _ in shown.groups] == ["The first prompts"]
    assert "score" not in page(open_run(folder)).partition('id="answers"')[2].partition("data")[0]


def test_trials_are_compared_at_the_last_rung_that_enough_reached(folder: Path) -> None:
    at, trials = comparable(open_run(folder))
    assert (at, len(trials)) == (178, 5)
    # The study holds the list as JSON text; the figures show it as every table does.
    assert {trial.params["loss_type"] for trial in trials} == {"sigmoid", "sigmoid + sft"}
    assert [trial.value for trial in trials] == [0.62, 0.51, 0.12, 0.60, 0.55]
    # Optuna takes a trial for infeasible where it has no constraint and another one has some.
    assert [max(trial.constraints.values()) > 0 for trial in trials].count(True) == 1
    add_trials(folder, ENOUGH - 2)
    at, trials = comparable(open_run(folder))
    assert (at, len(trials)) == (1600, ENOUGH)
    assert not any(value > 0 for trial in trials for value in trial.constraints.values())
    importances = figures(open_run(folder))["importances"].data[0]
    assert sum(importances.x) == pytest.approx(1) and importances.y[-1] == "learning_rate"


def test_the_timeline_leaves_out_what_another_run_did(folder: Path) -> None:
    add_trials(folder, 1, user_attrs={"taken_from": "earlier, trial 3"})
    figure = timeline(open_run(folder))
    shown = {label for trace in figure.data for label in trace.y[1]}
    assert shown == {f"trial {number}" for number in range(6)}
    assert {device for trace in figure.data for device in trace.y[0]} == {"here cpu"}
    assert [trace.name for trace in figure.data[1:]] == ["complete", "asha", "infeasible", "failed"]
    assert all(0 <= start < 60 for trace in figure.data[1:] for start in trace.base)


def test_an_unfinished_trial_lasts_until_the_run_was_last_seen(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "live", state="searching")
    figure = timeline(open_run(folder))
    running = next(trace for trace in figure.data if trace.name == "running")
    assert list(running.y[1]) == ["trial 4"] and running.x[0] > 0


def test_the_page_keeps_optuna_to_itself(
    folder: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    add_trials(folder, ENOUGH)
    capsys.readouterr()
    before = optuna.logging.get_verbosity()
    page(open_run(folder))
    assert "".join(capsys.readouterr()) == "" and not recwarn.list
    assert optuna.logging.get_verbosity() == before


def test_a_damaged_file_is_one_sentence_and_no_page(folder: Path) -> None:
    (folder / "verdict.json").write_text("{")
    with pytest.raises(UserError, match=r"verdict\.json cannot be read"):
        write_report(open_run(folder))
    assert not (folder / "report.html").exists()


@pytest.fixture
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        arguments += ["--disable-background-networking", "--disable-component-update"]
        yield driver.chromium.launch(executable_path=CHROMIUM, args=arguments)


def opened(browser: Any, path: Path, width: int) -> tuple[Any, list[str], list[str]]:
    """Open a page without any network; also what it asked for, and what it complained of."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    # Were a planted text to run, it would leave its mark here.
    context.add_init_script("window.hits = 0; window.hit = () => { window.hits += 1; };")
    tab = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(path.as_uri())
    tab.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(e => e.querySelector('.main-svg'))"
    )
    return tab, asked, said


def plant(folder: Path) -> None:
    """Put markup wherever a model, a data set or a user puts words."""
    row = sample(3, 0.5, EVIL) | {"prompt": EVIL}
    write_answers(folder, [row], [row])
    journal = folder / "study.journal"
    words = journal.read_text()
    for planted in ("kl 63 ", "sft", '"device": "', '"device":"'):
        words = words.replace(planted, planted + EVIL)
    assert words.count(EVIL) > 10
    journal.write_text(words)
    edit(folder / "run.json", command=EVIL, model={"path": EVIL})
    verdict = json.loads((folder / "verdict.json").read_text())
    finalist = verdict["finalists"][1] | {"beats_reference": False, "broken": [EVIL]}
    edit(folder / "verdict.json", finalists=[verdict["finalists"][0], finalist])
    report = json.loads((folder / "data_report.json").read_text())
    splits = {EVIL: report["splits"]["train"]}
    edit(folder / "data_report.json", source={"path": EVIL}, splits=splits)
    with (folder / "spec.yaml").open("a") as spec:
        spec.write(f"# {EVIL}\n")


@needs_chromium
@pytest.mark.parametrize("width", [1440, 480])
def test_a_browser_shows_every_figure_and_runs_no_planted_text(
    folder: Path, browser: Any, width: int
) -> None:
    add_trials(folder, ENOUGH)
    plant(folder)
    path = write_report(open_run(folder))
    html = path.read_text()
    assert html.count(escape(EVIL)) > 8 and EVIL not in html
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html)
    assert len(data) == 9 and not any("<" in text for text in data)
    tab, asked, said = opened(browser, path, width)
    assert asked == [path.as_uri()] and said == []
    # Two scripts that run; the figures' data do not.
    scripts = tab.locator("script")
    assert scripts.count() == 2 + tab.locator("script[type='application/json']").count()
    assert tab.evaluate("hits") == 0
    assert tab.locator("img, [onerror], b:has-text('bold')").count() == 0
    assert tab.locator(".exchange", has_text=EVIL).count() == 1
    for title in SECTIONS:
        assert tab.get_by_role("heading", name=title, exact=True).is_visible()
        assert tab.locator("nav a", has_text=title).count() == 1
    names = tab.eval_on_selector_all(".plot", "all => all.map(e => e.dataset.figure)")
    expected = {"finalists", "front", "timeline", "parallel", "importances"} | CURVES
    assert {name.removeprefix("data-") for name in names} == expected
    for name in expected:
        drawn = tab.locator(f"#plot-{name} .main-svg .trace")
        assert drawn.count() >= (1 if name == "importances" else 2), name
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # The label that shows when a pointer rests on the winner holds its hyperparameters.
    tab.evaluate(
        "const all = document.getElementById('plot-front').data;"
        "const won = all.findIndex(trace => trace.name.startsWith('winner'));"
        "Plotly.Fx.hover('plot-front', [{curveNumber: won, pointNumber: 0}]);"
    )
    label = tab.locator("#plot-front .hovertext")
    assert "sigmoid + sft<b>bold</b></script>" in label.text_content()
    tab.mouse.wheel(0, 20_000)
    assert tab.evaluate("hits") == 0 and said == []
    if kept := os.environ.get("PREFTUNE_SCREENSHOTS"):
        tab.screenshot(path=f"{kept}/report-{width}.png", full_page=True)


@needs_chromium
def test_the_policy_stops_a_script_that_nobody_escaped(folder: Path, browser: Any) -> None:
    path = write_report(open_run(folder))
    path.write_text(path.read_text().replace("<main>", "<main><img src=x onerror=hit()>" + EVIL))
    tab, _, said = opened(browser, path, 1440)
    assert tab.evaluate("hits") == 0
    assert any("Content Security Policy" in text for text in said)


def preftune(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tune", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


@needs_chromium
def test_figures_are_written_as_png(folder: Path) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install 'preftune[png]'")
    done = preftune("report", "won", "--storage", str(folder.parent), "--png")
    assert done.returncode == 0, done.stderr
    written = [Path(line) for line in done.stdout.splitlines()]
    assert written[0] == folder.resolve() / "report.html"
    names = {path.stem for path in written[1:]}
    assert names == {"finalists", "front", "timeline", "parallel"} | CURVES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])


def test_without_a_browser_the_page_is_still_written(folder: Path) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install 'preftune[png]'")
    done = preftune("report", str(folder), "--png", BROWSER_PATH=str(folder / "no_such_browser"))
    assert done.returncode == 1 and (folder / "report.html").is_file()
    assert done.stderr.startswith("PNG figures need a Chromium or Chrome")
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_kaleido_one_sentence_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)  # what an import of it then raises
    with pytest.raises(UserError, match=r"pip install 'preftune\[png\]'"):
        write_figures(open_run(folder))
