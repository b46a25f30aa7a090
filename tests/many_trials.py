"""Many trials of a fake trainable through the real search code; prints what the driver holds.

    python tests/many_trials.py FOLDER TRIALS

The fake stands for training alone: it reports measures that follow from its learning rate, at
every rung, with a checkpoint of the real form. One JSON line at every fiftieth trial: trials ended,
memory of the driver (MB, its own pages), its open files, its child processes.
"""

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import ray.tune
from rich.console import Console

import tune.search
from search_spaces.spec import Spec, validate
from trainables.artifacts import seal
from trainables.prepared import Prepared, Split
from trainables.trial_report import Report
from tune.cluster.connection import connected, host
from tune.cluster.preemption import Preemption
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment
from tune.context import Context
from tune.prepare import Preparation
from tune.progress import Progress
from tune.record import create
from tune.study import Study

EVERY = 50


def fake_trial(config: dict[str, Any], spec: Spec, **others: Any) -> None:
    """Report a parabola over the logarithm of the learning rate, higher at every rung."""
    distance = math.log10(config["params"]["learning_rate"]) + 4
    for rung, pairs in enumerate(spec.rungs_pairs):
        win_rate = 0.5 + 0.1 * (rung + 1) - 0.1 * distance**2
        measures: dict[str, float | None] = {"win_rate": win_rate, "kl": 1.0 + distance**2}
        report = Report(
            step=pairs,
            pairs=pairs,
            rung=rung,
            measures=measures,
            deltas=np.zeros(64, np.float32),
            samples=[{"row": row, "answer": "x" * 100, "score": 1.0} for row in range(16)],
        )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "model.safetensors").write_bytes(os.urandom(1000))
            seal(Path(folder), step=pairs)
            told = {"pairs": pairs, "trial": config["number"], "device": "cpu", "node": host()}
            checkpoint = ray.tune.Checkpoint.from_directory(folder)
            ray.tune.report({**measures, **told, "report": report}, checkpoint=checkpoint)


class Watched(Progress):
    """Prints what the driver holds as the trials end."""

    printed = 0

    def refresh(self, now: bool = False) -> None:
        ended = sum(trial.state.is_finished() for trial in self.study.trials())
        if ended < self.printed + EVERY:
            return
        self.printed = ended
        driver = psutil.Process()
        held = {
            "trials": ended,
            "mb": round(driver.memory_full_info().uss / 1e6, 2),
            "files": driver.num_fds(),
            "children": len(driver.children(recursive=True)),
        }
        print(json.dumps(held), flush=True)  # noqa: T201


def main() -> None:
    """Search."""
    folder, trials = Path(sys.argv[1]), int(sys.argv[2])
    spec = validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {"learning_rate": {"loguniform": [1e-6, 1e-2]}},
            "budget": {"pairs": 900},
            "search": {"trials": trials, "sampler": "random"},
            "storage": str(folder),
        }
    )
    tune.search.run_trial = fake_trial
    record = create(spec, "many", True, "tests/many_trials.py")
    study = Study(spec, record.folder)
    nothing = Split(folder, folder, None)
    prepared = Preparation(Prepared(folder, folder, nothing, nothing), nothing)
    with connected(None, cpus=2) as cluster:
        share = Share(cpu=1, gpu=0, concurrent=2)
        context = Context(spec, record, study, prepared, Shipment(cluster.node), share)
        quiet = Console(file=open(os.devnull, "w"))  # noqa: SIM115  # open as long as the process
        progress = Watched(quiet, spec, record, study)
        preemption = Preemption(quiet.print)
        tune.search.search(context, progress, preemption)


if __name__ == "__main__":
    main()
