"""Measure a policy on one split: score pairs, sample answers, judge them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainables.evaluation.logprobs import Ids, LogProbs, evaluating, sequence_logps
from trainables.evaluation.metrics import (
    OF_JUDGE,
    OF_SAMPLES,
    deltas,
    pair_measures,
    sample_measures,
)
from trainables.evaluation.sampling import (
    DivergedError,
    answer_lines,
    distinct_prompts,
    last_user_turn,
    sample_answers,
)
from trainables.judges import Judge

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """Measures by name, the delta of each pair (nats, float32), the answers as JSON lines."""

    measures: dict[str, float | None]
    deltas: LogProbs
    samples: list[dict[str, Any]]


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "Dataset",
    ref_chosen: LogProbs,
    ref_rejected: LogProbs,
    reference_answers: Sequence[Mapping[str, Any]],
    score_reference: Callable[[list[Ids], list[Ids]], LogProbs],
    judge: Judge | None,
    *,
    prompts: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    autocast: torch.dtype | None = None,
) -> Evaluation:
    """Measure a policy on the pairs of a split and on answers that it samples.

    Args:
        score_reference: (prompt ids, answer ids) -> log-probs under the reference, nats, as
            `sequence_logps` returns: that function with the adapter off, or with a copy of the
            initial model.
        pairs: columns `row`, `prompt`, `prompt_ids`, `chosen_ids`, `rejected_ids`.
        ref_chosen, ref_rejected: the stored reference log-probs of the same rows, shape (pairs,).
        reference_answers: lines of the reference's answers to the first `prompts` distinct prompts
            at least.
        prompts: how many of the split's distinct prompts, from the first, get a sampled answer.

    Returns:
        Every measure of section 5 of the design; judge's ones are None without a judge. A model
        that diverged has NaN and no samples. Samples lack `pairs`, which only the caller knows.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    prompt_ids: list[Ids] = list(pairs["prompt_ids"])
    chosen_ids: list[Ids] = list(pairs["chosen_ids"])
    with evaluating(model):
        logps = sequence_logps(
            model,
            prompt_ids * 2,
            chosen_ids + list(pairs["rejected_ids"]),
            batch_size=batch_size,
            pad_token_id=pad,
            autocast=autocast,
        )
        chosen, rejected = np.split(logps, 2)
        delta = deltas(chosen, rejected, ref_chosen, ref_rejected)
        measures: dict[str, float | None] = {
            **pair_measures(delta, chosen - ref_chosen, [len(ids) for ids in chosen_ids])
        }

        positions = distinct_prompts(prompt_ids, prompts)
        asked_ids = [prompt_ids[position] for position in positions]
        try:
            if not np.isfinite(delta).all():
                raise DivergedError("The model's log-probs are not finite.")
            answers = sample_answers(
                model,
                tokenizer,
                asked_ids,
                max_new_tokens=max_new_tokens,
                seed=seed,
                batch_size=batch_size,
                autocast=autocast,
            )
        except DivergedError:
            of_judge = dict.fromkeys(OF_JUDGE, float("nan") if judge else None)
            of_samples = dict.fromkeys(OF_SAMPLES, float("nan"))
            lost = {**of_judge, **of_samples, **measures}
            return Evaluation(lost, delta.astype(np.float32), [])
        answer_ids = [answer.ids for answer in answers]
        own = sequence_logps(
            model, asked_ids, answer_ids, batch_size=batch_size, pad_token_id=pad, autocast=autocast
        )
    log_ratios = own - score_reference(asked_ids, answer_ids)

    all_rows, conversations = list(pairs["row"]), list(pairs["prompt"])
    rows = [int(all_rows[position]) for position in positions]
    asked = [last_user_turn(conversations[position]) for position in positions]
    reference = {line["row"]: line for line in reference_answers}
    compared = [reference[row] for row in rows]
    scores = judge(asked, [answer.text for answer in answers]) if judge else None
    sampled = sample_measures(
        answer_ids,
        [answer.ended for answer in answers],
        log_ratios,
        [line["tokens"] for line in compared],
        scores,
        [line["score"] for line in compared] if judge else None,
    )
    samples = answer_lines(rows, asked, answers, scores)
    for line, log_ratio in zip(samples, log_ratios, strict=True):
        line["log_ratio"] = float(log_ratio)
    return Evaluation({**sampled, **measures}, delta.astype(np.float32), samples)
