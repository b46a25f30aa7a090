"""Sample a policy's answers to prompts, from the distribution that its log-probs describe."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from trainables.devices import autocast_dtype
from trainables.evaluation.batch_size import BatchSize
from trainables.evaluation.draws import TokenDraws
from trainables.evaluation.logprobs import Ids, autocasting, evaluating
from trainables.evaluation.metrics import repetition

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class DivergedError(ArithmeticError):
    """The model's logits are not finite: there is nothing to sample from."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer.

    Attributes:
        row: the number of its raw row, which its random draws belong to; no two have the same.
        ids: its tokens, with the generation prompt.
        question: the text of the last user turn, which is what a judge sees.
    """

    row: int
    ids: Ids
    question: str


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled: temperature 1, no top-k, no top-p.

    Attributes:
        max_new_tokens: the limit on an answer's tokens, EOS included.
        seed: of the random draws, together with a prompt's row and a token's position.
        precision: of the forward passes, as the spec names it.
        batch: prompts at a time.
    """

    max_new_tokens: int
    seed: int
    precision: str = "fp32"
    batch: BatchSize = field(default_factory=BatchSize)


@dataclass(frozen=True)
class Answer:
    """A sampled answer: token ids with EOS, text without special tokens, whether EOS came."""

    ids: Ids
    text: str
    ended: bool


def distinct_prompts(pairs: Any, count: int) -> list[Prompt]:
    """Return the first `count` distinct prompts, or all if there are fewer.

    Args:
        pairs: columns `row`, `prompt` (a conversation) and `prompt_ids`, as a Dataset or a mapping.
    """
    prompts: dict[tuple[int, ...], Prompt] = {}
    columns = (pairs["row"], pairs["prompt"], pairs["prompt_ids"])
    for row, conversation, ids in zip(*columns, strict=True):
        if len(prompts) == count:
            break
        if tuple(ids) not in prompts:
            prompts[tuple(ids)] = Prompt(int(row), list(ids), last_user_turn(conversation))
    return list(prompts.values())


def last_user_turn(conversation: Sequence[Mapping[str, str]]) -> str:
    """Return what a judge sees of a conversation: the text of its last turn by the user."""
    turns = [turn["content"] for turn in conversation if turn["role"] == "user"]
    return turns[-1] if turns else conversation[-1]["content"]


def sample_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> list[Answer]:
    """Sample one answer to each prompt.

    The random draws of a token depend on the seed, its prompt's row and its position alone: not on
    the model, the other prompts, the batch or the device. Where a batch does not fit on the device,
    it is halved. The model's `generation_config` has no say, and the caller's random state and
    generation config are left as they were. A prompt that leaves fewer than `max_new_tokens`
    positions gets an answer of as many as fit, which may be none.

    Raises:
        DivergedError: the logits are NaN or infinite.
        torch.OutOfMemoryError: one prompt at a time does not fit.
    """
    # A LoRA adapter sits inside the base model's layers, so generating with that one generates with
    # the adapter on.
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    eos = _eos_ids(inner, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    answers: dict[int, Answer] = {}
    with (
        evaluating(inner),
        _generation_config_of_its_own(inner),
        torch.no_grad(),
        autocasting(model.device, autocast_dtype(sampling.precision, model.device)),
    ):
        for room, group in _by_room(inner, prompts, sampling.max_new_tokens).items():
            if room <= 0:
                answers |= {prompt.row: Answer([], "", False) for prompt in group}
                continue
            # The most probable token: `TokenDraws` leaves only the one that it has drawn.
            config = GenerationConfig(
                do_sample=False,
                max_new_tokens=room,
                use_cache=True,
                eos_token_id=eos,
                pad_token_id=pad,
            )
            while group:
                first = partial(_first_answers, inner, tokenizer, group, config, sampling.seed)
                batch = sampling.batch.run(first)
                answers |= batch
                group = group[len(batch) :]
                log.info("sampled %d of %d answers", len(answers), len(prompts))
    return [answers[prompt.row] for prompt in prompts]


def _first_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    seed: int,
    size: int,
) -> dict[int, Answer]:
    """Return the answers to the first `size` prompts, by row."""
    prompts = prompts[:size]
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[i, width - len(prompt.ids) :] = 1
    draws = TokenDraws(seed, [prompt.row for prompt in prompts])
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        logits_processor=LogitsProcessorList([draws]),
        generation_config=config,
    )
    if draws.diverged is not None and bool(draws.diverged):
        raise DivergedError("The model's logits are not finite.")
    return {
        prompt.row: _answer(generated, config.eos_token_id, tokenizer)
        for prompt, generated in zip(prompts, output[:, width:].tolist(), strict=True)
    }


def _answer(generated: Ids, eos: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> Answer:
    end = next((i for i, token in enumerate(generated) if token in eos), None)
    ids = generated if end is None else generated[: end + 1]
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(ids, text.lstrip(), end is not None)


def _by_room(
    model: "PreTrainedModel", prompts: Sequence[Prompt], max_new_tokens: int
) -> dict[int, list[Prompt]]:
    """Return the prompts by how many tokens they leave to generate, the longest first in each."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    groups: dict[int, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.row)):
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt.ids))
        groups.setdefault(room, []).append(prompt)
    return groups


def _eos_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return what ends an answer: the tokenizer's EOS, which training teaches, and the model's."""
    own = model.generation_config.eos_token_id
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(eos for eos in ids if eos is not None))


def answer_lines(
    prompts: Sequence[Prompt], answers: Sequence[Answer], scores: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Return answers as the JSON lines that docs/run_folder.md describes."""
    return [
        {
            "row": prompt.row,
            "prompt": prompt.question,
            "answer": answer.text,
            "tokens": len(answer.ids),
            "ended": answer.ended,
            "repetition": repetition(answer.ids),
            "score": scores[i] if scores else None,
        }
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


@contextmanager
def _generation_config_of_its_own(model: "PreTrainedModel") -> Iterator[None]:
    """Hide the model's generation config: `generate` fills whatever a call leaves out from it.

    A repetition penalty that came with the model would make the samples another distribution than
    the log-probs.
    """
    hidden = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = hidden
