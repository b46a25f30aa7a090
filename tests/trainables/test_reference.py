"""The reference's stored log-probs and answers, made from prepared files by the small base."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from trainables import reference
from trainables.devices import device_and_dtype
from trainables.evaluation.logprobs import sequence_logps
from trainables.evaluation.sampling import Sampling, distinct_prompts, sample_answers
from trainables.fused_head import load_scorer
from trainables.judges.load import load_judge
from trainables.models import load_model, load_tokenizer
from trainables.quickstart.world import BASE, rows
from trainables.reference import logps_of_pairs, read_pairs, reference_answers
from trainables.reference_files import load_answers, load_logps, save_logps

CPU = torch.device("cpu")
PAIRS = 24
SAMPLING = Sampling(max_new_tokens=24, seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of prepared data; the last four pairs repeat the first four prompts."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = load_tokenizer(BASE)
    tokenizer.save_pretrained(folder / "tokenizer")

    def answer(messages: list[dict[str, str]]) -> list[int]:
        text = " " + messages[0]["content"] + tokenizer.eos_token
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    raw = rows(PAIRS)
    asked = [row["prompt"] for row in raw[:-4] + raw[:4]]
    columns = {
        "row": list(range(50, 50 + PAIRS)),
        "prompt": asked,
        "prompt_ids": [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            for prompt in asked
        ],
        "chosen_ids": [answer(row["chosen"]) for row in raw],
        "rejected_ids": [answer(row["rejected"]) for row in raw],
    }
    for split in ("validation", "test"):
        pyarrow.parquet.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let the base answer 8 validation prompts and every test prompt, with seed 3."""
    out = tmp_path_factory.mktemp("answers")
    reference_answers(
        BASE,
        data,
        out,
        load_judge("quickstart", CPU),
        {"validation": 8, "test": 1000},
        SAMPLING,
    )
    return out


def test_stored_log_probs_are_those_of_each_pair_in_file_order(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "ROWS_AT_ONCE", 7)
    model, table = load_scorer(BASE), read_pairs(data / "test.parquet")
    options: dict[str, Any] = {"batch_size": 8, "pad_token_id": 1}
    save_logps(tmp_path / "test.npz", *logps_of_pairs(model, table, **options))
    assert [path.name for path in tmp_path.iterdir()] == ["test.npz"]
    chosen, rejected = load_logps(tmp_path / "test.npz")
    assert chosen.dtype == rejected.dtype == np.float32
    pairs = table.to_pydict()
    for stored, side in ((chosen, "chosen_ids"), (rejected, "rejected_ids")):
        expected = sequence_logps(model, pairs["prompt_ids"], pairs[side], **options)
        assert stored == pytest.approx(expected, abs=1e-4)

    even, odd = (
        logps_of_pairs(model, table.filter(np.arange(PAIRS) % 2 == part), **options)[0]
        for part in (0, 1)
    )
    assert np.stack([even, odd], axis=1).ravel() == pytest.approx(chosen, abs=1e-4)


def test_log_probs_that_do_not_fit_are_computed_in_smaller_batches(data: Path) -> None:
    model, table = load_scorer(BASE), read_pairs(data / "test.parquet")
    expected = logps_of_pairs(model, table, batch_size=64, pad_token_id=1)
    sizes = []

    def small_device(module: Any, inputs: Any, options: dict[str, Any]) -> None:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(small_device, with_kwargs=True)
    found = logps_of_pairs(model, table, batch_size=64, pad_token_id=1)
    assert sizes[:4] == [2 * PAIRS, 32, 16, 8] and max(sizes[4:]) == 8
    assert np.concatenate(found) == pytest.approx(np.concatenate(expected), abs=1e-4)


def test_a_split_without_pairs_has_no_log_probs(data: Path) -> None:
    empty = read_pairs(data / "test.parquet").slice(0, 0)
    chosen, rejected = logps_of_pairs(load_scorer(BASE), empty, batch_size=8, pad_token_id=1)
    assert chosen.shape == rejected.shape == (0,)


def test_answers_are_one_for_each_distinct_prompt_in_the_documented_form(made: Path) -> None:
    lines = load_answers(made / "validation.jsonl")
    assert [line["row"] for line in lines] == list(range(50, 58))
    assert len(load_answers(made / "test.jsonl")) == PAIRS - 4  # four prompts stand there twice
    raw = rows(PAIRS)
    judge = load_judge("quickstart", CPU)
    for line, row in zip(lines, raw, strict=False):
        names = ["row", "prompt", "answer", "tokens", "ended", "repetition", "score"]
        assert list(line) == names
        assert line["prompt"] == row["prompt"][-1]["content"]
        assert line["tokens"] >= 1
        assert [line["score"]] == judge([line["prompt"]], [line["answer"]])


def test_without_a_judge_answers_have_no_score(data: Path, tmp_path: Path) -> None:
    reference_answers(BASE, data, tmp_path, None, {"validation": 2, "test": 2}, SAMPLING)
    first, second = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert json.loads(first)["score"] is json.loads(second)["score"] is None


def test_the_reference_draws_other_answers_than_a_trial_with_the_same_seed(
    data: Path, made: Path
) -> None:
    # An untrained policy must not tie with the reference's very words: see REFERENCE_STREAM.
    lines = load_answers(made / "test.jsonl")
    table = pyarrow.parquet.read_table(data / "test.parquet").to_pydict()
    policy, tokenizer = load_model(BASE), load_tokenizer(BASE)
    answers = sample_answers(policy, tokenizer, distinct_prompts(table, PAIRS), SAMPLING)
    same = sum(a.text == line["answer"] for a, line in zip(answers, lines, strict=True))
    assert same < len(lines) / 2


def test_precision_means_bf16_where_the_hardware_has_it() -> None:
    assert device_and_dtype("fp32")[1] is None
    assert device_and_dtype("bf16")[1] is torch.bfloat16
    device, dtype = device_and_dtype("auto")
    assert dtype is (torch.bfloat16 if device.type == "cuda" else None)
