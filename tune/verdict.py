"""The verdict of verification: its statistics and its decision, on numpy arrays alone."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from search_spaces.objective import Bound, Objective
from search_spaces.schema import SEEDS

CONFIDENCE = 0.95  # of the whole verdict: each of k finalists is tested at 1 - 0.05 / k
RESAMPLES = 10_000
FRESH = 1_000  # the first fresh seed less the search's


@dataclass(frozen=True)
class Measured:
    """One model on the test split.

    Attributes:
        measures: as at a rung.
        gains: what each prompt of the split says for the model against the reference, `(prompts,)`:
            win - 1/2, or where there is no judge, ln 2 - loss of its pairs, see `by_prompt`.
        scores: judge score minus the reference's on the same prompt, `(prompts,)`; empty without a
            judge.
    """

    measures: dict[str, float | None]
    gains: np.ndarray
    scores: np.ndarray


def fresh_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds that finalists are trained again with: never the search's own.

    Args:
        seed: the search's.
        count: how many.
    """
    return [(seed + FRESH + i) % SEEDS for i in range(count)]


def by_prompt(gains: np.ndarray, prompts: Sequence[Hashable]) -> np.ndarray:
    """Return gains of pairs, `(pairs,)`, as gains of their prompts, `(prompts,)`, of the same mean.

    Pairs that share a prompt are not independent: the bootstrap has to draw them together. A
    prompt's gain is the sum over its pairs, in units that make the mean over prompts the mean over
    pairs.
    """
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    sums = np.bincount([numbers[prompt] for prompt in prompts], weights=gains)
    return np.asarray(sums * len(numbers) / len(gains))


def resampled(gains: np.ndarray, seed: int) -> np.ndarray:
    """Return bootstrap means of `gains`, `(RESAMPLES,)`: units drawn with replacement.

    The draw depends on the seed and the number of units alone, so that two models are compared on
    the same resampled prompts (the paired bootstrap; Efron and Tibshirani 1993, chapter 8).
    """
    # Sums of halves are exact in float32: a bound of zero stays one, and is no win.
    gains = gains.astype(np.float32)
    sums = np.concatenate([counts @ gains for counts in _resamples(len(gains), seed)])
    return np.asarray(sums.astype(np.float64) / len(gains))


@lru_cache(maxsize=4)  # the same for every model of a verdict
def _small_resamples(units: int, seed: int) -> list[np.ndarray]:
    return list(_draw_resamples(units, seed))


def _resamples(units: int, seed: int) -> Iterable[np.ndarray]:
    # All of them at once would be gigabytes on a split of many pairs.
    small = units <= 1024
    return _small_resamples(units, seed) if small else _draw_resamples(units, seed)


