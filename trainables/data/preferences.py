"""Preference pairs, ready to train on: split, cleaned, tokenised, and every row accounted for."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from search_spaces.errors import UserError
from trainables.artifacts import write_json
from trainables.data.chat_template import ChatTemplate, Texts, settle
from trainables.data.columns import Reading
from trainables.data.files import in_memory
from trainables.data.messages import Unusable
from trainables.data.pairs import READINGS, Pair
from trainables.data.reader import REASONS, Reader, fingerprint, read_row, records, words

SPLITS = ("train", "validation", "test")
WAYS_OUT = {  # beside mending the data
    "template_tokens": "set dataset.text to plain to take texts with such tokens as they are",
    "no_prompt": "set dataset.columns.prompt to the column of the prompts",
    "template": "use a model whose template takes these roles, or give it another template",
}
MIN_HELD_OUT = 8  # pairs of validation and of test; below that no measure means anything
BATCH = 1000  # rows in memory as Python objects, and in a row group

IDS = pa.list_(pa.int32())
TRAIN_SCHEMA = pa.schema(
    [("row", pa.int64()), ("prompt_ids", IDS), ("chosen_ids", IDS), ("rejected_ids", IDS)]
)
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
HELD_OUT_SCHEMA = pa.schema(
    [
        *TRAIN_SCHEMA,
        ("prompt", pa.list_(MESSAGE)),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
    ]
)


def prepare_pairs(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    test_fraction: float,
    validation_pairs: int,
    seed: int,
    out: Path,
    source: Mapping[str, object] | None = None,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Split raw rows, drop what cannot be used, and write the files of a `data-<key>` folder.

    Args:
        rows: raw rows, as `load_rows` returns them.
        tokenizer: of the model to be trained; it is not changed, its saved copy may be.
        max_length: tokens of a prompt and an answer together; answers are cut at their end.
        test_fraction: share of the raw rows set aside for the final test.
        validation_pairs: raw rows taken out of the rest, to measure on during the search.
        seed: of both splits.
        out: an existing folder.
        source: where the rows come from, for the report; `source_of` says it.
        reading: how the search says they are to be read.

    Returns:
        The data report: `columns` (of each part of a pair) and `unread` (the other columns);
        `examples`, the number of a row for each reason and reading; and for each split `raw`,
        `kept`, `dropped` (by reason, the keys of `REASONS`; `raw` is the sum of `kept` and these),
        `read_as` (kept pairs that were read otherwise than their columns say, the keys of
        `READINGS`), `truncated` (share of kept pairs with a cut answer), `longer_is_chosen`
        (accuracy of preferring the answer of more tokens, ties half), `prompt_tokens` and
        `answer_tokens` (`median` and `p95`, before the cut), `distinct_prompts`, `merged_at_cut`
        (answers tokenised apart from their prompt).

    Raises:
        UserError: if no column is known to hold the prompts, too few rows are left in a split, or
            the tokenizer cannot serve.
    """
    reading = reading or Reading()
    reader = Reader(rows, reading, str((source or {}).get("path", "")))
    template = settle(
        copy.deepcopy(tokenizer), reading.chat_template_kwargs, bool(reader.columns.tools)
    )
    seen: dict[str, set[bytes]] = {}
    splits = {}
    for split, indices in split_rows(len(rows), test_fraction, validation_pairs, seed).items():
        splits[split], seen[split] = write_split(
            reader, indices, template, max_length, seen, out / f"{split}.parquet"
        )
        refuse_if_empty(split, splits[split], reader.examples)
    template.tokenizer.save_pretrained(out / "tokenizer")
    report: dict[str, Any] = {
        "source": {**(source or {}), "rows": len(rows)},
        "columns": reader.columns.used(),
        "unread": reader.unread,
        "seed": seed,
        "test_fraction": test_fraction,
        "validation_pairs": validation_pairs,
        "max_length": max_length,
        "chat_template": {
            "origin": template.origin,
            "text": template.tokenizer.chat_template,
            "kwargs": dict(reading.chat_template_kwargs),
            "answer_begins_with": template.head,
        },
        "eos_token": template.tokenizer.eos_token,
        "pad_token": template.tokenizer.pad_token,
        "reasons": REASONS,
        "readings": READINGS,
        "examples": reader.examples,
        "splits": splits,
    }
    write_json(out / "data_report.json", report)
    return report


