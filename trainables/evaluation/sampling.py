"""Score answers, sample answers, and from both everything that section 5 of the design measures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

from trainables.evaluation.logprobs import Ids, autocasting, evaluating
from trainables.evaluation.metrics import repetition

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Sequences without gradients at a time. The same for every trial: random draws depend on it.
EVALUATION_BATCH = 128


class DivergedError(ArithmeticError):
    """The model's logits are not finite: there is nothing to sample from."""


@dataclass(frozen=True)
class Answer:
    """A sampled answer: token ids with EOS, text without special tokens, whether EOS came."""

    ids: Ids
    text: str
    ended: bool


def sample_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt_ids: Sequence[Ids],
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    autocast: torch.dtype | None = None,
) -> list[Answer]:
    """Sample one answer to each prompt: temperature 1, no top-k, no top-p.

    The same seed, prompts and batch size give the same random draws for every model, whatever the
    model's `generation_config` says, and the caller's random state and generation config are left
    as they were. A prompt that leaves fewer than `max_new_tokens` positions gets an answer of as
    many as fit, which may be none.

    Raises:
        DivergedError: The logits are NaN or infinite.
    """
    device = model.device
    # A LoRA adapter sits inside the base model's layers, so generating with that one generates with
    # the adapter on.
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    eos = _eos_ids(inner, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    answers: dict[int, Answer] = {}
    forked = [] if device.type == "cpu" else [device.index]
    with (
        evaluating(inner),
        _generation_config_of_its_own(inner),
        torch.random.fork_rng(forked, device_type=device.type if forked else "cuda"),
        torch.no_grad(),
        autocasting(device, autocast),
    ):
        for number, (room, batch) in enumerate(
            _batches(inner, prompt_ids, max_new_tokens, batch_size)
        ):
            if room <= 0:
                answers |= dict.fromkeys(batch, Answer([], "", False))
                continue
            # Seeded for each batch: how long one batch runs does not move the next one's draws.
            torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            width = max(len(prompt_ids[row]) for row in batch)
            ids = torch.full((len(batch), width), pad)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(batch):
                ids[i, width - len(prompt_ids[row]) :] = torch.tensor(prompt_ids[row])
                mask[i, width - len(prompt_ids[row]) :] = 1
            watch = _FiniteLogits()
            output = inner.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                logits_processor=LogitsProcessorList([watch]),
                generation_config=GenerationConfig(
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=room,
                    use_cache=True,
                    eos_token_id=eos,
                    pad_token_id=pad,
                ),
            )
            if watch.diverged is not None and bool(watch.diverged):
                raise DivergedError("The model's logits are not finite.")
            for row, generated in zip(batch, output[:, width:].tolist(), strict=True):
                answers[row] = _answer(generated, eos, tokenizer)
    return [answers[row] for row in range(len(prompt_ids))]


def distinct_prompts(prompt_ids: Sequence[Ids], count: int) -> list[int]:
    """Return the positions of the first `count` distinct prompts, or of all if there are fewer."""
    first: dict[tuple[int, ...], int] = {}
    for position, ids in enumerate(prompt_ids):
        if len(first) == count:
            break
        first.setdefault(tuple(ids), position)
    return list(first.values())


def last_user_turn(prompt: Sequence[Mapping[str, str]]) -> str:
    """Return what a judge sees of a conversation: the text of its last turn by the user."""
    turns = [turn["content"] for turn in prompt if turn["role"] == "user"]
    return turns[-1] if turns else prompt[-1]["content"]


def answer_lines(
    rows: Sequence[int],
    prompts: Sequence[str],
    answers: Sequence[Answer],
    scores: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """Return answers as the JSON lines that docs/run_folder.md describes."""
    return [
        {
            "row": rows[i],
            "prompt": prompts[i],
            "answer": answer.text,
            "tokens": len(answer.ids),
            "ended": answer.ended,
            "repetition": repetition(answer.ids),
            "score": scores[i] if scores else None,
        }
        for i, answer in enumerate(answers)
    ]


def _eos_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return what ends an answer: the tokenizer's EOS, which training teaches, and the model's."""
    own = model.generation_config.eos_token_id
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(eos for eos in ids if eos is not None))


@contextmanager
def _generation_config_of_its_own(model: "PreTrainedModel") -> Iterator[None]:
    """Hide the model's generation config: `generate` fills whatever a call leaves out from it.

    A repetition penalty that came with the model would make the samples another distribution than
    the log-probs.
    """
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _batches(
    model: "PreTrainedModel", prompt_ids: Sequence[Ids], max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (tokens to generate, rows): longest prompts first, the same number for each row."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    rooms = [
        max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids))
        for ids in prompt_ids
    ]
    rows = sorted(range(len(prompt_ids)), key=lambda row: (-len(prompt_ids[row]), row))
    while rows:
        room = rooms[rows[0]]
        batch = [row for row in rows[:batch_size] if rooms[row] == room]
        rows = rows[len(batch) :]
        yield room, batch


class _FiniteLogits:
    """Note on the device whether any logits were not finite.

    Sampling from NaN raises on a CPU but kills the CUDA context, so such rows are flattened before
    they get there.
    """

    def __init__(self) -> None:
        self.diverged: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = ~scores.logsumexp(dim=-1, keepdim=True).isfinite()
        self.diverged = bad.any() if self.diverged is None else self.diverged | bad.any()
        return torch.where(bad, torch.zeros_like(scores), scores)


def _answer(generated: Ids, eos: list[int], tokenizer: "PreTrainedTokenizerBase") -> Answer:
    end = next((i for i, token in enumerate(generated) if token in eos), None)
    ids = generated if end is None else generated[: end + 1]
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(ids, text.lstrip(), end is not None)
