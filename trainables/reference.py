"""Log-probs of the pairs and sampled answers of the reference, which every trial compares with.

They are computed once for a search, in the files that docs/run_folder.md lists.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from search_spaces.errors import UserError
from trainables.artifacts import write_text
from trainables.data.preferences import load_pairs
from trainables.devices import device_and_dtype
from trainables.evaluation.batch_size import BatchSize
from trainables.evaluation.logprobs import Ids, LogProbs, sequence_logps
from trainables.evaluation.sampling import (
    Sampling,
    answer_lines,
    distinct_prompts,
    sample_answers,
)
from trainables.judges import Judge
from trainables.models import load_model, load_tokenizer
from trainables.prepared import Split
from trainables.reference_files import load_logps, scored_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

ROWS_AT_ONCE = 4096  # as Python lists, the token ids of a whole data set take gigabytes

# The reference draws other random numbers than the trials. With the same ones a policy close to it
# would repeat its answers word for word, and ties would hide the noise of the comparison; drawn
# independently, an untrained policy wins half of the prompts in expectation, with the spread that
# every other trial has too.
REFERENCE_STREAM = 1_000_003


def read_pairs(path: Path) -> pa.Table:
    """Read the token ids of a parquet file of pairs."""
    return pyarrow.parquet.read_table(path, columns=["prompt_ids", "chosen_ids", "rejected_ids"])


def logps_of_pairs(
    model: "PreTrainedModel",
    pairs: pa.Table,
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: torch.dtype | None = None,
) -> tuple[LogProbs, LogProbs]:
    """Return the log-probs of the chosen and of the rejected answers, nats, shape (pairs,) each.

    A pair's numbers do not depend on the others, so that devices can divide a split. Where
    `batch_size` answers do not fit on the device, fewer go through the model at a time.

    Raises:
        torch.OutOfMemoryError: one answer at a time does not fit.
    """
    batch = BatchSize(batch_size)
    parts = [np.zeros((2, 0), dtype=np.float32)]
    for start in range(0, pairs.num_rows, ROWS_AT_ONCE):
        rows = pairs.slice(start, ROWS_AT_ONCE).to_pydict()
        prompts, answers = rows["prompt_ids"] * 2, rows["chosen_ids"] + rows["rejected_ids"]
        options = {"pad_token_id": pad_token_id, "autocast": autocast}
        score = partial(_score, model, prompts, answers, options)
        parts.append(batch.run(score).reshape(2, -1))
    chosen, rejected = np.concatenate(parts, axis=1)
    return chosen, rejected


def _score(
    model: "PreTrainedModel",
    prompts: list[Ids],
    answers: list[Ids],
    options: Mapping[str, Any],
    size: int,
) -> LogProbs:
    return sequence_logps(model, prompts, answers, batch_size=size, **options)


def reference_answers(
    model: Path,
    data: Path,
    out: Path,
    judge: Judge | None,
    prompts: Mapping[str, int],
    sampling: Sampling,
    trust_remote_code: bool = False,
) -> None:
    """Sample and judge the reference's answers: write `<split>.jsonl` for each split.

    Args:
        prompts: how many distinct prompts of each split, from the first.
        sampling: as trials sample; the reference draws from another stream of its seed.

    Raises:
        UserError: one answer at a time does not fit on the device.
    """
    device, _ = device_and_dtype(sampling.precision)
    policy = load_model(model, trust_remote_code=trust_remote_code).to(device)
    tokenizer = load_tokenizer(data / "tokenizer", trust_remote_code=trust_remote_code)
    sampling = replace(sampling, seed=sampling.seed + REFERENCE_STREAM)
    for split, count in prompts.items():
        columns = ["row", "prompt", "prompt_ids"]
        pairs = pyarrow.parquet.read_table(data / f"{split}.parquet", columns=columns).to_pydict()
        asked = distinct_prompts(pairs, count)
        try:
            answers = sample_answers(policy, tokenizer, asked, sampling)
        except torch.OutOfMemoryError as error:
            raise UserError(
                "sampling the reference's answers does not fit on the device, even one answer at "
                "a time: lower evaluation.max_new_tokens or training.max_length"
            ) from error
        questions, texts = [p.question for p in asked], [answer.text for answer in answers]
        scores = judge(questions, texts) if judge else None
        lines = answer_lines(asked, answers, scores)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(out / f"{split}.jsonl", text)


def scored_pairs(split: Split) -> tuple["Dataset", LogProbs, LogProbs]:
    """Return the pairs of a split that have log-probs under the reference, and these."""
    pairs, (chosen, rejected) = load_pairs(split.pairs), load_logps(split.logps)
    rows = scored_rows(split.logps)
    if len(rows) < len(pairs):
        pairs = pairs.select(rows)
    return pairs, chosen[rows], rejected[rows]
