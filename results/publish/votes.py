"""The votes of blind comparisons in the chat, as preference pairs in TRL's explicit format."""

import json
from pathlib import Path
from typing import Any

from results.run import layout
from results.run.run import Run
from search_spaces.errors import UserError

Message = dict[str, str]  # {"role": "user", "content": "..."}


def votes(run: Run) -> list[dict[str, list[Message]]]:
    """Read a run's votes: `prompt`, `chosen` and `rejected`, each a list of messages.

    An unfinished last line is a vote being written, and is left for the next time.

    Returns:
        The votes in the order they were cast; none where nobody has voted.

    Raises:
        UserError: a line is not a vote; with its number.
    """
    path = run.folder / layout.VOTES
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or move it away.") from error
    return [_vote(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _vote(path: Path, number: int, line: str) -> dict[str, list[Message]]:
    def wrong(what: str) -> UserError:
        return UserError(f"Line {number} of {path} is not a vote: {what}; fix or remove the line.")

    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise wrong("it is not JSON") from error
    if not isinstance(record, dict):
        raise wrong("it must be a JSON object")
    prompt = record.get("prompt")
    turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not _conversation(turns):
        raise wrong("`prompt` must be text, or messages that end with the user's")
    for key in ("chosen", "rejected"):
        if not _text(record.get(key)):
            raise wrong(f"`{key}` must be text that is not blank")
    if record["chosen"] == record["rejected"]:
        raise wrong("`chosen` and `rejected` are the same")
    if not _text(record.get("time")):
        raise wrong("`time` must be text")
    # The time of a vote says when somebody was at the machine: it stays here.
    answers = {
        key: [{"role": "assistant", "content": record[key]}] for key in ("chosen", "rejected")
    }
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return {"prompt": messages, **answers}


def _conversation(turns: Any) -> bool:
    if not isinstance(turns, list) or not turns:
        return False
    known = all(
        isinstance(turn, dict)
        and turn.get("role") in ("system", "user", "assistant")
        and _text(turn.get("content"))
        for turn in turns
    )
    return known and turns[-1]["role"] == "user"


def _text(value: Any) -> bool:
    """Whether a value is a text that is not blank and that UTF-8, and so parquet, can hold."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can hold
        return False
    return True
