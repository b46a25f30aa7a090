"""What a text of a data set holds: plain words, a dialogue with markers, or messages as text."""

import ast
import json
import os.path
import re
import unicodedata
from typing import Any, NamedTuple, TypeGuard

# A value that was no text in a file of JSON lines begins with this, and its JSON follows: Arrow has
# one type for a column, and rows need not agree on one.
NOT_TEXT = "\0json:"
HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # JSON can hold what UTF-8 cannot


class Markers(NamedTuple):
    """How one family of dialogues marks whose turn begins.

    Attributes:
        user, assistant, system: the markers.
        opens: what comes before a marker, a regular expression; mostly the start of a line.
        preamble: whether words before the first marker belong to it: they are the system's.
    """

    user: str
    assistant: str
    system: str | None = None
    opens: str = r"(?:\A|\n)[ \t]*"
    preamble: bool = False


# The families that published data sets use. A text is a dialogue only if it begins with one's user
# or system marker, and the same one's assistant marker comes after it.
FAMILIES = (
    Markers("Human:", "Assistant:", "System:"),  # HH-RLHF
    Markers("User:", "Assistant:", "System:"),
    Markers("User:", "Bot:", "System:"),
    Markers("HUMAN:", "ASSISTANT:", "SYSTEM:"),
    Markers("USER:", "ASSISTANT:", "SYSTEM:", r"(?:\A|\s|</s>)", preamble=True),  # Vicuna: one line
    Markers("### Human:", "### Assistant:", "### System:", preamble=True),  # Guanaco
    Markers("### User:", "### Assistant:", "### System:", preamble=True),
    Markers("### Instruction:", "### Response:", preamble=True),  # Alpaca
)
# Tokens by which chat templates mark turns. The tokenizer's own special tokens are looked for too;
# these are found whatever model is trained.
TEMPLATE_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|im_sep|user|assistant|system|end|eot_id|eom_id|start_header_id"
    r"|end_header_id|begin_of_text|end_of_text|endoftext|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN"
    r"|start_of_role|end_of_role|start|message|return|channel)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\]"
    r"|<｜(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)｜>"
)
MESSAGES_BEGIN = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
BLANKS = "\u2800\u3164\u115f\u1160\uffa0"  # letters and signs that show nothing
# Names for who speaks, where messages say it with `from` and `value`.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a value is a text that Arrow can hold."""
    return isinstance(value, str) and HALF_A_PAIR.search(value) is None


def visible(text: str) -> bool:
    """Say whether a text has a character that a reader would see."""
    # Format characters (such as zero-width spaces), controls and separators show nothing.
    return any(
        unicodedata.category(letter)[0] not in "CZ" and letter not in BLANKS for letter in text
    )


def begins_as_messages(text: str) -> bool:
    """Say whether a text begins as a list of messages does, whether or not it can be parsed.

    A table of NumPy's arrays that was written as CSV, for one, has no commas between messages.
    """
    return MESSAGES_BEGIN.match(text) is not None


def messages_as_text(text: str) -> list[Any] | None:
    """Return the list that a text spells out as JSON or as Python writes it; None of other text."""
    stripped = text.strip()
    if not (stripped.startswith(("[{", "[ {", "[\n")) and stripped.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            return value if all(_is_turn(turn) for turn in value) else None
    return None


def _is_turn(turn: dict[Any, Any]) -> bool:
    return {"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys()


def dialogue(text: str) -> list[dict[str, str]] | None:
    """Return the turns of a dialogue that is one text with role markers; None of other text.

    A last marker with nothing behind it is where an answer is to begin; it is no turn.
    """
    for family in FAMILIES:
        if (turns := _turns(text, family)) is not None:
            return turns
    return None


def _turns(text: str, family: Markers) -> list[dict[str, str]] | None:
    markers = {"user": family.user, "assistant": family.assistant, "system": family.system}
    roles = {marker: role for role, marker in markers.items() if marker}
    if not all(marker in text for marker in (family.user, family.assistant)):
        return None
    before, *parts = re.split(f"{family.opens}({'|'.join(map(re.escape, roles))})", text.strip())
    if not parts or roles[parts[0]] == "assistant" or (before.strip() and not family.preamble):
        return None
    turns = [{"role": "system", "content": before.strip()}] if before.strip() else []
    for marker, said in zip(parts[::2], parts[1::2], strict=True):
        turns.append({"role": roles[marker], "content": said.strip().removesuffix("</s>").rstrip()})
    if not any(turn["role"] == "assistant" for turn in turns):
        return None
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    return turns


def shared_words(chosen: str, rejected: str) -> str:
    """Return the words that two texts both begin with."""
    shared = os.path.commonprefix([chosen, rejected])
    # Answers that begin with the same letters share them too: go back to where a word began.
    cut = max((i + 1 for i, letter in enumerate(shared) if letter.isspace()), default=0)
    return shared[:cut] if shared[:cut].strip() else ""


def marks_a_turn(text: str) -> bool:
    """Say whether a line within a text begins with a marker of those dialogues."""
    return _LATER_TURN.search(text) is not None


_LATER_TURN = re.compile(
    r"\n\s*\n[ \t]*(?:"
    + "|".join(sorted({re.escape(m) for f in FAMILIES for m in (f.user, f.assistant)}))
    + r")"
)
