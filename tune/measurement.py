"""A model's measurement on the test split: made from a report, kept as a file in `verify/`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.errors import UserError
from trainables.artifacts import write_json
from trainables.evaluation.metrics import wins
from trainables.prepared import Split
from trainables.reference_files import scored_prompts
from trainables.trial_report import Report
from tune.record import read_lines
from tune.verdict import Measured, by_prompt


@dataclass(frozen=True)
class Baseline:
    """What models are compared with on the test split.

    Attributes:
        answers: the reference's own sampled answers, judged, by row.
        prompts: token ids of the prompt of each pair that is measured.
    """

    answers: Mapping[int, Mapping[str, Any]]
    prompts: list[tuple[int, ...]]


def baseline(split: Split) -> Baseline:
    """Read what models are compared with on a held-out split."""
    assert split.answers is not None
    answers = {line["row"]: line for line in read_lines(split.answers)}
    return Baseline(answers, scored_prompts(split))


def measured(report: Report, metric: str, reference: Baseline) -> Measured:
    """Return what a model's report says against the reference; NaN for a model that diverged."""
    # Samples are missing where the model's logits were not finite.
    if report.diverged or report.deltas is None or not report.samples:
        nothing = np.array([math.nan])
        return Measured({}, nothing, nothing)
    judged = [sample for sample in report.samples if sample["score"] is not None]
    own = np.array([sample["score"] for sample in judged], dtype=float)
    theirs = np.array([reference.answers[sample["row"]]["score"] for sample in judged], dtype=float)
    if metric == "win_rate":
        gains = wins(own, theirs) - 0.5
    else:
        pair_gains = math.log(2) - np.logaddexp(0, -report.deltas.astype(np.float64))
        gains = by_prompt(pair_gains, reference.prompts)
    return Measured(report.measures, gains, own - theirs)


def save(folder: Path, number: int, seed: int | None, measurement: Measured) -> None:
    """Write a measurement.

    Args:
        folder: the run's `verify/`.
        number: of the trial.
        seed: that it was trained again with; None for its own checkpoint.
        measurement: what was measured.
    """
    content = {
        "measures": measurement.measures,
        "gains": measurement.gains.tolist(),
        "scores": measurement.scores.tolist(),
    }
    write_json(_path(folder, number, seed), content)


def load(folder: Path, number: int, seed: int | None) -> Measured | None:
    """Read a measurement; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = _path(folder, number, seed)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        gains, scores = (np.array(content[name], dtype=float) for name in ("gains", "scores"))
        return Measured(dict(content["measures"]), gains, scores)  # null is NaN
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged: restore it from a copy, or remove it and `preftune resume` "
            "measures that model again"
        ) from error


def _path(folder: Path, number: int, seed: int | None) -> Path:
    return folder / f"{number}-{'own' if seed is None else seed}.json"
