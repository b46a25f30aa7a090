"""One raw row of a preference data set, in whichever format, as one prompt and two answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl.data_utils import extract_prompt

from trainables.data.columns import Columns, Reading
from trainables.data.messages import Message, Unusable, decoded, messages
from trainables.data.texts import (
    begins_as_messages,
    dialogue,
    is_text,
    marks_a_turn,
    messages_as_text,
    shared_words,
    visible,
)

# How a row was read, where it was not as its columns say.
READINGS = {
    "dialogue": "a dialogue, by the role markers in a text",
    "messages_as_text": "messages that are kept as text",
    "prompt_repeated": "answers without the prompt that both began with",
    "other_prompt": "the conversation in the answers, which the prompt's column is not a part of",
    "system": "a system turn from its own column",
    "tools": "with tools",
    "chat_template_kwargs": "with switches of the chat template",
}
LONG = 20  # letters of a prompt that no two answers begin with by accident


@dataclass(frozen=True)
class Pair:
    """A prompt that an assistant is to answer, and two answers to it.

    Attributes:
        prompt: its turns; the last is a user's or a tool's.
        chosen, rejected: an assistant's turn each.
        tools: the functions that the prompt offers, as JSON schemas.
        chat_template_kwargs: switches of the chat template.
        read_as: keys of `READINGS`.
    """

    prompt: list[Message]
    chosen: Message
    rejected: Message
    tools: list[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    read_as: frozenset[str] = frozenset()


def read_pair(
    row: Mapping[str, object], columns: Columns, reading: Reading, repeats: bool = False
) -> Pair:
    """Read a row of any of TRL's preference formats, or of those that other data sets have.

    https://huggingface.co/docs/trl/dataset_formats#preference

    Args:
        row: values by column.
        columns: which of them hold what.
        reading: whether texts are taken as they are.
        repeats: the answers of this data set begin with their prompt, however short that is.

    Raises:
        Unusable: with one of the reasons of `trainables.data.reader`.
    """
    read_as: set[str] = set()
    prompt = _prompt(row, columns)
    chosen, rejected = (decoded(row.get(c)) for c in (columns.chosen, columns.rejected))
    if reading.text == "auto":
        asked_as, said_as = prompt, (chosen, rejected)
        prompt = _turns(prompt)
        chosen, rejected = _answers(prompt, chosen, rejected)
        for before, after in ((asked_as, prompt), *zip(said_as, (chosen, rejected), strict=True)):
            if after is not before:
                parsed = messages_as_text(str(before)) is not None
                read_as.add("messages_as_text" if parsed else "dialogue")
    if isinstance(chosen, str) and isinstance(rejected, str):
        asked, good, bad = _from_texts(prompt, chosen, rejected, "dialogue" in read_as)
    else:
        asked, good, bad = _from_messages(prompt, messages(chosen), messages(rejected))
    if isinstance(prompt, str) and not _has(asked, prompt):
        read_as.add("other_prompt")
    if reading.text == "auto" and prompt is not None and asked:
        if cut := _without_prompt(asked[-1]["content"], good, bad, repeats):
            good, bad = cut
            read_as.add("prompt_repeated")
    system = decoded(row.get(columns.system)) if columns.system else None
    if is_text(system) and visible(system) and (not asked or asked[0]["role"] != "system"):
        asked = [{"role": "system", "content": system}, *asked]
        read_as.add("system")
    _check(asked, good, bad)
    tools, switches = _of_template(row, columns)
    of_template = {"tools": tools, "chat_template_kwargs": switches}
    read_as |= {key for key, value in of_template.items() if value}
    return Pair(asked, good, bad, tools, switches, frozenset(read_as))


def _prompt(row: Mapping[str, object], columns: Columns) -> object:
    """Return the prompt as its column has it; several columns as one text."""
    values = [decoded(row.get(column)) for column in columns.prompt]
    if not values:
        return None
    if values[0] is None:
        raise Unusable("malformed")  # not to be guessed from what the answers share
    if len(values) == 1:
        return values[0]
    if not all(value is None or is_text(value) for value in values):
        raise Unusable("malformed")
    return "\n\n".join(str(value).strip() for value in values if value and visible(str(value)))


def _turns(prompt: object) -> object:
    """Return a prompt that is messages or a dialogue in the form of a text as turns."""
    if not isinstance(prompt, str):
        return prompt
    return _parsed(prompt) or dialogue(prompt) or prompt


def _parsed(text: str) -> list[Any] | None:
    turns = messages_as_text(text)
    if turns is None and begins_as_messages(text):
        raise Unusable("malformed")  # not a text, although it cannot be parsed
    return turns


def _answers(prompt: object, chosen: object, rejected: object) -> tuple[object, object]:
    """Return two answers as turns where both are texts that hold some.

    A dialogue beside a prompt of its own is one only if it has the prompt in it: who is asked for
    a scene answers with one.
    """
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return chosen, rejected
    parsed = _parsed(chosen), _parsed(rejected)
    if any(parsed):
        return parsed[0] or chosen, parsed[1] or rejected
    turns = dialogue(chosen), dialogue(rejected)
    if prompt is None and any(turns) and not all(turns):
        raise Unusable("several_turns")  # what they share would end in the middle of a turn
    if not turns[0] or not turns[1]:
        return chosen, rejected
    asked = [{"content": prompt}] if isinstance(prompt, str) else messages(prompt or [])
    if any(not _has(side, turn["content"]) for side in turns if side for turn in asked):
        return chosen, rejected
    return turns


def _from_texts(
    prompt: object, chosen: str, rejected: str, marked: bool
) -> tuple[list[Message], Message, Message]:
    """Read the standard format: texts, which become one user turn and one assistant turn."""
    if not is_text(chosen) or not is_text(rejected):
        raise Unusable("malformed")
    if prompt is None:
        if chosen == rejected:
            raise Unusable("equal_answers")
        prompt = shared_words(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if isinstance(prompt, str):
        if not is_text(prompt):
            raise Unusable("malformed")
        asked: list[Message] = [{"role": "user", "content": prompt.strip()}]
    else:
        asked = messages(prompt)
    if marked and (marks_a_turn(chosen) or marks_a_turn(rejected)):
        raise Unusable("several_turns")
    return asked, _answer(chosen.strip()), _answer(rejected.strip())


def _has(asked: Sequence[Mapping[str, Any]], prompt: str) -> bool:
    """Say whether a prompt's column is a part of the turns that were read, or they of it."""
    words = " ".join(prompt.split())
    said = [" ".join(turn["content"].split()) for turn in asked]
    return not words or any(words in turn or (turn and turn in words) for turn in said)


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _from_messages(
    prompt: object, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], Message, Message]:
    """Read the conversational format, the prompt in its own column or shared by the answers."""
    if not chosen or not rejected:
        raise Unusable("empty_answer")
    if isinstance(prompt, str) and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        asked: list[Message] = [{"role": "user", "content": prompt}]
    elif prompt is None or isinstance(prompt, str):
        # A text beside whole conversations (argilla's columns) repeats what they begin with.
        parts: dict[str, Any] = extract_prompt({"chosen": chosen, "rejected": rejected})
        asked, chosen, rejected = parts["prompt"], parts["chosen"], parts["rejected"]
    else:
        asked = messages(prompt)
        if asked and chosen[: len(asked)] == rejected[: len(asked)] == asked:
            chosen, rejected = chosen[len(asked) :], rejected[len(asked) :]
    if not chosen or not rejected:
        raise Unusable("equal_answers" if chosen == rejected else "empty_answer")
    if any(len(turns) > 1 or turns[0]["role"] != "assistant" for turns in (chosen, rejected)):
        raise Unusable("several_turns")
    return asked, chosen[0], rejected[0]


