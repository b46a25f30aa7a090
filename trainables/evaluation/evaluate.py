"""Measure a policy on one split: score pairs, sample answers, judge them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.devices import autocast_dtype
from trainables.evaluation.logprobs import Ids, LogProbs, evaluating, sequence_logps
from trainables.evaluation.metrics import (
    OF_JUDGE,
    OF_SAMPLES,
    deltas,
    pair_measures,
    sample_measures,
)
from trainables.evaluation.sampling import (
    Answer,
    DivergedError,
    Prompt,
    Sampling,
    answer_lines,
    distinct_prompts,
    sample_answers,
)
from trainables.judges import Judge

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# (prompt ids, answer ids, sequences at a time) -> log-probs, nats, shape (answers,)
Scorer = Callable[[list[Ids], list[Ids], int], LogProbs]


@dataclass(frozen=True)
class HeldOut:
    """What a policy is measured on, and what the reference said there.

    Attributes:
        pairs: columns `row`, `prompt`, `prompt_ids`, `chosen_ids`, `rejected_ids`.
        ref_chosen, ref_rejected: the reference's log-probs of the same rows, shape (pairs,).
        reference_answers: lines of the reference's answers to the first `prompts` distinct prompts
            at least.
        prompts: how many of the distinct prompts, from the first, get a sampled answer.
    """

    pairs: "Dataset"
    ref_chosen: LogProbs
    ref_rejected: LogProbs
    reference_answers: Sequence[Mapping[str, Any]]
    prompts: int


@dataclass(frozen=True)
class Evaluation:
    """Measures by name, the delta of each pair (nats, float32), the answers as JSON lines."""

    measures: dict[str, float | None]
    deltas: LogProbs
    samples: list[dict[str, Any]]


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    held_out: HeldOut,
    sampling: Sampling,
    score_reference: Scorer,
    judge: Judge | None,
) -> Evaluation:
    """Measure a policy on the pairs of a split and on answers that it samples.

    Args:
        sampling: where its batch does not fit on the device, it is halved for all passes.
        score_reference: returns log-probs under the reference as `sequence_logps` does: that
            function with the adapter off, or with a copy of the initial model.

    Returns:
        Every measure of section 5 of the design; the judge's measures are None without a judge. A
        model that diverged has NaN and no samples. Samples lack `pairs`, which only the caller
        knows.

    Raises:
        torch.OutOfMemoryError: one sequence at a time does not fit on the device.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    autocast = autocast_dtype(sampling.precision, model.device)

    def score(prompts: list[Ids], answers: list[Ids], size: int) -> LogProbs:
        return sequence_logps(
            model, prompts, answers, batch_size=size, pad_token_id=pad, autocast=autocast
        )

    prompts = distinct_prompts(held_out.pairs, held_out.prompts)
    with evaluating(model):
        measures, delta = _measure_pairs(held_out, sampling, score)
        try:
            if not np.isfinite(delta).all():
                raise DivergedError("The model's log-probs are not finite.")
            answers = sample_answers(model, tokenizer, prompts, sampling)
        except DivergedError:
            of_judge = dict.fromkeys(OF_JUDGE, float("nan") if judge else None)
            of_samples = dict.fromkeys(OF_SAMPLES, float("nan"))
            return Evaluation({**of_judge, **of_samples, **measures}, delta, [])
        asked, answer_ids = [prompt.ids for prompt in prompts], [answer.ids for answer in answers]
        own = sampling.batch.run(lambda size: score(asked, answer_ids, size))
    ref = sampling.batch.run(lambda size: score_reference(asked, answer_ids, size))
    sampled, samples = _measure_answers(held_out, prompts, answers, own - ref, judge)
    return Evaluation({**sampled, **measures}, delta, samples)


def _measure_pairs(
    held_out: HeldOut, sampling: Sampling, score: Scorer
) -> tuple[dict[str, float], LogProbs]:
    prompts: list[Ids] = list(held_out.pairs["prompt_ids"])
    chosen_ids: list[Ids] = list(held_out.pairs["chosen_ids"])
    both = chosen_ids + list(held_out.pairs["rejected_ids"])
    logps = sampling.batch.run(lambda size: score(prompts * 2, both, size))
    chosen, rejected = np.split(logps, 2)
    delta = deltas(chosen, rejected, held_out.ref_chosen, held_out.ref_rejected)
    tokens = [len(ids) for ids in chosen_ids]
    measures = pair_measures(delta, chosen - held_out.ref_chosen, tokens)
    return measures, delta.astype(np.float32)


def _measure_answers(
    held_out: HeldOut,
    prompts: list[Prompt],
    answers: list[Answer],
    log_ratios: LogProbs,
    judge: Judge | None,
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    reference = {line["row"]: line for line in held_out.reference_answers}
    compared = [reference[prompt.row] for prompt in prompts]
    questions, texts = [p.question for p in prompts], [answer.text for answer in answers]
    scores = judge(questions, texts) if judge else None
    measures = sample_measures(
        [answer.ids for answer in answers],
        [answer.ended for answer in answers],
        log_ratios,
        [line["tokens"] for line in compared],
        scores,
        [line["score"] for line in compared] if judge else None,
    )
    samples = answer_lines(prompts, answers, scores)
    for line, log_ratio in zip(samples, log_ratios, strict=True):
        line["log_ratio"] = float(log_ratio)
    return measures, samples
