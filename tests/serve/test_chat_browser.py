"""The page as its user meets it: a real process, a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from run_folder import write_run

from serve.launch import command
from trainables.quickstart.world import BASE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60_000  # milliseconds; the first answer waits for torch and two models
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    storage = tmp_path_factory.mktemp("runs")
    folder = write_run(storage, "won")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Started from an unrelated folder: the page finds its packages and its theme by itself.
    words = command("127.0.0.1", port, ["--storage", str(storage), "--run", str(folder)])
    log = (storage / "page.log").open("wb")
    page = subprocess.Popen(
        words, cwd=storage, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/_stcore/health", page)
        yield f"http://127.0.0.1:{port}"
    finally:
        page.terminate()
        page.wait(timeout=20)
        log.close()


def _wait_for(address: str, process: subprocess.Popen[Any]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the page's process ended"
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(address)
        yield page
        browser.close()
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []


def _keep(page: Page, name: str) -> None:
    """Keep a picture where a person asked for them: PREFTUNE_SCREENSHOTS names the folder."""
    if folder := os.environ.get("PREFTUNE_SCREENSHOTS"):
        page.wait_for_timeout(500)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def _shorten(page: Page) -> None:
    """Take the answer's length down by arrow keys, as the slider's user may."""
    knob = page.get_by_role("slider", name="max_new_tokens")
    knob.focus()
    knob.press("Home")
    expect(knob).to_have_value("8")


def test_both_answers_stream_and_the_history_clears(page: Page) -> None:
    box = page.get_by_placeholder("Write to the models")
    box.wait_for()
    answers = page.locator('[data-testid="stColumn"] [data-testid="stText"]')
    box.fill("What is the capital of France?")
    box.press("Enter")
    # Streaming: text is there while the page is still at it, and more of it later.
    expect(answers.nth(1)).not_to_be_empty()
    early = [len(answers.nth(side).inner_text()) for side in (0, 1)]
    clear = page.get_by_role("button", name="Clear the conversation")
    assert clear.is_disabled()
    expect(clear).to_be_enabled()
    late = [len(answers.nth(side).inner_text()) for side in (0, 1)]
    assert all(0 < first < last for first, last in zip(early, late, strict=True))
    assert answers.nth(0).inner_text() != answers.nth(1).inner_text()  # two models
    _keep(page, "answers")

    _shorten(page)
    temperature = page.get_by_role("slider", name="temperature")
    temperature.focus()
    temperature.press("Home")
    expect(temperature).to_have_value("0")
    box.fill("And again?")
    box.press("Enter")
    expect(answers).to_have_count(4)
    expect(answers.nth(3)).not_to_be_empty()
    expect(clear).to_be_enabled()
    clear.click()
    expect(answers).to_have_count(0)
    expect(page.get_by_text("What is the capital of France?")).to_have_count(0)


def test_markup_in_a_prompt_is_only_text(page: Page) -> None:
    box = page.get_by_placeholder("Write to the models")
    box.wait_for()
    _shorten(page)
    prompt = "<b id='mark'>b</b> ![x](http://127.0.0.2/y.png) <img src=x onerror=alert(1)>"
    box.fill(prompt)
    box.press("Enter")
    said = page.locator('[data-testid="stChatMessage"] [data-testid="stText"]')
    expect(said).to_have_text(prompt)
    assert page.locator("#mark").count() == 0
    assert page.locator('[data-testid="stMain"] img').count() == 0
    _keep(page, "markup")


def test_board_shows_verdict_leaderboard_and_figures(page: Page) -> None:
    page.get_by_role("link", name="Board").click()
    expect(page.get_by_text("Trial 0 beats the reference")).to_be_visible()
    expect(page.get_by_test_id("stDataFrame").first).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(2)
    expect(page.get_by_text("win_rate against kl")).to_be_visible()
    page.mouse.move(700, 500)
    page.mouse.wheel(0, 600)
    _keep(page, "board")


def test_a_repository_of_the_hub_answers(hub: Hub, tmp_path: Path) -> None:
    """`preftune chat REPO`, as its user types it."""
    hub.create("me/winner").commit_folder(BASE)
    process = subprocess.Popen(
        [sys.executable, "-m", "tune", "chat", "me/winner", "--port", "0"],
        env={**os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().partition("chat at ")[2].split()[0]
        _wait_for(f"{address.rstrip('/')}/_stcore/health", process)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            box = page.get_by_placeholder("Write to the model", exact=True)
            box.wait_for()
            temperature = page.get_by_role("slider", name="temperature")
            temperature.focus()
            temperature.press("Home")
            expect(temperature).to_have_value("0")
            box.fill("Hello! What is the capital of France? Thanks!")
            box.press("Enter")
            expect(page.get_by_text("Paris").first).to_be_visible()
            _keep(page, "from_the_hub")
            browser.close()
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()
