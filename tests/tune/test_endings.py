"""Searches that are asked to end, or whose Ray dies, at random moments.

The moments come from a seed, printed with every failure; PREFTUNE_CHAOS_SEED repeats them.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from faulty import settings, trained
from searching import (
    HANG,
    drives,
    end_with_family,
    left_running,
    lines,
    preftune,
    start,
    story,
    wait_for,
)

from results.run.listing import open_run
from results.run.run import Run
from tune.record import Record

pytestmark = pytest.mark.chaos


def descendants(process: "subprocess.Popen[str]", word: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if word in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it is just ending
            continue
    return found


def test_ray_that_dies_leaves_a_sentence_and_a_run_that_goes_on(
    undisturbed_search: tuple[Path, Run, int],
    chance: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The raylet, then the GCS, which its clients give up after a while."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "20")  # instead of 60
    place, undisturbed, _ = undisturbed_search
    decisions = place / "runs" / "rayless" / "decisions.jsonl"
    words: tuple[str, ...] = ("run", "spec.yaml", "--name", "rayless")
    for daemon in ("raylet/raylet", "gcs/gcs_server"):
        known = len(lines(decisions))
        process = start(place, *words)
        wait_for(lambda known=known: len(lines(decisions)) > known, process)
        time.sleep(chance.uniform(0, 3))
        family = psutil.Process(process.pid).children(recursive=True)
        (victim,) = descendants(process, daemon)
        victim.kill()
        printed = process.communicate(timeout=HANG)[0]
        assert process.returncode not in (0, None)
        assert "preftune resume rayless" in printed and "Traceback" not in printed, printed
        assert left_running(family, 90) == []
        words = ("resume", "rayless")
    preftune(place, *words)
    assert story(open_run(place / "runs" / "rayless")) == story(undisturbed)


def test_signals_at_random_moments_end_in_the_resume_line(
    undisturbed_search: tuple[Path, Run, int], chance: random.Random
) -> None:
    """A cluster's notice, Ctrl-C, a terminal that goes away."""
    place, undisturbed, _ = undisturbed_search
    folder = place / "runs" / "signalled"
    words: tuple[str, ...] = ("run", "spec.yaml", "--name", "signalled")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process = start(place, *words)
        wait_for(lambda process=process: drives(process, folder), process)
        time.sleep(chance.uniform(0.5, 15))
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        printed = process.communicate(timeout=HANG)[0]
        assert process.returncode == 130, printed
        ending = "Interrupted. Resume with: preftune resume signalled"
        assert printed.count(ending) == 1, printed
        assert "Traceback" not in printed, printed
        assert open_run(folder).state == "interrupted"
        assert left_running(family, 20) == []
        words = ("resume", "signalled")
    preftune(place, *words)
    assert story(open_run(folder)) == story(undisturbed)


def test_notice_is_time_to_save(undisturbed_search: tuple[Path, Run, int]) -> None:
    """Between two of the checkpoints that are written anyway, a hundred steps apart."""
    place, *_ = undisturbed_search
    long = (
        "budget.pairs=8000",
        "search.rungs=[8000]",
        "space.per_device_train_batch_size={choice: [8]}",
    )
    values = (
        *long,
        "search.trials=1",
        "search.scheduler=none",
        "space.learning_rate={choice: [1.0e-4]}",
    )
    folder = place / "runs" / "noticed"

    def step() -> int:
        trials = open_run(folder).trials() if (folder / "study.journal").exists() else []
        kept = trials[0].attrs.get("checkpoint") if trials else None
        return json.loads((folder / kept / "meta.json").read_text())["step"] if kept else 0

    process = start(place, "run", "spec.yaml", "--name", "noticed", *settings(*values))
    wait_for(lambda: step() >= 100, process)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=HANG)[0]
    assert process.returncode == 130, printed
    assert "running trials (1) save a checkpoint first" in printed
    saved = step()
    assert saved > 100 and saved % 100

    process = start(place, "resume", "noticed")
    log = folder / "trials" / "0" / "log.txt"
    before = log.stat().st_size
    wait_for(lambda: log.stat().st_size > before, process)
    end_with_family(process)
    steps = [int(found) for found in re.findall(r"step (\d+) of 1000", log.read_text()[before:])]
    assert steps and saved < steps[0] <= saved + 20, (saved, steps)


def test_notice_is_time_to_save_a_finalist_trained_again(
    undisturbed_search: tuple[Path, Run, int],
) -> None:
    """Verification's trainings, 54 or 27 steps each, go on from where they were."""
    place, undisturbed, _ = undisturbed_search
    folder = place / "runs" / "proven"
    shutil.copytree(undisturbed.folder, folder, ignore=shutil.ignore_patterns("verify", "*.lock"))
    (folder / "verdict.json").unlink()
    Record(folder).update(state="interrupted")
    (place / "faults.json").write_text(
        json.dumps({"None": {"kind": "slow", "place": "step", "step": 0, "once": False}})
    )
    trained(place)

    def saved() -> dict[str, int]:
        return {
            path.parent.parent.name: json.loads(path.read_text())["step"]
            for path in folder.glob("verify/*.checkpoint/*/meta.json")
        }

    process = start(place, "resume", "proven")
    pairs = place / "pairs.log"
    wait_for(lambda: pairs.exists() and len(pairs.read_text().splitlines()) > 8, process)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=HANG)[0]
    (place / "faults.json").write_text("{}")
    assert process.returncode == 130 and "Traceback" not in printed, printed
    assert "save a checkpoint first" in printed and "preftune resume proven" in printed
    assert len(saved()) == 1, printed  # as many at once as `search.concurrent`
    assert all(step > 0 for step in saved().values())
    kept = sum(int(path.parent.name) for path in folder.glob("verify/*.checkpoint/*/meta.json"))

    trained(place)
    preftune(place, "resume", "proven")
    assert story(open_run(folder)) == story(undisturbed)
    verdict = undisturbed.verdict()
    assert verdict is not None
    assert trained(place)["None"] == 216 * len(verdict["finalists"]) - kept  # a seed each
    assert not list(folder.glob("verify/*.checkpoint"))
