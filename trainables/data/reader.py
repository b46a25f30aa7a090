"""The rows of one data set as pairs: read, checked and rendered, or dropped with a reason."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from datasets import Dataset

from trainables.data.chat_template import ChatTemplate, Texts, Unrenderable
from trainables.data.columns import LOOKED_AT, Columns, Reading, find_columns
from trainables.data.messages import Message, Unusable, decoded, unread_keys
from trainables.data.pairs import Pair, read_pair
from trainables.data.texts import is_text

REASONS = {
    "malformed": "neither texts nor lists of {role, content} messages",
    "not_text": "a message holds more than text",
    "no_prompt": "no user's turn before the answers",
    "begun_answer": "the prompt ends in an answer that has begun",
    "several_turns": "an answer is not exactly one assistant's turn",
    "empty_answer": "an answer has no visible character",
    "equal_answers": "both answers are the same",
    "template_tokens": "a text has tokens of a chat template in it",
    "eos_in_answer": "an answer spells out the EOS token",
    "template": "the chat template refuses the conversation",
    "also_in_train": "the prompt is also in train",
    "also_in_validation": "the prompt is also in validation",
    "prompt_too_long": "the prompt alone fills max_length",
    "equal_when_cut": "both answers are the same once cut to max_length",
}


class Reader:
    """Reads the rows of one data set, and remembers a row for each reason and each reading.

    Attributes:
        columns: which hold what.
        unread: columns, and keys of messages, that are not read.
        examples: number of the first row by reason or reading, in the order of splits.
    """

    def __init__(self, rows: Dataset, reading: Reading, path: str) -> None:
        self.rows = rows
        self.reading = reading
        # From all over the data set: published ones are often sorted by where they come from.
        numbers = np.unique(np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int))
        sample = records(rows, numbers)
        self.columns: Columns = find_columns(rows.column_names, sample, reading, path)
        read = self.columns.names()
        self.unread = [name for name in rows.column_names if name not in read]
        self.unread += [*reading.unread, *_unread_keys(sample, self.columns.of_messages())]
        self.rows = rows.select_columns(sorted(read))
        self.examples: dict[str, int] = {}
        self.repeats = self._repeats(sample)

    def _repeats(self, sample: Sequence[Mapping[str, object]]) -> bool:
        """Say whether most answers of the data set begin with their prompt."""
        repeated = read = 0
        for row in sample:
            try:
                pair = read_pair(row, self.columns, self.reading, repeats=True)
            except Unusable:
                continue
            read += 1
            repeated += "prompt_repeated" in pair.read_as
        return 2 * repeated > read

    def pair(self, row: Mapping[str, object]) -> Pair:
        """Read one row.

        Raises:
            Unusable: with one of `REASONS`.
        """
        return read_pair(row, self.columns, self.reading, self.repeats)

    def example(self, keys: Iterable[str], number: int) -> None:
        """Remember a row for each key that has none."""
        for key in keys:
            self.examples.setdefault(key, number)


def _unread_keys(sample: Sequence[Mapping[str, object]], columns: Sequence[str]) -> list[str]:
    """Return the keys of messages that are not read, as `column[].key`."""
    keys = {
        f"{column}[].{key}"
        for row in sample
        for column in columns
        for key in unread_keys(decoded(row[column]))
    }
    return sorted(keys)


def words(answer: Message) -> str:
    """Return what an answer says; of one that calls tools, the calls as JSON after its words."""
    calls = [json.dumps(call, ensure_ascii=False) for call in answer.get("tool_calls") or ()]
    return "\n".join([*([answer["content"]] if answer["content"] else []), *calls])


def read_row(
    row: Mapping[str, object],
    reader: Reader,
    template: ChatTemplate,
    seen: Mapping[str, set[bytes]],
) -> tuple[Pair, Texts]:
    """Return a row's pair as it is and as the template writes it.

    Raises:
        Unusable: with one of `REASONS`.
    """
    pair = reader.pair(row)
    eos = template.tokenizer.eos_token
    if any(eos in answer["content"] for answer in (pair.chosen, pair.rejected)):
        # Inside an answer it would end it for the model, and what follows would never be generated.
        raise Unusable("eos_in_answer")
    if reader.reading.text == "auto":
        turns = [*pair.prompt, pair.chosen, pair.rejected]
        if any(template.has_tokens(turn["content"]) for turn in turns):
            raise Unusable("template_tokens")
    options = {**pair.chat_template_kwargs, "tools": pair.tools}
    try:
        texts = template.render(pair.prompt, pair.chosen, pair.rejected, options)
    except Unrenderable as error:
        raise Unusable("template") from error
    if not all(is_text(text) for text in texts):  # by way of a tool or a call
        raise Unusable("malformed")
    for split, prompts in seen.items():
        if fingerprint(texts.prompt) in prompts:
            raise Unusable(f"also_in_{split}")
    return pair, texts


def records(rows: Dataset, numbers: np.ndarray) -> list[dict[str, object]]:
    """Return the rows of these numbers, a dictionary each."""
    columns = rows[numbers]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def fingerprint(prompt: str) -> bytes:
    """Name a prompt by its words, so that spacing does not hide that two are the same."""
    return hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=16).digest()