def _without_prompt(
    prompt: str, chosen: Message, rejected: Message, repeats: bool
) -> tuple[Message, Message] | None:
    """Return answers that both begin with the prompt without it; None of others."""
    asked = prompt.strip()
    if not asked or not (repeats or len(asked) >= LONG):
        return None
    rests = [answer["content"].strip().removeprefix(asked) for answer in (chosen, rejected)]
    for answer, rest in zip((chosen, rejected), rests, strict=True):
        repeated = answer["content"].strip().startswith(asked)
        # "Say yes" is not repeated by "Say yesterday".
        if not repeated or not visible(rest) or (asked[-1].isalnum() and rest[0].isalnum()):
            return None
    good, bad = (rest.strip() for rest in rests)
    return {**chosen, "content": good}, {**rejected, "content": bad}


def _check(asked: list[Message], chosen: Message, rejected: Message) -> None:
    if asked and asked[-1]["role"] == "assistant":
        raise Unusable("begun_answer")
    if not asked or asked[-1]["role"] not in ("user", "tool"):
        raise Unusable("no_prompt")
    if not visible(asked[-1]["content"]):
        raise Unusable("no_prompt")
    for answer in (chosen, rejected):
        if not visible(answer["content"]) and not answer.get("tool_calls"):
            raise Unusable("empty_answer")
    if _said(chosen) == _said(rejected):
        raise Unusable("equal_answers")


def _said(answer: Message) -> Message:
    return {**answer, "content": answer["content"].strip()}


def _of_template(
    row: Mapping[str, object], columns: Columns
) -> tuple[list[Any] | None, dict[str, Any]]:
    """Return the tools and the template's switches of a row."""
    tools: Any = decoded(row.get(columns.tools)) if columns.tools else None
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)  # as TRL advises to keep them
        except ValueError:
            raise Unusable("malformed") from None
    key = columns.chat_template_kwargs
    switches: Any = decoded(row.get(key)) if key else None
    if isinstance(switches, Mapping):  # Arrow fills in the keys of other rows with null
        switches = {name: value for name, value in switches.items() if value is not None}
    if (tools and not isinstance(tools, list)) or (switches and not isinstance(switches, dict)):
        raise Unusable("malformed")
    return tools or None, switches or {}
