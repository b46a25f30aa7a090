"""Trials whose processes break in eight ways, all in one search."""

from pathlib import Path

import psutil
import pytest
from faulty import laid_out, seeded, settings, trained
from searching import preftune

from results.run.listing import open_run


@pytest.mark.searches
def test_processes_of_trials_that_break_cost_the_others_nothing(tmp_path: Path) -> None:
    """Nine trials, eight faults at random steps of training, two workers."""
    kinds = {
        "SIGKILL": True,  # the kernel, where memory runs out
        "SIGSEGV": True,  # a library
        "SIGTERM": True,
        "SIGSTOP": False,  # it hangs
        "exit": False,  # it dies each time
        "memory": False,  # a device too small for the micro-batch
        "nan": False,
        "raise": False,
    }
    chance = seeded()
    steps = {kind: chance.randrange(2, 24) for kind in kinds}
    print(f"steps: {steps}")  # noqa: T201
    faults = {
        f"trial_{number:04d}": {"kind": kind, "once": once, "place": "step", "step": steps[kind]}
        for number, (kind, once) in enumerate(kinds.items())
    }
    place = laid_out(tmp_path, **faults)
    more = settings(
        "search.trials=9",
        "search.concurrent=2",
        "search.scheduler=none",
        "search.stuck_minutes=0.75",
        "space.per_device_train_batch_size={choice: [8]}",
    )
    preftune(place, "run", "spec.yaml", "--name", "faults", *more)
    run = open_run(place / "runs" / "faults")
    ended = dict(zip([*kinds, "none"], run.trials(), strict=True))
    states = {kind: trial.state for kind, trial in ended.items()}
    assert states == {
        **dict.fromkeys(["SIGKILL", "SIGSEGV", "SIGTERM", "memory", "none"], "complete"),
        **dict.fromkeys(["SIGSTOP", "exit", "raise"], "failed"),
        "nan": "infeasible",
    }
    causes = {
        "SIGSTOP": "no report for 0.75 minutes (search.stuck_minutes)",
        "exit": "its process died 3 times",
        "raise": "ArithmeticError: the training step broke",
        "nan": "the training loss is nan at step",
    }
    for kind, cause in causes.items():
        assert cause in str(ended[kind].cause)
        assert cause.split()[0] in preftune(place, "show", "--trial", str(ended[kind].number))
    for kind in ("SIGKILL", "SIGSEGV", "SIGTERM"):
        assert ended[kind].attrs["restarts"] == 1
    assert ended["memory"].attrs["micro_batch"] == 2
    hung = int((place / "trial_0003.SIGSTOP").read_text().split()[0])
    assert not psutil.pid_exists(hung)
    # A process that died costs what came after its last checkpoint: a tenth of the budget at most.
    pairs = trained(place)
    for number, kind in enumerate(kinds):
        if kind.startswith("SIG") and kind != "SIGSTOP":
            assert 216 < pairs[f"trial_{number:04d}"] <= 216 + 216 / 10 + 16
    assert pairs["trial_0008"] == 216
    assert (run.verdict() or {})["finalists"]
    # Workers are reused: one has trained several trials, and has executed the judge's file once.
    executed = (place / "executed.log").read_text().split()
    assert len(executed) == len(set(executed))
