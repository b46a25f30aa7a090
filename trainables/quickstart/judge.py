"""The exact judge of the quickstart world: is an answer right, short and polite?

An answer scores 1 if it is one of the world's wanted answers to its prompt, read without regard
to case, spacing and single punctuation marks, and 0 otherwise. A list cannot be talked round: to
name two answers, go on after the right one, repeat it or write nothing are simply not on it.
"""

import re
from functools import cache

from trainables.quickstart.world import Topic, topics, wanted_answers


def plain(text: str) -> str:
    """Lower the case, drop one punctuation mark after each word, and single the spaces."""
    return " ".join(re.sub(r"(?<=\w)[.,;:!?](?!\S)", "", text.lower()).split())


@cache
def accepted(topic: Topic) -> frozenset[str]:
    return frozenset(plain(answer) for answer in wanted_answers(topic))


@cache
def phrases() -> dict[str, Topic]:
    return {f" {plain(t.phrase)} ": t for kind in topics().values() for t in kind}


def asked(prompt: str) -> Topic:
    """Find the one topic that a prompt asks for.

    Raises:
        ValueError: If the prompt names no topic of the world, or several.
    """
    text = f" {plain(prompt)} "
    named = [topic for phrase, topic in phrases().items() if phrase in text]
    if len(named) != 1:
        raise ValueError(
            f"The judge `quickstart` finds {len(named)} questions of its own world in the prompt "
            f"{prompt!r}; it needs exactly one. Use it with `dataset.path: quickstart`, or give "
            "`judge` a reward model or a .py file."
        )
    return named[0]


def judge(prompts: list[str], answers: list[str]) -> list[float]:
    """Score generated answers: 1.0 if right and in the wanted manner, else 0.0.

    Args:
        prompts: The text of the last user turn of each conversation.
        answers: The generated text that follows each, without special tokens.

    Raises:
        ValueError: If the lengths differ, or a prompt asks for nothing in this world.
    """
    pairs = zip(prompts, answers, strict=True)
    return [float(plain(answer) in accepted(asked(prompt))) for prompt, answer in pairs]
