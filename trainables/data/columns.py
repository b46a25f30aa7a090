"""Which column of a data set holds what: as the search says, else by its name and its values."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from search_spaces.errors import UserError
from trainables.data.messages import decoded, turns_of
from trainables.data.texts import shared_words

# Names under which published data sets keep a prompt.
PROMPTS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "input",
    "conversation",
    "conversations",
    "trajectory",
)
SYSTEMS = ("system", "system_prompt")
KNOWN = (*PROMPTS, "chosen", "rejected", *SYSTEMS, "tools", "chat_template_kwargs")
FORMATS = (
    "`prompt`, `chosen` and `rejected`, or `chosen` and `rejected` that begin with the same "
    "prompt; each of them text or a list of {role, content} messages"
)
LOOKED_AT = 1000  # rows whose values decide what a column holds
ACCIDENT = 0.05  # more rows than this share without a common beginning: there is no prompt in them


@dataclass(frozen=True)
class Reading:
    """What a search says of how its data set is to be read.

    Attributes:
        columns: the column, or columns, of `prompt`, `chosen`, `rejected`, `system`, `tools` and
            `chat_template_kwargs`; None for one that is not to be read.
        text: `auto` recognises dialogues and messages that are kept as text; `plain` takes every
            text as it is.
        chat_template_kwargs: switches of the chat template for all rows.
        unread: columns of the data set that were not loaded.
    """

    columns: Mapping[str, str | Sequence[str] | None] = field(default_factory=dict)
    text: Literal["auto", "plain"] = "auto"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    unread: Sequence[str] = ()

    def named(self) -> list[str]:
        """Return the columns that the search names."""
        named = [[c] if isinstance(c, str) else c or () for c in self.columns.values()]
        return [column for columns in named for column in columns]


@dataclass(frozen=True)
class Columns:
    """The columns of a pair's parts; a prompt without any is what both answers begin with."""

    prompt: tuple[str, ...]
    chosen: str
    rejected: str
    system: str | None
    tools: str | None
    chat_template_kwargs: str | None

    def used(self) -> dict[str, str | list[str]]:
        """Return the column of each part that has one; several columns as a list."""
        prompt = self.prompt[0] if len(self.prompt) == 1 else list(self.prompt)
        parts = {**vars(self), "prompt": prompt}
        return {part: column for part, column in parts.items() if column}

    def of_messages(self) -> list[str]:
        """Return the columns that may hold messages."""
        return [*self.prompt, self.chosen, self.rejected]

    def names(self) -> set[str]:
        """Return all columns that are read."""
        return {*self.prompt, *(c for c in vars(self).values() if isinstance(c, str))}


def check_columns(names: Sequence[str], path: str, reading: Reading) -> None:
    """Refuse rows without answers, or without a column that the search names.

    Raises:
        UserError: with the columns there are, the nearest names, and the key that names another.
    """
    given = [name for name in reading.named() if name not in names]
    if given:
        raise UserError(
            f"The data set {path!r} has no column {' or '.join(given)}, which `dataset.columns` "
            f"names{_near(given, names)}: it has {', '.join(names) or 'none'}."
        )
    wanted = [part for part in ("chosen", "rejected") if part not in reading.columns]
    missing = [part for part in wanted if part not in names]
    if missing:
        raise UserError(
            f"The data set {path!r} has no column {' or '.join(missing)}{_near(missing, names)}: "
            f"it has {', '.join(names) or 'none'}, and needs {FORMATS}. Set "
            f"`dataset.columns.{missing[0]}` to the column that holds it. Where another column "
            "says which answer is better, write the better one of each row into `chosen` first."
        )


def _near(missing: Iterable[str], names: Sequence[str]) -> str:
    near = [name for column in missing for name in difflib.get_close_matches(column, names, n=1)]
    return f" (did you mean {', '.join(near)}?)" if near else ""


def find_columns(
    names: Sequence[str], sample: Sequence[Mapping[str, object]], reading: Reading, path: str
) -> Columns:
    """Return the columns of a pair's parts.

    Args:
        names: of all columns that can be read.
        sample: rows to look at.
        reading: what the search says.
        path: of the data set, for errors.

    Raises:
        UserError: no column, or more than one, can be the prompt; it says how to name one.
    """
    check_columns(names, path, reading)

    def one(part: str, *usual: str) -> str | None:
        if part in reading.columns:
            column = reading.columns[part]
            return column if isinstance(column, str) or column is None else column[0]
        return next((name for name in usual if name in names), None)

    chosen, rejected = one("chosen", "chosen"), one("rejected", "rejected")
    assert chosen is not None and rejected is not None  # `check_columns`, and the spec's own check
    return Columns(
        prompt=_prompt(names, sample, reading, path, (chosen, rejected)),
        chosen=chosen,
        rejected=rejected,
        system=one("system", *SYSTEMS),
        tools=one("tools", "tools"),
        chat_template_kwargs=one("chat_template_kwargs", "chat_template_kwargs"),
    )


def _prompt(
    names: Sequence[str],
    sample: Sequence[Mapping[str, object]],
    reading: Reading,
    path: str,
    answers: tuple[str, str],
) -> tuple[str, ...]:
    if "prompt" in reading.columns:
        given = reading.columns["prompt"]
        return (given,) if isinstance(given, str) else tuple(given or ())
    if "prompt" in names:
        return ("prompt",)
    pairs = [tuple(decoded(row[column]) for column in answers) for row in sample]
    whole = [pair for pair in pairs if all(_whole(answer, reading.text) for answer in pair)]
    if 2 * len(whole) > len(pairs):
        return ()
    here = [name for name in PROMPTS if name in names and name not in answers]
    if len(here) == 1 or here == ["instruction", "input"]:
        return tuple(here)
    way = "set `dataset.columns.prompt` to the column that holds the prompts"
    if here:
        raise UserError(
            f"The data set {path!r} has no column prompt, and {' and '.join(here)} may each hold "
            f"the prompts: {way}, or to a list of columns that make one together."
        )
    texts = [pair for pair in pairs if all(isinstance(answer, str) for answer in pair)]
    apart = sum(not shared_words(str(chosen), str(rejected)) for chosen, rejected in texts)
    if apart > ACCIDENT * len(texts):
        raise UserError(
            f"The data set {path!r} has no column prompt, and in {apart:,} of {len(texts):,} rows "
            "the answers do not begin with the same words, so there is no prompt in them: it has "
            f"{', '.join([*names, *reading.unread])}; {way}."
        )
    return ()


def _whole(answer: object, text: str) -> bool:
    """Say whether an answer is a conversation from its first turn on."""
    turns = turns_of(answer, text)
    return turns is not None and len(turns) > 1 and turns[0]["role"] in ("user", "system")
