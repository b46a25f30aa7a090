"""Warnings about ties: a trial that the judge, or the pairs, cannot tell from the reference."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from results.doctor.finding import Finding, figure
from results.run import layout
from results.run.files import parse_once, read_lines
from results.run.run import Run
from results.run.schema_checks import Sample
from results.run.trial import Trial

# On 20 decided prompts a sign test at 5 % already wants 15 to 5. They are few because of ties, not
# because of few prompts, where at least half tie.
DECIDED, TIED = 20, 0.5


@dataclass(frozen=True)
class JudgedAnswers:
    """How the judged answers of a trial compare with the reference's to the same prompts.

    Attributes:
        prompts: on which both answers have a score.
        tied: prompts on which the scores are equal.
        same: prompts on which the answers are equal.
        scores: different scores that the judge gave.
    """

    prompts: int
    tied: int
    same: int
    scores: int


def tied_answers(run: Run, trial: Trial) -> Iterator[Finding]:
    """Warn where so many prompts tie that the win rate rests on a few."""
    if figure(trial.measures, "win_rate") is None or trial.measures.get("pairs") is None:
        return
    prepared = (run.info.get("prepared") or {}).get("answers")
    judged = _judged(
        run.trial_folder(trial.number) / layout.SAMPLES,
        run.storage / layout.PREPARED / str(prepared) / "validation.jsonl",
        trial.measures["pairs"],
    )
    decided = judged.prompts - judged.tied
    if not judged.prompts or decided >= DECIDED or judged.tied < TIED * judged.prompts:
        return
    if 2 * judged.same >= judged.tied:
        why = (
            f"{judged.same} answers are the reference's word for word, so it has hardly moved: "
            "raise learning_rate, or train on more pairs."
        )
    elif judged.scores <= 2:
        why = "A judge that gives two scores ties often by nature: raise evaluation.prompts."
    else:
        why = "Raise evaluation.prompts, or use a judge with a finer score."
    yield Finding(
        "tied answers",
        f"The judge scores its answer like the reference's on {judged.tied} of {judged.prompts} "
        f"prompts, so win_rate rests on the other {decided} and says little. {why}",
    )


def tied_pairs(run: Run, trial: Trial) -> Iterator[Finding]:
    """Warn where the trial orders most pairs exactly as the reference does."""
    path = run.trial_folder(trial.number) / layout.DELTAS
    same, total = _undecided(path, str(trial.measures.get("rung")))
    if not total or same < TIED * total:
        return
    yield Finding(
        "tied pairs",
        f"On {same} of {total} validation pairs it prefers neither answer more than the reference "
        f"does (delta is exactly 0), so accuracy rests on the other {total - same}. It has hardly "
        "moved: raise learning_rate, or train in fp32 if its updates are lost to rounding.",
    )


@parse_once(4096)
def _judged(samples: Path, answers: Path, pairs: int) -> JudgedAnswers:
    """Compare the answers behind a trial's last measures with the reference's, row by row."""
    reference = _reference_answers(answers)
    scored: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for own in read_lines(samples, Sample)[0]:
        before = reference.get(own.get("row")) or {}
        known = all(figure(line, "score") is not None for line in (own, before))
        if known and own.get("pairs") == pairs:
            scored.append((own, before))
    return JudgedAnswers(
        prompts=len(scored),
        tied=sum(own["score"] == before["score"] for own, before in scored),
        same=sum(own.get("answer") == before.get("answer") for own, before in scored),
        scores=len({answer["score"] for pair in scored for answer in pair}),
    )


@parse_once(2)
def _reference_answers(path: Path) -> dict[Any, dict[str, Any]]:
    """The reference's answers to the validation prompts by row; empty where they are gone."""
    return {line.get("row"): line for line in read_lines(path, Sample)[0]}


@parse_once(4096)
def _undecided(path: Path, rung: str) -> tuple[int, int]:
    """Pairs whose delta is exactly 0 at a rung, and all of its pairs."""
    import numpy as np  # a list of runs does without it

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            deltas = arrays[f"rung{rung}"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error):  # gone or damaged
        return 0, 0
    return int((deltas == 0).sum()), int(deltas.size)
