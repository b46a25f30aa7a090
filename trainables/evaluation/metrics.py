"""The measures by which configurations are compared: none of them knows beta or the loss type.

All log-probs are sums over an answer's tokens, in nats. For a pair, `delta` is the log-ratio of the
chosen answer (policy minus reference) minus that of the rejected one. A NaN anywhere in the input
makes the measure NaN: a trial that diverged must not look better for the rows it lost.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

OF_JUDGE = ("win_rate", "win_rate_length_controlled", "judge_score")
OF_SAMPLES = ("kl", "length_ratio", "repetition", "ended")


def deltas(
    chosen: ArrayLike, rejected: ArrayLike, ref_chosen: ArrayLike, ref_rejected: ArrayLike
) -> Floats:
    """Return how much more than the reference the policy prefers each chosen answer.

    Args:
        chosen, rejected: log-probs under the policy, nats, shape (pairs,).
        ref_chosen, ref_rejected: the same under the reference.

    Returns:
        (log pi(w) - log pi_ref(w)) - (log pi(l) - log pi_ref(l)) of each pair, nats, shape
        (pairs,).
    """
    return (_floats(chosen) - _floats(ref_chosen)) - (_floats(rejected) - _floats(ref_rejected))


def pair_measures(
    delta: ArrayLike, chosen_log_ratio: ArrayLike, chosen_tokens: ArrayLike
) -> dict[str, float]:
    """Measure a policy on preference pairs.

    Args:
        delta: nats, shape (pairs,); see `deltas`.
        chosen_log_ratio: log pi(w) - log pi_ref(w), nats, shape (pairs,).
        chosen_tokens: tokens of the chosen answers, shape (pairs,).

    Returns:
        `pair_loss`, mean log(1 + exp(-delta)), which is the DPO loss at beta 1 (equation 7 of
        Rafailov et al. 2023, arXiv:2305.18290) and ln 2 without training; `accuracy`, mean 1[delta
        > 0] + 1/2 * 1[delta = 0]; `margin`, mean delta in nats; `chosen_drift`, mean chosen
        log-ratio per token.
    """
    delta = _floats(delta)
    return {
        "pair_loss": float(_softplus(-delta).mean()),
        "accuracy": float(wins(delta, 0.0).mean()),
        "margin": float(delta.mean()),
        "chosen_drift": float((_floats(chosen_log_ratio) / _floats(chosen_tokens)).mean()),
    }


def wins(scores: ArrayLike, reference_scores: ArrayLike) -> Floats:
    """Return 1 where the answer scores above the reference's, 1/2 where they tie, else 0."""
    # The sign keeps NaN.
    return (np.sign(_floats(scores) - _floats(reference_scores)) + 1) / 2


def length_controlled_win_rate(
    won: ArrayLike, tokens: ArrayLike, reference_tokens: ArrayLike
) -> float:
    """Estimate the win rate as it would be if both answers were equally long.

    Fits P(win) = sigmoid(a + b * tanh(d / std(d))), d being the difference in tokens, and returns
    sigmoid(a). This is the length-controlled AlpacaEval of Dubois et al. 2024 (arXiv:2404.04475)
    without its term for the difficulty of an instruction, which needs many models' answers. A unit
    ridge on b keeps the fit finite where length alone decides. Where there is nothing to control
    (one outcome only, or one difference in length only) it is the plain win rate.

    Args:
        won: 0, 1/2 or 1 for each prompt, shape (prompts,); see `wins`.
        tokens, reference_tokens: lengths of the two answers, shape (prompts,).
    """
    won = _floats(won)
    difference = _floats(tokens) - _floats(reference_tokens)
    spread = difference.std()
    if np.isnan(won).any() or np.ptp(won) == 0 or spread == 0:
        return float(won.mean())
    length = np.tanh(difference / spread)
    features = np.stack([np.ones_like(length), length], axis=1)
    ridge = np.diag([0.0, 1.0])
    weights = np.zeros(2)
    for _ in range(100):
        predicted = _sigmoid(features @ weights)
        gradient = features.T @ (predicted - won) + ridge @ weights
        curvature = (features.T * (predicted * (1 - predicted))) @ features + ridge
        step = np.linalg.solve(curvature, gradient)
        # A full Newton step can overshoot where the sigmoid is flat.
        weights -= step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return float(_sigmoid(weights)[0])


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Return 1 - distinct n-grams / n-grams of an answer; 0 if it has fewer than n tokens."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def sample_measures(
    ids: Sequence[Sequence[int]],
    ended: Sequence[bool],
    log_ratios: ArrayLike,
    reference_tokens: ArrayLike,
    scores: ArrayLike | None = None,
    reference_scores: ArrayLike | None = None,
) -> dict[str, float | None]:
    """Measure what a policy writes.

    Args:
        ids: the sampled answers as token ids, EOS included; one for each prompt.
        ended: whether each answer ends with EOS.
        log_ratios: log pi(y) - log pi_ref(y) of each answer, nats, shape (prompts,).
        reference_tokens: lengths of the reference's answers to the same prompts, shape (prompts,).
        scores, reference_scores: the judge's scores, shape (prompts,); None without a judge.

    Returns:
        `win_rate`, `win_rate_length_controlled`, `judge_score` (None without a judge); `kl`, the
        mean log-ratio, an unbiased estimate of KL(pi || pi_ref) in nats per answer; `length_ratio`,
        mean tokens over the reference's mean tokens; `repetition`, the mean share of repeated
        4-grams; `ended`, the share that ends with EOS.
    """
    tokens = np.array([len(answer) for answer in ids], dtype=np.float64)
    measures: dict[str, float | None] = dict.fromkeys(OF_JUDGE)
    if scores is not None and reference_scores is not None:
        won = wins(scores, reference_scores)
        measures["win_rate"] = float(won.mean())
        measures["win_rate_length_controlled"] = length_controlled_win_rate(
            won, tokens, reference_tokens
        )
        measures["judge_score"] = float(_floats(scores).mean())
    return measures | {
        "kl": float(_floats(log_ratios).mean()),
        "length_ratio": float(tokens.mean() / _floats(reference_tokens).mean()),
        "repetition": float(np.mean([repetition(answer) for answer in ids])),
        "ended": float(np.mean(ended)),
    }


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _softplus(x: Floats) -> Floats:
    """Return log(1 + exp(x)) without overflow, and without logaddexp's warning at NaN."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-_softplus(-x))


def reference_measures(lines: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the reference's row of the leaderboard, from its answers and by definition."""
    lines = list(lines)
    scores = [line["score"] for line in lines if line["score"] is not None]
    return {
        "win_rate": 0.5 if scores else None,
        "judge_score": float(np.mean(scores)) if scores else None,
        "kl": 0.0,
        "pair_loss": math.log(2),
        "accuracy": 0.5,
        "margin": 0.0,
        "chosen_drift": 0.0,
        "length_ratio": 1.0,
        "repetition": float(np.mean([line["repetition"] for line in lines])),
        "ended": float(np.mean([line["ended"] for line in lines])),
    }
