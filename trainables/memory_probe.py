"""The device memory that a trial of a configuration peaks at."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from search_spaces.spec import Spec
from trainables.budget import Plan, plan
from trainables.dpo import Call, captured_log, release_memory, train_once
from trainables.judges import Judge
from trainables.prepared import Prepared


def peak_of_a_step(
    spec: Spec, params: Mapping[str, Any], prepared: Prepared, judge: Judge | None
) -> int:
    """Return the device memory in bytes that a trial of this configuration peaks at.

    Two optimizer steps (the second with the optimizer's state in place) on the longest pairs there
    are, then a rung: sampled answers, scored by the reference beside the policy and by the judge.
    Where the micro-batch does not fit, a smaller one, as in the trial.

    Raises:
        torch.OutOfMemoryError: one pair does not fit on the device.
    """
    budget = plan(spec, params)
    probe = Plan(budget.micro_batch, budget.accumulation, 2, (2,))
    while True:
        release_memory()
        with (
            tempfile.TemporaryDirectory(prefix="preftune-probe-") as folder,
            captured_log() as text,
        ):
            seed = spec.search.seed
            call = Call(
                spec, params, prepared, lambda report: None, seed, judge, lambda: False, text
            )
            try:
                train_once(call, probe, Path(folder), None, longest_first=True)
                return int(torch.cuda.max_memory_allocated())
            except torch.OutOfMemoryError:
                smaller = probe.halved()
                if smaller is None:
                    raise
                probe = smaller
