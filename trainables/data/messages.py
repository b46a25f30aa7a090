"""Values of a data set as messages, whichever way it writes them."""

import json
from collections.abc import Mapping
from typing import Any

from trainables.data.texts import NOT_TEXT, SPEAKERS, dialogue, is_text, messages_as_text

Message = dict[str, Any]
# What templates read of a message beside its role and content.
EXTRAS = ("tool_calls", "reasoning_content", "thinking", "name", "tool_call_id")


class Unusable(Exception):
    """Carries the reason, as it is counted in the data report."""


def decoded(value: object) -> object:
    """Return a value as it was in its file, where it is kept as JSON."""
    if isinstance(value, str) and value.startswith(NOT_TEXT):
        return json.loads(value[len(NOT_TEXT) :])
    return value


def turns_of(value: object, text: str) -> list[Message] | None:
    """Return the turns of a list of messages or, unless texts are plain, of a text that holds some.

    None of anything else.
    """
    if isinstance(value, str):
        if text == "plain":
            return None
        value = messages_as_text(value) or dialogue(value)
    if value is None:
        return None
    try:
        return messages(value)
    except Unusable:
        return None


def messages(value: object) -> list[Message]:
    """Check that a value is a message or a list of messages, and return what templates read of it.

    Messages have `role` and `content`, or `from` and `value`. A content may be a list of parts of
    type `text`; it may be missing where there are tool calls.

    Raises:
        Unusable: `malformed`, or `not_text` for images and their like.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Unusable("malformed")
    return [_message(turn) for turn in value]


def _message(turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable("malformed")
    # Arrow fills in, as null, the keys that only other rows have.
    turn = {key: item for key, item in turn.items() if item is not None}
    if "role" in turn:
        role, content = turn["role"], turn.get("content")
    else:
        role, content = SPEAKERS.get(str(turn.get("from"))), turn.get("value")
    if content is None and turn.get("tool_calls"):
        content = ""
    if isinstance(content, list):
        content = _joined(content)
    if not is_text(role) or not is_text(content):
        raise Unusable("malformed")
    extras = {key: _without_nulls(turn[key]) for key in EXTRAS if turn.get(key)}
    return {"role": role, "content": content, **extras}


def unread_keys(value: object) -> set[str]:
    """Return the keys of messages that no template is given."""
    turns = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else []
    read = {"role", "content", "from", "value", *EXTRAS}
    return {
        str(key)
        for turn in turns
        if isinstance(turn, Mapping)
        for key, item in turn.items()
        if key not in read and item is not None
    }


def _joined(parts: list[Any]) -> str:
    """Return the text of a content that is a list of parts."""
    if not all(isinstance(part, Mapping) for part in parts):
        raise Unusable("malformed")
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
        raise Unusable("not_text")
    return "".join(part["text"] for part in parts)


def _without_nulls(value: Any) -> Any:
    """Drop the keys that Arrow filled in with null because other rows have them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
