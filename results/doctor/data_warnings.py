"""Warnings about the data of a search, each from a function of its own."""

import math
from collections.abc import Callable, Iterator

from results.doctor.finding import (
    LENGTH_RULE,
    Finding,
    figure,
    length_rule,
    longer_is_chosen,
    percent,
    prompts_of,
    splits_of,
)
from results.formatting import compact, number, plain
from results.run.run import Run

# A tenth of the pairs without the end of an answer, its EOS included.
TRUNCATED = 0.1
# A leaked share of the prompts can raise an accuracy by that share at most.
SHARED = 0.01
# On 100 prompts one standard error of a share is up to 0.5 / sqrt(100) = 0.05.
PROMPTS = 100


def _truncated(run: Run) -> Iterator[Finding]:
    splits = {name: figure(split, "truncated") for name, split in splits_of(run).items()}
    many = {name: share for name, share in splits.items() if share and share > TRUNCATED}
    if not many:
        return
    shares = ", ".join(f"{percent(share)} of {plain(name)}" for name, share in many.items())
    train = splits_of(run).get("train") or {}
    prompt, answer = (
        figure(train.get(name) or {}, "p95") for name in ("prompt_tokens", "answer_tokens")
    )
    long = ""
    if prompt is not None and answer is not None:
        long = f": 95 % of prompts have up to {prompt:.0f} tokens, of answers up to {answer:.0f}"
    length = compact((run.data_report() or {}).get("max_length", "?"))
    yield Finding(
        "truncated answers",
        f"In many pairs an answer is cut at max_length {length} ({shares}): its end is not "
        "compared, and the model sees no EOS to learn to stop from. Raise training.max_length"
        f"{long}.",
    )


def _length_bias(run: Run) -> Iterator[Finding]:
    longer = longer_is_chosen(run, "train")
    if longer is None:
        return
    word, right = length_rule(longer)
    if right < LENGTH_RULE:
        return
    yield Finding(
        "length bias",
        f"In {percent(right)} of the training pairs the {word} answer is the chosen one, so a "
        f"model can lower its loss by writing {word} answers. Watch length_ratio and "
        f"win_rate_length_controlled; an accuracy below {percent(right)} is no more than length "
        "alone would reach.",
    )


def _no_template(run: Run) -> Iterator[Finding]:
    template = (run.data_report() or {}).get("chat_template") or {}
    if template.get("origin") != "preftune":
        return
    sft = "" if run.spec.get("sft") else " Ask for an SFT pass (sft:) if it answers badly."
    yield Finding(
        "no chat template",
        "The model's tokenizer has no chat template, so preftune's plain one (User:, Assistant:) "
        "was used throughout and is saved with each model. Such a model has often never seen a "
        f"conversation, and neither has the reference that it is measured against.{sft}",
    )


def _few_prompts(run: Run) -> Iterator[Finding]:
    prompts = prompts_of(run)
    if not prompts or prompts >= PROMPTS or not run.spec.get("judge"):
        return
    error = number(0.5 / math.sqrt(prompts))
    yield Finding(
        "few prompts",
        f"The answers of a trial are measured on {prompts:.0f} prompts, where one standard error "
        f"of a win rate is up to {error}: differences of that size mean nothing. Raise "
        "evaluation.prompts or dataset.validation_pairs.",
    )


def _shared_prompts(run: Run) -> Iterator[Finding]:
    counts, much = [], False
    for name, split in splits_of(run).items():
        dropped, raw = split.get("dropped") or {}, figure(split, "raw")
        shared = sum(figure(dropped, f"also_in_{other}") or 0 for other in ("train", "validation"))
        if shared and raw:
            counts.append(f"{shared:,.0f} of {raw:,.0f} {plain(name)} pairs")
            much = much or shared >= SHARED * raw
    if not much:
        return
    yield Finding(
        "shared prompts",
        f"{', '.join(counts)} were dropped because their prompt is also in an earlier split. "
        "Kept, they would have made a model look better for what it learnt by heart. The measures "
        "here are safe; split these data by prompt wherever else you use them.",
    )


# Most serious first.
CHECKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    _truncated,
    _length_bias,
    _no_template,
    _few_prompts,
    _shared_prompts,
)


def data_warnings(run: Run) -> list[Finding]:
    """Return the warnings about the data and the number of prompts, most serious first."""
    return [finding for check in CHECKS for finding in check(run)]
