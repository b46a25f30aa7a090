"""One raw row of a preference data set, in whichever format, as one prompt and two answers."""

import os.path
from collections.abc import Mapping
from dataclasses import dataclass

from trl.data_utils import extract_prompt

from trainables.data.chat_template import Message
from trainables.data.files import COLUMNS


@dataclass(frozen=True)
class Pair:
    """A prompt that ends with a user's turn, and the two answers to it."""

    prompt: list[Message]
    chosen: str
    rejected: str


class Unusable(Exception):
    """Carries the reason, as it is counted in the data report."""


def read_pair(row: Mapping[str, object]) -> Pair:
    """Read a row of any of TRL's preference formats, or of argilla's columns.

    https://huggingface.co/docs/trl/dataset_formats#preference

    Raises:
        Unusable: with one of the reasons `malformed`, `no_prompt`, `several_turns`,
            `empty_answer`, `equal_answers`.
    """
    prompt, chosen, rejected = (row.get(column) for column in COLUMNS)
    if prompt is None and "prompt" in row:
        raise Unusable("malformed")  # not to be guessed from what the answers share
    if isinstance(chosen, str) and isinstance(rejected, str):
        pair = from_text(prompt, chosen, rejected)
    else:
        pair = from_messages(prompt, messages(chosen), messages(rejected))
    if not pair.prompt or pair.prompt[-1]["role"] != "user":
        raise Unusable("no_prompt")
    if not pair.prompt[-1]["content"].strip():
        raise Unusable("no_prompt")
    if not pair.chosen.strip() or not pair.rejected.strip():
        raise Unusable("empty_answer")
    if pair.chosen.strip() == pair.rejected.strip():
        raise Unusable("equal_answers")
    return pair


def from_text(prompt: object, chosen: str, rejected: str) -> Pair:
    """Read the standard format: texts, which become one user turn and one assistant turn."""
    if prompt is None:
        shared = os.path.commonprefix([chosen, rejected])
        # Answers that begin with the same letters share them too: go back to where a word began.
        cut = max((i + 1 for i, letter in enumerate(shared) if letter.isspace()), default=0)
        if chosen == rejected:
            raise Unusable("equal_answers")
        prompt, chosen, rejected = shared[:cut], chosen[cut:], rejected[cut:]
    if isinstance(prompt, str):
        asked = [{"role": "user", "content": prompt.strip()}]
    else:
        asked = messages(prompt)
    return Pair(asked, chosen.strip(), rejected.strip())


def from_messages(prompt: object, chosen: list[Message], rejected: list[Message]) -> Pair:
    """Read the conversational format, the prompt in its own column or shared by the answers."""
    if not chosen or not rejected:
        raise Unusable("empty_answer")
    if isinstance(prompt, str) and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        asked = [{"role": "user", "content": prompt}]
    elif prompt is None or isinstance(prompt, str):
        # A text beside whole conversations (argilla's columns) repeats what they begin with.
        parts = extract_prompt({"chosen": chosen, "rejected": rejected})
        asked, chosen, rejected = parts["prompt"], parts["chosen"], parts["rejected"]
    else:
        asked = messages(prompt)
        if asked and chosen[: len(asked)] == rejected[: len(asked)] == asked:
            chosen, rejected = chosen[len(asked) :], rejected[len(asked) :]
    if not chosen or not rejected:
        raise Unusable("empty_answer")
    if any(len(turns) > 1 or turns[0]["role"] != "assistant" for turns in (chosen, rejected)):
        raise Unusable("several_turns")
    return Pair(asked, chosen[0]["content"], rejected[0]["content"])


def messages(value: object) -> list[Message]:
    """Check that `value` is a list of messages with a role and a text each.

    Raises:
        Unusable: `malformed`.
    """
    if not isinstance(value, list):
        raise Unusable("malformed")
    turns = []
    for message in value:
        if not isinstance(message, Mapping):
            raise Unusable("malformed")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise Unusable("malformed")
        turns.append({"role": role, "content": content})
    return turns