def _draw_resamples(units: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each unit is in each resample, in blocks of float32 `(block, units)`."""
    generator = np.random.default_rng(seed)
    block = 500
    for _ in range(RESAMPLES // block):
        drawn = generator.integers(0, units, (block, units)) + units * np.arange(block)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=block * units)
        yield counts.reshape(block, units).astype(np.float32)


def bounds(draws: np.ndarray, confidence: float) -> list[float]:
    """Return the two-sided percentile interval of bootstrap draws."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return [float(low), float(high)]


def seed_variance(configurations: Iterable[Sequence[np.ndarray]]) -> tuple[float, int]:
    """Return the variance of a run's true mean gain over seeds, and its degrees of freedom.

    Args:
        configurations: for each, the gains of its runs, `(units,)` each, on the same units.

    The variance between the runs' means, pooled over configurations as in an analysis of variance:
    two or three runs of one alone say next to nothing about their spread. Less what the sampling of
    answers adds to it, which is known far better, from the units on which two runs differ, and
    which the resampling of prompts counts already.
    """
    between = within = 0.0
    freedom = 0
    for runs in configurations:
        gains = np.stack(runs)
        freedom += len(runs) - 1
        between += float(((gains.mean(axis=1) - gains.mean()) ** 2).sum())
        apart = gains - gains.mean(axis=0)  # what tells runs apart on the same unit
        within += float(apart.var(axis=1).sum()) / gains.shape[1]
    return (max(0.0, between - within) / freedom if freedom else 0.0), freedom


def configuration_draws(
    runs: Sequence[np.ndarray], variance: float, freedom: int, seed: Sequence[int]
) -> np.ndarray:
    """Return draws of the mean gain that a configuration has over seeds, `(RESAMPLES,)`.

    Args:
        runs: gains of each re-run, `(units,)` each, on the same units.
        variance, freedom: of a run's mean over seeds, from `seed_variance`.
        seed: of the prompts' resampling, then what tells this configuration's noise from others'.

    Prompts are resampled for all runs together; the seeds' share of the error is Student's t.
    """
    draws = resampled(np.stack(runs).mean(axis=0), seed[0])
    if not freedom:
        return draws
    noise = np.random.default_rng(list(seed)).standard_t(freedom, RESAMPLES)
    return np.asarray(draws + math.sqrt(variance / len(runs)) * noise)


def decide(
    objective: Objective,
    seed: int,
    fresh: Sequence[int],
    params: Mapping[int, Mapping[str, Any]],
    measured: Mapping[tuple[int, int | None], Measured],
) -> dict[str, Any]:
    """Return the verdict: which finalists beat the reference, beyond chance.

    A finalist does if two intervals lie above zero, each at 1 - 0.05 / finalists: its own
    checkpoint's, since that is what is published, and its configuration's over fresh seeds, since
    luck with one seed is no merit: the own one was chosen for it. And if the search's constraints
    hold there too, for the own checkpoint and for the mean over fresh seeds: without its limits an
    objective can be gamed.

    Args:
        objective: the search's.
        seed: of the bootstrap.
        fresh: the seeds that each finalist was trained again with.
        params: the finalists' configurations by trial.
        measured: each finalist's own checkpoint, `(trial, None)`, and its re-runs, `(trial, seed)`.
    """
    level = 1 - (1 - CONFIDENCE) / max(1, len(params))
    gains = {number: [measured[number, s].gains for s in (None, *fresh)] for number in params}
    finite = {n: runs for n, runs in gains.items() if all(np.isfinite(r).all() for r in runs)}
    variance, freedom = seed_variance(finite.values())
    # Of its seeds only one side of the interval is asked: whether a configuration is better, not
    # whether it is worse. A single finalist is held to both, since all that is known of the spread
    # of its seeds are three runs, the chosen one among them. docs/evidence.md has the error rates.
    one_sided = level if len(finite) < 2 else 2 * level - 1
    finalists, draws = [], {}
    for number, values in params.items():
        own = measured[number, None]
        entry: dict[str, Any] = {"number": number, "params": values, "beats_reference": False}
        if number in finite:
            runs = finite[number]
            draws[number] = configuration_draws(runs[1:], variance, freedom, (seed, number))
            entry |= gain(own.gains, seed, level)
            entry["configuration_difference"] = float(np.mean(runs[1:]))
            entry["configuration_interval"] = bounds(draws[number], one_sided)
            means = _means([measured[number, s].measures for s in fresh])
            entry["broken"] = broken_limits(objective.constraints, own.measures, "own")
            entry["broken"] += broken_limits(objective.constraints, means, "fresh_seeds")
            entry["beats_reference"] = (
                entry["interval"][0] > 0
                and entry["configuration_interval"][0] > 0
                and not entry["broken"]
            )
            if len(own.scores):
                of_scores = gain(own.scores, seed, level)
                entry |= {f"judge_score_{name}": value for name, value in of_scores.items()}
        entry["test"] = own.measures
        entry["fresh_seeds"] = [{"seed": s, "test": measured[number, s].measures} for s in fresh]
        finalists.append(entry)
    better = sorted(
        (entry for entry in finalists if entry["beats_reference"]),
        key=lambda entry: -entry["configuration_difference"],
    )
    # Two good finalists are told apart by the difference of their draws: same prompts, seed noise
    # of both.
    tied = [
        other["number"]
        for other in better[1:]
        if bounds(draws[better[0]["number"]] - draws[other["number"]], level)[0] <= 0
    ]
    first = better[0] if better else None
    return {
        "outcome": "none" if first is None else "tie" if tied else "winner",
        "passing": first is not None,
        "winner": first and first["number"],
        "params": first and first["params"],
        "tied": tied,
        "metric": objective.metric,
        "direction": objective.direction,
        "confidence": CONFIDENCE,
        "finalists": finalists,
    }


def unverified(objective: Objective, best: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the verdict of a search that ended before any trial reached the last rung.

    Args:
        objective: the search's.
        best: `number`, `pairs` and `value` of the best feasible trial, if any was measured.
    """
    return {
        "outcome": "unverified",
        "passing": False,
        "winner": None,
        "best": best,
        "metric": objective.metric,
        "direction": objective.direction,
        "confidence": CONFIDENCE,
        "finalists": [],
    }


def compare(objective: Objective, seed: int, model: Measured, winner: Measured) -> dict[str, Any]:
    """Return how a model does against the reference and against the search's winner.

    Two comparisons, so each interval is at 1 - 0.05 / 2, as in a verdict on two finalists.
    """
    level = 1 - (1 - CONFIDENCE) / 2
    reference = gain(model.gains, seed, level)
    against_winner = gain(model.gains - winner.gains, seed, level)
    low, high = against_winner["interval"]
    broken = broken_limits(objective.constraints, model.measures, "own")
    return {
        "outcome": "better" if low > 0 else "worse" if high < 0 else "same",
        "passing": reference["interval"][0] > 0 and not broken,
        "metric": objective.metric,
        "direction": objective.direction,
        "confidence": CONFIDENCE,
        "test": model.measures,
        "against_reference": reference,
        "against_winner": against_winner,
        "broken": broken,
    }


def gain(gains: np.ndarray, seed: int, level: float) -> dict[str, Any]:
    """Return the mean of paired differences and its bootstrap interval."""
    return {"difference": float(gains.mean()), "interval": bounds(resampled(gains, seed), level)}


def broken_limits(
    constraints: Mapping[str, Bound], measures: Mapping[str, float | None], of: str
) -> list[dict[str, Any]]:
    """Return the limits of the search that do not hold on the test split.

    Args:
        constraints: the limits by measure.
        measures: of the model; one that is missing breaks its limit.
        of: `own` or `fresh_seeds`, which measures these are.
    """
    return [
        {"name": name, "value": measures.get(name), "of": of}
        for name, bound in constraints.items()
        if bound.violation(measures.get(name)) > 0
    ]


def _means(runs: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each measure over runs; None where one of them does not have it."""
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for measures in runs for name in measures):
        values = [measures.get(name) for measures in runs]
        known = [value for value in values if value is not None]
        means[name] = float(np.mean(known)) if len(known) == len(values) else None
    return means
