"""The reference's log-probs and answers as files; reading them needs no torch."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from trainables.artifacts import write_bytes
from trainables.prepared import Split


def save_logps(path: Path, chosen: NDArray[np.float32], rejected: NDArray[np.float32]) -> None:
    """Write arrays `chosen` and `rejected` as float32, atomically; NaN where there is none."""
    content = io.BytesIO()
    np.savez(content, chosen=np.float32(chosen), rejected=np.float32(rejected))
    write_bytes(path, content.getvalue())


def load_logps(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the stored log-probs of the chosen and the rejected answers, nats, shape (pairs,).

    A pair that no training of the search sees, and verification does not measure, has NaN.
    """
    with np.load(path) as arrays:
        return arrays["chosen"], arrays["rejected"]


def scored_rows(path: Path) -> np.ndarray:
    """Return the positions of the pairs that have log-probs, int64 `(scored,)`."""
    return np.flatnonzero(np.isfinite(load_logps(path)[0]))


def scored_prompts(split: Split) -> list[tuple[int, ...]]:
    """Return the token ids of the prompt of each pair that has log-probs."""
    prompts = pyarrow.parquet.read_table(split.pairs, columns=["prompt_ids"])["prompt_ids"]
    return [tuple(ids) for ids in prompts.take(scored_rows(split.logps)).to_pylist()]


def load_answers(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of answers."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
