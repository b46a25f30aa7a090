"""Five hundred trials leave nothing behind in the driver."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from searching import ROOT, environment

from results.run.listing import open_run


@pytest.mark.endurance
def test_five_hundred_trials_leak_nothing(tmp_path: Path) -> None:
    """Memory may grow by 100 KB a trial: each is a record in the journal and in Ray Tune."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "many_trials.py"), str(tmp_path), "500"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    family: dict[int, psutil.Process] = {}
    held = []
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            assert line.startswith("{"), line + process.stdout.read()
            held.append(json.loads(line))
            for child in psutil.Process(process.pid).children(recursive=True):
                family[child.pid] = child
    assert process.wait() == 0
    print(held)  # noqa: T201
    assert [one["trials"] for one in held][-1] >= 500
    early, late = held[1], held[-1]
    grown = (late["mb"] - early["mb"]) / (late["trials"] - early["trials"])
    assert grown <= 0.1
    assert late["files"] <= early["files"] + 5 and late["children"] <= early["children"] + 2
    psutil.wait_procs(list(family.values()), timeout=20)
    assert [p for p in family.values() if p.is_running() and p.status() != "zombie"] == []
    run = open_run(tmp_path / "many")
    states = {trial.state for trial in run.trials()}
    assert len(run.trials()) == 500 and states <= {"complete", "stopped"}
    # A checkpoint for each trial that could be a finalist, and no other.
    assert len(list(run.folder.rglob("model.safetensors"))) == 3