def load_pairs(path: Path) -> Dataset:
    """Load one of the parquet files into memory, so that it travels to other nodes by value.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        return in_memory(pq.read_table(path, memory_map=False))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"The prepared pairs {str(path)!r} cannot be read: remove the folder "
            f"{str(path.parent)!r} and they are prepared again."
        ) from error


def split_rows(
    rows: int, test_fraction: float, validation_pairs: int, seed: int
) -> dict[str, np.ndarray]:
    """Split row numbers as `datasets.Dataset.train_test_split` splits rows, twice.

    Raises:
        UserError: if there are too few rows for the three parts.
    """
    numbers = Dataset.from_dict({"row": np.arange(rows)})
    try:
        parts = numbers.train_test_split(test_size=test_fraction, seed=seed)
        rest = parts["train"].train_test_split(test_size=validation_pairs, seed=seed)
    except ValueError as error:
        raise UserError(
            f"{rows} rows cannot be split into a test fraction of {test_fraction}, "
            f"{validation_pairs} validation pairs and some to train on: set "
            "dataset.validation_pairs lower, or use more rows."
        ) from error
    splits = {"train": rest["train"], "validation": rest["test"], "test": parts["test"]}
    return {split: splits[split].with_format("numpy")["row"][:] for split in SPLITS}


def write_split(
    reader: Reader,
    indices: np.ndarray,
    template: ChatTemplate,
    max_length: int,
    seen: Mapping[str, set[bytes]],
    path: Path,
) -> tuple[dict[str, Any], set[bytes]]:
    """Write the usable pairs of one split, batch by batch.

    Args:
        seen: the prompts of the splits that this one must not share any with.

    Returns:
        The split's part of the report, and its prompts (see `fingerprint`).
    """
    dropped: Counter[str] = Counter()
    read_as: Counter[str] = Counter()

    def drop(reason: str, number: int) -> None:
        dropped[reason] += 1
        reader.example([reason], number)

    prompts: set[bytes] = set()
    lengths: list[tuple[int, int, int]] = []
    merged = 0
    schema = HELD_OUT_SCHEMA if seen else TRAIN_SCHEMA
    unfinished = path.with_name(f".{path.name}")
    with pq.ParquetWriter(unfinished, schema) as writer:
        for start in range(0, len(indices), BATCH):
            numbers = indices[start : start + BATCH]
            usable: list[tuple[int, Pair, Texts]] = []
            rows = records(reader.rows, numbers)
            for number, row in zip(numbers.tolist(), rows, strict=True):
                try:
                    usable.append((number, *read_row(row, reader, template, seen)))
                except Unusable as reason:
                    drop(str(reason), number)
            kept: list[dict[str, Any]] = []
            tokens = template.tokenize([texts for _, _, texts in usable])
            for (number, pair, texts), ids in zip(usable, tokens, strict=True):
                room = max_length - len(ids.prompt)
                if room <= 0:
                    drop("prompt_too_long", number)
                elif ids.chosen[:room] == ids.rejected[:room]:
                    drop("equal_when_cut", number)
                else:
                    read_as.update(pair.read_as)
                    reader.example(pair.read_as, number)
                    prompts.add(fingerprint(texts.prompt))
                    lengths.append((len(ids.prompt), len(ids.chosen), len(ids.rejected)))
                    merged += ids.merged
                    kept.append(
                        {
                            "row": number,
                            "prompt_ids": ids.prompt,
                            "chosen_ids": ids.chosen[:room],
                            "rejected_ids": ids.rejected[:room],
                            # Of these, train's schema has no column.
                            "prompt": pair.prompt,
                            "chosen": words(pair.chosen),
                            "rejected": words(pair.rejected),
                        }
                    )
            writer.write_table(pa.Table.from_pylist(kept, schema=schema))
    unfinished.replace(path)
    counts = np.array(lengths, dtype=np.int64).reshape(-1, 3)
    longest = counts[:, 0] + counts[:, 1:].max(axis=1)
    return {
        "raw": len(indices),
        "kept": len(counts),
        "dropped": {reason: dropped[reason] for reason in REASONS},
        "read_as": {key: read_as[key] for key in READINGS if read_as[key]},
        "truncated": share(int((longest > max_length).sum()), len(counts)),
        "longer_is_chosen": longer_is_chosen(counts[:, 1], counts[:, 2]),
        "prompt_tokens": quantiles(counts[:, 0]),
        "answer_tokens": quantiles(counts[:, 1:].ravel()),
        "distinct_prompts": len(prompts),
        "merged_at_cut": merged,
    }, prompts


def longer_is_chosen(chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    """Return how often the longer answer is the chosen one, ties counting half."""
    wins = (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()
    return share(float(wins), len(chosen))


def share(part: float, whole: int) -> float | None:
    """Return part / whole to four digits; None of nothing."""
    return round(part / whole, 4) if whole else None


def quantiles(tokens: Sequence[int] | np.ndarray) -> dict[str, float] | None:
    """Return the median and the 95th percentile; None of nothing."""
    if len(tokens) == 0:
        return None
    median, p95 = np.percentile(tokens, [50, 95])
    return {"median": round(float(median), 1), "p95": round(float(p95), 1)}


def refuse_if_empty(split: str, report: Mapping[str, Any], examples: Mapping[str, int]) -> None:
    """Refuse a split with too few usable pairs.

    Args:
        split: its name.
        report: its part of the data report.
        examples: number of a row for each reason.

    Raises:
        UserError: with the counts that led there.
    """
    needed = 1 if split == "train" else MIN_HELD_OUT
    if report["kept"] >= needed:
        return
    dropped = [
        f"{count} because {REASONS[reason]} (such as row {examples[reason]})"
        for reason, count in report["dropped"].items()
        if count
    ]
    ways = [WAYS_OUT[reason] for reason in WAYS_OUT if report["dropped"][reason]]
    why = f", dropped {', '.join(dropped)}" if dropped else ""
    raise UserError(
        f"Of {report['raw']} rows in the {split} split {report['kept']} can be used{why}, and at "
        f"least {needed} must be: fix the data, or change dataset.validation_pairs, "
        f"dataset.test_fraction or training.max_length{''.join(f'; {way}' for way in ways)}."
    )
