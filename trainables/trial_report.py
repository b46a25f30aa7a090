"""What a trial tells its caller at a checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Report:
    """A trial's state at a checkpoint; at a rung, with its measures.

    Light to import: a driver holds no torch.

    Attributes:
        step: optimizer steps done.
        pairs: pairs seen in training.
        rung: index of the rung that this step reaches, or None between rungs.
        measures: at a rung, the measures of the design and `train_loss`, `seconds`,
            `peak_memory_mb`.
        deltas: at a rung, Δ of each pair of the held-out split, nats, float32 `(pairs,)`.
        samples: at a rung, the sampled answers, one dict each.
        checkpoint: a folder that holds until `report` returns; None for a trial that broke down.
        log: what was logged since the last report.
        diverged: the sentence that says how training broke down, or None.
        failed: the sentence that says why the trial could not run, or None.
        micro_batch: pairs in one forward pass.
        halved: memory ran out, so that is fewer than asked for.
    """

    step: int = 0
    pairs: int = 0
    rung: int | None = None
    measures: dict[str, float | None] = field(default_factory=dict)
    deltas: np.ndarray | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: Path | None = None
    log: str = ""
    diverged: str | None = None
    failed: str | None = None
    micro_batch: int = 0
    halved: bool = False
