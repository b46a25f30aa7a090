"""Preference pairs, ready to train on: split, cleaned, tokenised, and every row accounted for."""

import copy
import hashlib
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
from trainables.data.chat_template import ChatTemplate, Texts, Unrenderable, settle
from trainables.data.files import in_memory
from trainables.data.pairs import Pair, Unusable, read_pair

SPLITS = ("train", "validation", "test")
REASONS = {
    "malformed": "neither texts nor lists of {role, content} messages",
    "no_prompt": "no user's turn before the answers",
    "several_turns": "an answer is not exactly one assistant's turn",
    "empty_answer": "an answer is empty",
    "equal_answers": "both answers are the same",
    "eos_in_answer": "an answer spells out the EOS token",
    "template": "the chat template refuses the conversation",
    "also_in_train": "the prompt is also in train",
    "also_in_validation": "the prompt is also in validation",
    "prompt_too_long": "the prompt alone fills max_length",
    "equal_when_cut": "both answers are the same once cut to max_length",
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

    Returns:
        The data report: for each split `raw`, `kept`, `dropped` (by reason, the keys of `REASONS`;
        `raw` is the sum of `kept` and these), `truncated` (share of kept pairs with a cut answer),
        `longer_is_chosen` (accuracy of preferring the answer of more tokens, ties half),
        `prompt_tokens` and `answer_tokens` (`median` and `p95`, before the cut),
        `distinct_prompts`, `merged_at_cut` (answers tokenised apart from their prompt).

    Raises:
        UserError: if too few rows are left in a split, or the tokenizer cannot serve.
    """
    template = settle(copy.deepcopy(tokenizer))
    seen: dict[str, set[bytes]] = {}
    splits = {}
    for split, indices in split_rows(len(rows), test_fraction, validation_pairs, seed).items():
        splits[split], seen[split] = write_split(
            rows, indices, template, max_length, seen, out / f"{split}.parquet"
        )
        refuse_if_empty(split, splits[split])
    template.tokenizer.save_pretrained(out / "tokenizer")
    report: dict[str, Any] = {
        "source": {**(source or {}), "rows": len(rows)},
        "seed": seed,
        "test_fraction": test_fraction,
        "validation_pairs": validation_pairs,
        "max_length": max_length,
        "chat_template": {"origin": template.origin, "text": template.tokenizer.chat_template},
        "eos_token": template.tokenizer.eos_token,
        "pad_token": template.tokenizer.pad_token,
        "reasons": REASONS,
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
    rows: Dataset,
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
    prompts: set[bytes] = set()
    lengths: list[tuple[int, int, int]] = []
    merged = 0
    schema = HELD_OUT_SCHEMA if seen else TRAIN_SCHEMA
    unfinished = path.with_name(f".{path.name}")
    with pq.ParquetWriter(unfinished, schema) as writer:
        for start in range(0, len(indices), BATCH):
            numbers = indices[start : start + BATCH]
            usable: list[tuple[int, Pair, Texts]] = []
            for number, row in zip(numbers.tolist(), records(rows, numbers), strict=True):
                try:
                    usable.append((number, *read_row(row, template, seen)))
                except Unusable as reason:
                    dropped[str(reason)] += 1
            kept: list[dict[str, Any]] = []
            tokens = template.tokenize([texts for _, _, texts in usable])
            for (number, pair, texts), ids in zip(usable, tokens, strict=True):
                room = max_length - len(ids.prompt)
                if room <= 0:
                    dropped["prompt_too_long"] += 1
                elif ids.chosen[:room] == ids.rejected[:room]:
                    dropped["equal_when_cut"] += 1
                else:
                    prompts.add(fingerprint(texts.prompt))
                    lengths.append((len(ids.prompt), len(ids.chosen), len(ids.rejected)))
                    merged += ids.merged
                    kept.append(
                        {
                            "row": number,
                            "prompt_ids": ids.prompt,
                            "chosen_ids": ids.chosen[:room],
                            "rejected_ids": ids.rejected[:room],
                            **vars(pair),  # of which train's schema has no column
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
        "truncated": share(int((longest > max_length).sum()), len(counts)),
        "longer_is_chosen": longer_is_chosen(counts[:, 1], counts[:, 2]),
        "prompt_tokens": quantiles(counts[:, 0]),
        "answer_tokens": quantiles(counts[:, 1:].ravel()),
        "distinct_prompts": len(prompts),
        "merged_at_cut": merged,
    }, prompts


def read_row(
    row: Mapping[str, object], template: ChatTemplate, seen: Mapping[str, set[bytes]]
) -> tuple[Pair, Texts]:
    """Return a row's pair as it is and as the template writes it.

    Raises:
        Unusable: with one of `REASONS`.
    """
    pair = read_pair(row)
    eos = template.tokenizer.eos_token
    if eos in pair.chosen or eos in pair.rejected:
        # Inside an answer it would end it for the model, and what follows would never be generated.
        raise Unusable("eos_in_answer")
    try:
        texts = template.render(pair.prompt, pair.chosen, pair.rejected)
    except Unrenderable as error:
        raise Unusable("template") from error
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


def refuse_if_empty(split: str, report: Mapping[str, Any]) -> None:
    """Refuse a split with too few usable pairs.

    Raises:
        UserError: with the counts that led there.
    """
    needed = 1 if split == "train" else MIN_HELD_OUT
    if report["kept"] >= needed:
        return
    dropped = [
        f"{count} because {REASONS[reason]}" for reason, count in report["dropped"].items() if count
    ]
    why = f", dropped {', '.join(dropped)}" if dropped else ""
    raise UserError(
        f"Of {report['raw']} rows in the {split} split {report['kept']} can be used{why}, and at "
        f"least {needed} must be: fix the data, or change dataset.validation_pairs, "
        "dataset.test_fraction or training.max_length."
    )
