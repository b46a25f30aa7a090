"""A small world of questions with known right answers and a known manner of giving them.

A prompt is an opening, a question and a closing. A wanted answer is right, short and polite; an
unwanted one misses in one of six ways and otherwise looks like a wanted one, as the losing answer
of a real pair does.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The folder of the base model that ships with the world; `build.py` made it."""

Row = dict[str, list[dict[str, str]]]

CAPITALS = {
    "Austria": "Vienna",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Egypt": "Cairo",
    "England": "London",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Spain": "Madrid",
}
OPPOSITES = {
    "big": "small",
    "day": "night",
    "early": "late",
    "fast": "slow",
    "full": "empty",
    "hot": "cold",
    "loud": "quiet",
    "new": "old",
    "open": "closed",
    "rich": "poor",
}
PLURALS = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "tooth": "teeth",
    "wolf": "wolves",
}
YOUNG = {
    "bear": "cub",
    "cat": "kitten",
    "cow": "calf",
    "dog": "puppy",
    "duck": "duckling",
    "horse": "foal",
    "sheep": "lamb",
    "swan": "cygnet",
}
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

OPENINGS = (
    "",
    "Hello! ",
    "Hi there. ",
    "Good morning. ",
    "Excuse me. ",
    "Quick question. ",
    "One more thing. ",
    "I have a question. ",
)
QUESTIONS = (
    "What is {}?",
    "Tell me {}.",
    "Do you know {}?",
    "I need {}.",
    "Can you give me {}?",
    "I am looking for {}.",
)
CLOSINGS = (
    "",
    " Thanks!",
    " I forgot.",
    " My friend asked.",
    " It is for school.",
    " Thank you in advance.",
)

POLITE_OPENINGS = ("", "Sure,", "Of course,", "Gladly,", "Certainly,", "With pleasure,")
STATEMENTS = ("{answer}.", "it is {answer}.", "the answer is {answer}.", "{phrase} is {answer}.")
POLITE_CLOSINGS = ("", "Happy to help.", "You are welcome.", "Thank you for asking.")

RUDE_OPENINGS = ("Obviously,", "Come on,", "Ugh,")
RUDE_CLOSINGS = ("Everyone knows that.", "Look it up next time.", "What a silly question.")
RAMBLINGS = (
    "I could talk about this for a very long time.",
    "That reminds me of something my uncle once said.",
    "There is so much more to say about it.",
    "By the way, the weather was lovely yesterday.",
)
EVASIONS = (
    "that is hard to say.",
    "it depends on who you ask.",
    "I would have to look that up.",
    "I do not know the answer.",
)
FLAWS = ("wrong", "torn", "curt", "rude", "rambling", "evasive")


@dataclass(frozen=True)
class Topic:
    """One thing that can be asked: what names it, its one right answer, and a common mistake."""

    phrase: str
    answer: str
    mistake: str


def mistaken(table: dict[str, str]) -> list[str]:
    """For each answer of a table, the next one: what someone who mixes things up would say."""
    answers = list(dict.fromkeys(table.values()))
    return [answers[(answers.index(answer) + 1) % len(answers)] for answer in table.values()]


@cache
def topics() -> dict[str, tuple[Topic, ...]]:
    """All topics, by kind."""
    following = {day: WEEK[(i + 1) % 7] for i, day in enumerate(WEEK)}
    sums = {f"{a} and {b}": str(a + b) for a in range(1, 10) for b in range(1, 10)}
    facts = {
        "capital": ("the capital of {}", CAPITALS),
        "sum": ("the sum of {}", sums),
        "opposite": ("the opposite of {}", OPPOSITES),
        "plural": ("the plural of {}", PLURALS),
        "young": ("the name of a young {}", YOUNG),
        "day": ("the day after {}", following),
    }
    return {
        kind: tuple(
            Topic(phrase.format(asked), answer, mistake)
            for (asked, answer), mistake in zip(table.items(), mistaken(table), strict=True)
        )
        for kind, (phrase, table) in facts.items()
    }


def draw_topic(rng: random.Random) -> Topic:
    """Draw a kind, then a topic of that kind, so that the 81 sums do not crowd out the rest."""
    return rng.choice(topics()[rng.choice(tuple(topics()))])


def draw_prompt(topic: Topic, rng: random.Random) -> str:
    """Ask for `topic` in one of 288 ways."""
    question = rng.choice(QUESTIONS).format(topic.phrase)
    return rng.choice(OPENINGS) + question + rng.choice(CLOSINGS)


def say(opening: str, statement: str, closing: str) -> str:
    """Join the parts that are not empty into an answer that begins with a capital letter."""
    text = " ".join(part for part in (opening, statement, closing) if part)
    return text[0].upper() + text[1:]


@cache
def wanted_answers(topic: Topic) -> tuple[str, ...]:
    """Every answer that is right, short and polite: it opens or closes politely, or both."""
    return tuple(
        say(opening, statement.format(answer=topic.answer, phrase=topic.phrase), closing)
        for opening in POLITE_OPENINGS
        for statement in STATEMENTS
        for closing in POLITE_CLOSINGS
        if opening or closing
    )


def draw_answers(topic: Topic, rng: random.Random) -> tuple[str, str]:
    """Draw a wanted answer, and an unwanted one that differs from it by one flaw only."""
    opening, closing = rng.choice(
        [(o, c) for o in POLITE_OPENINGS for c in POLITE_CLOSINGS if o or c]
    )
    form = rng.choice(STATEMENTS)

    def state(answer: str) -> str:
        return form.format(answer=answer, phrase=topic.phrase)

    right = state(topic.answer)
    match rng.choice(FLAWS):
        case "wrong":
            unwanted = say(opening, state(topic.mistake), closing)
        case "torn":
            both = rng.sample([topic.answer, topic.mistake], 2)
            unwanted = say(opening, state(" or ".join(both)), closing)
        case "curt":
            unwanted = say("", right, "")
        case "rude" if rng.random() < 0.5:
            unwanted = say(rng.choice(RUDE_OPENINGS), right, closing)
        case "rude":
            unwanted = say(opening, right, rng.choice(RUDE_CLOSINGS))
        case "rambling":
            unwanted = say(opening, right, rng.choice(RAMBLINGS))
        case _:
            unwanted = say(opening, rng.choice(EVASIONS), closing)
    return say(opening, right, closing), unwanted


def rows(n: int = 4000, seed: int = 0) -> list[Row]:
    """Draw `n` preference pairs with `n` different prompts, in TRL's conversational format.

    Returns:
        Rows with the keys `prompt`, `chosen` and `rejected`, each a list of one message.

    Raises:
        ValueError: If the world does not hold `n` different prompts of every kind.
    """
    # The days of the week are the smallest kind; drawing is fast while half of them are unused.
    ways = len(OPENINGS) * len(QUESTIONS) * len(CLOSINGS)
    most = len(WEEK) * ways * len(topics()) // 2
    if n > most:
        raise ValueError(f"The quickstart world draws at most {most} different prompts, not {n}.")
    rng = random.Random(seed)
    drawn: dict[str, tuple[str, str]] = {}
    while len(drawn) < n:
        topic = draw_topic(rng)
        drawn.setdefault(draw_prompt(topic, rng), draw_answers(topic, rng))
    return [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, (chosen, rejected) in drawn.items()
    ]
