"""Preference pairs: every format, every reason to drop a row, and no row unaccounted for."""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from search_spaces.errors import UserError
from trainables.data.chat_template import OURS, settle
from trainables.data.columns import Columns, Reading
from trainables.data.messages import Unusable
from trainables.data.pairs import Pair, read_pair
from trainables.data.preferences import load_pairs, longer_is_chosen, prepare_pairs, split_rows
from trainables.data.reader import REASONS
from trainables.data.sources import load_rows, source_of

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")

EOS = "<|endoftext|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# The generation prompt opens a thought that the finished conversation does not have.
THINKING = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: <think>' }}{% endif %}"
)


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Every ASCII character is one token, but two newlines are one token together."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = "\u010a"  # how byte-level BPE spells it
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, newline * 2])}
    core = Tokenizer(models.BPE(vocabulary, [(newline, newline)]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS)
    if template == CHATML:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def prepare(
    rows: list[dict[str, Any]] | Dataset,
    out: Path,
    tokenizer: Any = None,
    max_length: int = 64,
    test_fraction: float = 0.25,
    validation_pairs: int = 10,
) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return prepare_pairs(
        rows if isinstance(rows, Dataset) else Dataset.from_list(rows),
        tokenizer or byte_tokenizer(),
        max_length=max_length,
        test_fraction=test_fraction,
        validation_pairs=validation_pairs,
        seed=7,
        out=out,
    )


def numbered(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Q{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


def read(row: dict[str, Any]) -> Pair:
    prompt = ("prompt",) if "prompt" in row else ()
    return read_pair(row, Columns(prompt, "chosen", "rejected", None, None, None), Reading())


# Rows: each format holds the same pair, except where a prompt has more turns.

ASKED, GOOD, BAD = "How are you?", "Fine.", "Bad."


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        pytest.param(
            {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
            [user(ASKED)],
            id="explicit-standard",
        ),
        pytest.param(
            {"chosen": f"{ASKED} {GOOD}", "rejected": f"{ASKED} {BAD}"},
            [user(ASKED)],
            id="implicit-standard",
        ),
        pytest.param(
            {"prompt": [user(ASKED)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
            [user(ASKED)],
            id="explicit-conversational",
        ),
        pytest.param(
            {"chosen": [user(ASKED), assistant(GOOD)], "rejected": [user(ASKED), assistant(BAD)]},
            [user(ASKED)],
            id="implicit-conversational",
        ),
        pytest.param(
            {
                "prompt": ASKED,
                "chosen": [user(ASKED), assistant(GOOD)],
                "rejected": [user(ASKED), assistant(BAD)],
                "chosen-rating": 5.0,
            },
            [user(ASKED)],
            id="argilla",
        ),
        pytest.param(
            {"prompt": ASKED, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
            [user(ASKED)],
            id="text-prompt-and-answer-messages",
        ),
        pytest.param(
            {
                "prompt": [user(ASKED)],
                "chosen": [user(ASKED), assistant(GOOD)],
                "rejected": [user(ASKED), assistant(BAD)],
            },
            [user(ASKED)],
            id="prompt-repeated-in-answers",
        ),
        pytest.param(
            {"prompt": [user(ASKED)], "chosen": GOOD, "rejected": BAD},
            [user(ASKED)],
            id="prompt-messages-and-answer-texts",
        ),
        pytest.param(
            {
                "prompt": [system("Be kind."), user("Hi"), assistant("Hello"), user(ASKED)],
                "chosen": [assistant(GOOD)],
                "rejected": [assistant(BAD)],
            },
            [system("Be kind."), user("Hi"), assistant("Hello"), user(ASKED)],
            id="several-turns-and-system",
        ),
        pytest.param(
            {
                "chosen": [user("Hi"), assistant("Hello"), user(ASKED), assistant(GOOD)],
                "rejected": [user("Hi"), assistant("Hello"), user(ASKED), assistant(BAD)],
            },
            [user("Hi"), assistant("Hello"), user(ASKED)],
            id="several-turns-implicit",
        ),
    ],
)
def test_every_format_gives_the_same_pair(row: dict[str, Any], prompt: list[Any]) -> None:
    pair = read(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, assistant(GOOD), assistant(BAD))


def test_an_implicit_prompt_of_text_ends_where_a_word_ends() -> None:
    pair = read({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert pair.prompt == [user("The sky is")]
    assert (pair.chosen, pair.rejected) == (assistant("blue."), assistant("black."))


TALK = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": 1, "rejected": 2}, "malformed"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "malformed"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "malformed"),
        ({"prompt": "q", "chosen": "a", "rejected": [assistant("b")]}, "malformed"),
        ({**TALK, "chosen": [{"from": "whom?", "value": "a"}]}, "malformed"),
        ({**TALK, "chosen": ["a"]}, "malformed"),
        ({"prompt": None, "chosen": "The sky is blue", "rejected": "The sky is red"}, "malformed"),
        ({**TALK, "chosen": [{"role": "assistant", "content": None}]}, "malformed"),
        ({**TALK, "prompt": [{"role": 1, "content": "q"}]}, "malformed"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "no_prompt"),
        ({"chosen": "apples", "rejected": "bananas"}, "no_prompt"),
        ({**TALK, "prompt": []}, "no_prompt"),
        ({**TALK, "prompt": [system("q")]}, "no_prompt"),
        ({**TALK, "prompt": [user("q"), assistant("a")]}, "begun_answer"),
        ({**TALK, "chosen": [assistant("a"), user("b"), assistant("c")]}, "several_turns"),
        ({**TALK, "chosen": [user("a")]}, "several_turns"),
        ({"prompt": "q", "chosen": " \n", "rejected": "b"}, "empty_answer"),
        ({**TALK, "rejected": []}, "empty_answer"),
        ({"chosen": "The sky is blue", "rejected": "The sky is "}, "empty_answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "a "}, "equal_answers"),
        ({"chosen": "a b", "rejected": "a b"}, "equal_answers"),
        ({**TALK, "rejected": [assistant("a")]}, "equal_answers"),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("a")]},
         "equal_answers"),
    ],
)  # fmt: skip
def test_a_row_without_a_usable_pair_has_its_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        read(row)


# The template and the tokens.

PLAIN = (
    f"System: Be kind.\nUser: Hi\nAssistant: Hello{EOS}User: How are you?\nAssistant: Fine.{EOS}"
)
CONVERSATION = [system("Be kind."), user("Hi "), assistant("Hello"), user("How are you?")]


def test_our_template_starts_answers_with_a_space_and_ends_them_with_eos() -> None:
    texts = settle(byte_tokenizer()).render(CONVERSATION, assistant("Fine.\n"), assistant("Bad."))
    assert texts.prompt + texts.chosen == PLAIN
    assert texts.prompt.endswith("Assistant:")
    assert (texts.chosen, texts.rejected) == (f" Fine.{EOS}", f" Bad.{EOS}")


def test_our_template_begins_with_a_bos_token_that_is_not_eos() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    texts = settle(tokenizer).render([user("q")], assistant("a"), assistant("b"))
    assert texts.prompt == "<s>User: q\nAssistant:"


@pytest.mark.parametrize("template", [None, CHATML], ids=["ours", "chatml"])
def test_prompt_and_answer_are_the_template_of_the_whole_conversation(template: str | None) -> None:
    tokenizer = byte_tokenizer(template)
    settled = settle(tokenizer)
    texts = settled.render(CONVERSATION, assistant("Fine."), assistant("Bad."))
    (ids,) = settled.tokenize([texts])
    whole = tokenizer.apply_chat_template([*CONVERSATION, assistant("Fine.")], return_dict=False)
    generated_from = tokenizer.apply_chat_template(
        CONVERSATION, add_generation_prompt=True, return_dict=False
    )
    assert ids.prompt == generated_from
    assert ids.prompt + ids.chosen == whole[: len(ids.prompt) + len(ids.chosen)]
    # All that is left of the whole is what ChatML writes after its end-of-turn token.
    assert tokenizer.decode(whole[len(ids.prompt + ids.chosen) :]) == ("\n" if template else "")
    assert ids.chosen[-1] == ids.rejected[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids.chosen, skip_special_tokens=True).strip() == "Fine."
    assert ids.merged == 0


def test_the_token_that_ends_a_turn_becomes_eos_and_pads() -> None:
    tokenizer = byte_tokenizer(CHATML)
    size = len(tokenizer)
    settled = settle(tokenizer)
    assert (settled.origin, tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == (
        "tokenizer",
        "<|im_end|>",
        "<|im_end|>",
        size,
    )


def test_of_several_named_templates_the_plain_one_stays() -> None:
    """Each other one would be a file in a folder of its own beside the model that is published."""
    template = OURS.read_text(encoding="utf-8")
    given = byte_tokenizer(template)
    given.chat_template = {"default": template, "tool_use": "{{ 1 }}"}
    assert settle(given).tokenizer.chat_template == template


def test_a_template_without_an_end_of_turn_gets_eos_and_an_own_padding_token_stays() -> None:
    tokenizer = byte_tokenizer(BARE)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    texts = settle(tokenizer).render([user("q")], assistant("a"), assistant("b"))
    assert (texts.prompt, texts.chosen) == ("user: q\nassistant: ", f"a{EOS}")
    assert tokenizer.pad_token == "<pad>"


def test_tokens_that_would_merge_at_the_cut_are_kept_apart_and_counted() -> None:
    tokenizer = byte_tokenizer(CHATML)
    settled = settle(tokenizer)
    texts = settled.render([user("q")], assistant("\nFine."), assistant("Bad."))
    (ids,) = settled.tokenize([texts])
    # Generation starts after one newline; "\n\n" would have been one token.
    assert tokenizer.decode(ids.prompt).endswith("assistant\n")
    assert tokenizer.decode(ids.chosen) == "\nFine.<|im_end|>"
    assert ids.merged == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (THINKING, "in another way"),
        ("{{ raise_exception('no') }}", "refuses"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not repeat"),
    ],
)
def test_a_template_that_cannot_serve_is_refused(template: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settle(byte_tokenizer(template))


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        settle(tokenizer)


def test_a_row_that_only_the_template_refuses_is_dropped_with_that_reason(tmp_path: Path) -> None:
    odd = {"prompt": [{"role": "tool", "content": "42"}, user("q")], "chosen": [assistant("a")],
           "rejected": [assistant("b")]}  # fmt: skip
    rows = [
        {"prompt": [user(f"q{i}")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
        for i in range(39)
    ]
    report = prepare([*rows, odd], tmp_path)
    assert dropped(report)["template"] == 1


# Splits.


def test_ultrafeedback_splits_as_published() -> None:
    parts = split_rows(60_917, 0.2, 1024, 42)
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 48_733 - 1024,
        "validation": 1024,
        "test": 12_184,
    }
    assert sorted(np.concatenate(list(parts.values()))) == list(range(60_917))


def test_the_test_split_is_the_one_that_datasets_makes() -> None:
    rows = Dataset.from_dict({"n": list(range(50))})
    theirs = rows.train_test_split(test_size=0.2, seed=3)["test"]["n"]
    assert split_rows(50, 0.2, 8, 3)["test"].tolist() == list(theirs)


def test_too_few_rows_to_split_are_refused() -> None:
    with pytest.raises(UserError, match="validation_pairs lower"):
        split_rows(20, 0.2, 16, 0)


def test_no_prompt_of_a_held_out_split_stands_in_another(tmp_path: Path) -> None:
    # 60 prompts with two pairs each, which differ in spacing only, and 120 with one.
    number = [i % 60 if i < 120 else i for i in range(240)]
    rows = [
        {"prompt": f"Q {n}" + " " * (i % 7), "chosen": f"a{i}", "rejected": f"b{i}"}
        for i, n in enumerate(number)
    ]
    raw = {name: [number[i] for i in part] for name, part in split_rows(240, 0.25, 40, 7).items()}
    in_train = [n for n in raw["validation"] if n in raw["train"]]
    test_in_train = [n for n in raw["test"] if n in raw["train"]]
    test_in_validation = [
        n for n in raw["test"] if n in raw["validation"] and n not in raw["train"]
    ]
    report = prepare(rows, tmp_path, validation_pairs=40)
    splits = report["splits"]
    assert splits["validation"]["dropped"]["also_in_train"] == len(in_train) > 0
    assert splits["test"]["dropped"]["also_in_train"] == len(test_in_train) > 0
    assert splits["test"]["dropped"]["also_in_validation"] == len(test_in_validation) > 0
    prompts = {
        name: {number[i] for i in load_pairs(tmp_path / f"{name}.parquet")["row"]}
        for name in splits
    }
    assert not prompts["train"] & prompts["validation"]
    assert not (prompts["train"] | prompts["validation"]) & prompts["test"]


# The files.


def dropped(report: dict[str, Any]) -> dict[str, int]:
    return {
        reason: sum(split["dropped"][reason] for split in report["splits"].values())
        for reason in REASONS
    }


def adds_up(report: dict[str, Any], rows: int) -> None:
    for split in report["splits"].values():
        assert split["raw"] == split["kept"] + sum(split["dropped"].values())
    assert sum(split["raw"] for split in report["splits"].values()) == rows


def test_the_files_hold_what_the_format_says(tmp_path: Path) -> None:
    report = prepare(numbered(60), tmp_path)
    adds_up(report, 60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data_report.json", "test.parquet", "tokenizer", "train.parquet", "validation.parquet",
    ]  # fmt: skip
    assert json.loads((tmp_path / "data_report.json").read_text()) == report
    ids = ["row: int64"] + [
        f"{name}_ids: list<element: int32>" for name in ("prompt", "chosen", "rejected")
    ]
    text = [
        "prompt: list<element: struct<role: string, content: string>>",
        "chosen: string",
        "rejected: string",
    ]
    for split, columns in (("train", ids), ("validation", ids + text), ("test", ids + text)):
        schema = pq.read_schema(tmp_path / f"{split}.parquet")
        assert [f"{field.name}: {field.type}" for field in schema] == columns
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for row in load_pairs(tmp_path / "test.parquet"):
        number = row["row"]
        assert row["prompt"] == [user(f"Q{number}?")]
        assert (row["chosen"], row["rejected"]) == (f"yes {number}", f"no {number}")
        assert tokenizer.decode(row["prompt_ids"]) == f"User: Q{number}?\nAssistant:"
        assert tokenizer.decode(row["chosen_ids"]) == f" yes {number}{EOS}"
        assert tokenizer.decode(row["rejected_ids"]) == f" no {number}{EOS}"
    assert "Assistant:" in tokenizer.chat_template
    assert (tokenizer.pad_token, tokenizer.eos_token) == (EOS, EOS)


def test_the_callers_tokenizer_is_left_as_it_was(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    prepare(numbered(60), tmp_path, tokenizer)
    assert (tokenizer.chat_template, tokenizer.pad_token) == (None, None)


def test_loaded_pairs_are_in_memory_and_travel_by_value(tmp_path: Path) -> None:
    prepare(numbered(60), tmp_path)
    pairs = load_pairs(tmp_path / "train.parquet")
    assert pairs.cache_files == []
    (tmp_path / "train.parquet").unlink()
    assert pickle.loads(pickle.dumps(pairs))[:] == pairs[:]


def test_answers_are_cut_at_max_length_and_too_long_prompts_dropped(tmp_path: Path) -> None:
    # "User: " + 20 + "\nAssistant:" = 37 tokens of prompt, 7 are left of 44: " abcdef".
    def row(i: int, prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": f"{i:03}" + prompt, "chosen": chosen, "rejected": rejected}

    rows = [row(i, "." * 17, "abcdefghij", "x") for i in range(40)]  # chosen is cut
    rows += [row(i, "." * 17, "abcde", "y") for i in range(40, 80)]  # fits exactly, with EOS
    rows += [row(i, "." * 24, "a", "b") for i in range(80, 90)]  # 44 tokens of prompt
    rows += [row(i, "." * 17, "abcdefghij", "abcdefklmn") for i in range(90, 95)]  # equal when cut
    report = prepare(rows, tmp_path, max_length=44, validation_pairs=20)
    adds_up(report, 95)
    assert dropped(report) | {"prompt_too_long": 10, "equal_when_cut": 5} == dropped(report)
    assert sum(split["kept"] for split in report["splits"].values()) == 80
    cut = 0
    for name, split in report["splits"].items():
        pairs = load_pairs(tmp_path / f"{name}.parquet")
        assert all(len(r["prompt_ids"]) + len(r["chosen_ids"]) == 44 for r in pairs)
        here = sum(r["row"] < 40 for r in pairs)
        assert split["truncated"] == round(here / len(pairs), 4)
        cut += here
    assert cut == 40
    eos = AutoTokenizer.from_pretrained(tmp_path / "tokenizer").eos_token_id
    for r in load_pairs(tmp_path / "train.parquet"):
        assert (r["chosen_ids"][-1] == eos) == (r["row"] >= 40)
        assert r["rejected_ids"][-1] == eos


def test_an_answer_that_spells_eos_is_dropped(tmp_path: Path) -> None:
    odd = {"prompt": "q", "chosen": f"a{EOS}b", "rejected": "c"}
    report = prepare([*numbered(40), odd], tmp_path)
    assert dropped(report)["eos_in_answer"] == 1


def test_the_longer_answer_counts_one_and_a_tie_half() -> None:
    chosen, rejected = np.array([3, 3, 2, 5]), np.array([2, 3, 4, 1])
    assert longer_is_chosen(chosen, rejected) == (1 + 0.5 + 0 + 1) / 4


def test_the_report_describes_lengths(tmp_path: Path) -> None:
    report = prepare(numbered(60)[:60], tmp_path)
    # " yes 1" is longer than " no 1", always; "User: Q1?" + "\nAssistant:" is 20 or 21 tokens.
    for split in report["splits"].values():
        assert split["longer_is_chosen"] == 1.0
        assert 20 <= split["prompt_tokens"]["median"] <= split["prompt_tokens"]["p95"] <= 21
        assert split["distinct_prompts"] == split["kept"]
    assert report["chat_template"]["origin"] == "preftune"


@pytest.mark.parametrize(
    ("rows", "split", "words"),
    [
        (
            [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 60,
            "train",
            "35 because both answers",
        ),
        (numbered(45) + [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 5, "validation", ""),
    ],
)
def test_too_few_usable_pairs_are_refused_with_the_counts(
    rows: list[dict[str, str]], split: str, words: str, tmp_path: Path
) -> None:
    size = 10 if split == "train" else 6
    with pytest.raises(UserError, match=f"{split} split") as error:
        prepare(rows, tmp_path, validation_pairs=size)
    assert words in str(error.value)


# Sources.


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ROWS = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "score": i} for i in range(3)]
LINES = [json.dumps(row) for row in ROWS]


def as_parquet(folder: Path) -> Path:
    Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def as_jsonl(folder: Path) -> Path:
    return write_lines(folder / "rows.jsonl", [LINES[0], "", *LINES[1:]])


def as_gzip(folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(LINES).encode()))
    return path


def as_folder(folder: Path) -> Path:
    as_parquet(folder)
    return folder


def as_saved(folder: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder: Path) -> Path:
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `datasets`' cache out of the home folder."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))


@pytest.mark.parametrize(
    "write", [as_parquet, as_jsonl, as_gzip, as_folder, as_saved, as_saved_splits]
)
def test_every_source_gives_the_same_rows_and_is_left_alone(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    rows = load_rows(str(path)).data
    assert rows.to_list() == [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in ROWS]
    assert load_rows(str(path), split="train[1:2]").data["prompt"][:] == ["q1"]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_quickstart_has_rows() -> None:
    rows = load_rows("quickstart").data
    assert len(rows) > 1000
    assert read(rows[0]).prompt[-1]["role"] == "user"


def test_a_json_value_of_another_type_is_counted_as_malformed(tmp_path: Path) -> None:
    odd = [{"prompt": 1, "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": ["a"]}]
    talk = {"prompt": "q", "chosen": [user("q")], "rejected": "b"}
    half = '{"prompt": "q", "chosen": "\\ud800", "rejected": "b"}'
    lines = [json.dumps(row) for row in [*numbered(40), *odd, talk]] + [half]
    path = write_lines(tmp_path / "rows.jsonl", lines)
    report = prepare(load_rows(str(path)).data, tmp_path / "out")
    assert dropped(report)["malformed"] == 4
    adds_up(report, 44)


def test_json_conversations_keep_their_messages(tmp_path: Path) -> None:
    row = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
    path = write_lines(tmp_path / "rows.jsonl", [json.dumps(row)])
    assert read(load_rows(str(path)).data[0]).prompt == [user("q")]


def damaged_parquet(folder: Path) -> Path:
    path = as_parquet(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def damaged_gzip(folder: Path) -> Path:
    path = as_gzip(folder)
    path.write_bytes(path.read_bytes()[:-12])
    return path


def other_columns(folder: Path) -> Path:
    Dataset.from_dict({"question": ["q"], "choosen": ["a"], "rejected": ["b"]}).to_parquet(
        folder / "rows.parquet"
    )
    return folder / "rows.parquet"


def damaged_folder(folder: Path) -> Path:
    write_lines(folder / "train.jsonl", [LINES[0], LINES[1], '{"prompt": "q'])
    return folder


BAD_SOURCES: dict[str, tuple[Callable[[Path], Path | str], dict[str, Any], list[str]]] = {
    "no such file": (lambda f: f / "no.jsonl", {}, ["no data set", "no.jsonl", "Hub id"]),
    "misspelt relative file": (lambda f: "data/no.parquet", {}, ["no data set", "no.parquet"]),
    "not a Hub id": (lambda f: "a b c", {}, ["no data set", "a b c"]),
    "Hub out of reach": (lambda f: "preftune-tests/none", {}, ["cannot be reached", "tests/none"]),
    "other suffix": (lambda f: write_lines(f / "rows.csv", ["a"]), {}, ["rows.csv", ".parquet"]),
    "empty folder": (lambda f: f, {}, ["doesn't contain any data files"]),
    "split": (as_parquet, {"split": "test"}, ["no split 'test'", "train"]),
    "folder split": (as_folder, {"split": "dev"}, ["no split 'dev'", "train"]),
    "odd split": (as_parquet, {"split": "train[["}, ["no split 'train[['"]),
    "file name": (as_parquet, {"name": "x"}, ["`dataset.name` 'x'", "leave it out"]),
    "folder name": (as_folder, {"name": "x"}, ["`dataset.name`: x", "default"]),
    "local revision": (as_parquet, {"revision": "v1"}, ["`dataset.revision` 'v1'"]),
    "quickstart revision": (lambda f: "quickstart", {"revision": "v1"}, ["`dataset.revision`"]),
    "damaged parquet": (damaged_parquet, {}, ["rows.parquet", "damaged"]),
    "damaged gzip": (damaged_gzip, {}, ["rows.jsonl.gz", "damaged"]),
    "no gzip": (lambda f: write_lines(f / "x.jsonl.gz", LINES), {}, ["x.jsonl.gz", "damaged"]),
    "damaged line": (
        lambda f: write_lines(f / "x.jsonl", [LINES[0], '{"a": ']),
        {},
        ["Line 2", "x.jsonl"],
    ),
    "damaged line in a folder": (damaged_folder, {}, ["Line 3", "train.jsonl"]),
    "line is no object": (lambda f: write_lines(f / "x.jsonl", ["[1]"]), {}, ["Line 1"]),
    "empty file": (lambda f: write_lines(f / "x.jsonl", [""]), {}, ["no rows"]),
    "empty slice": (as_parquet, {"split": "train[:0]"}, ["no rows", "train[:0]"]),
    "columns": (other_columns, {}, ["no column chosen", "did you mean choosen", "question"]),
    "json columns": (
        lambda f: write_lines(f / "x.jsonl", ['{"a": 1}']),
        {},
        ["no column chosen or rejected", "it has a,", "`prompt`"],
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    write, options, words = BAD_SOURCES[case]
    with pytest.raises(UserError) as error:
        load_rows(str(write(tmp_path)), **options)
    message = str(error.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_another_content_has_another_source(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    first, of_folder = source_of(str(path)), source_of(str(tmp_path))
    assert source_of(str(path)) == first
    write_lines(path, LINES[:2])
    assert source_of(str(path))["sha256"] != first["sha256"]
    assert source_of(str(tmp_path))["sha256"] != of_folder["sha256"]
    with pytest.raises(UserError, match="no data set"):
        source_of(str(tmp_path / "none"))


def test_damaged_prepared_pairs_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train\.parquet"):
        load_pairs(tmp_path / "train.parquet")


# Anything at all.

texts = st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["q", "a b", EOS, "\n"]))
odd_turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "", None]), "content": texts}
)
values = st.one_of(texts, st.integers(), st.lists(st.one_of(odd_turn, texts), max_size=4))


@given(
    st.lists(
        st.fixed_dictionaries({"prompt": values, "chosen": values, "rejected": values}),
        max_size=20,
    )
)
@settings(max_examples=30, deadline=None)
def test_arbitrary_rows_give_pairs_or_counted_drops(
    tmp_path_factory: pytest.TempPathFactory, odd: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    # Python's own JSON: Arrow has no column for values of several types.
    lines = [json.dumps(row) for row in [*numbered(80), *odd]]
    rows = load_rows(str(write_lines(folder / "rows.jsonl", lines))).data
    adds_up(prepare(rows, folder / "out", validation_pairs=20), 80 + len(odd))


# Real rows, with the tokenizer they were measured with.


@needs_shared
def test_real_rows_have_the_published_lengths_and_none_is_lost(tmp_path: Path) -> None:
    tokenizer = GPT2TokenizerFast.from_pretrained(SHARED / "gpt2-tokenizer")
    rows = load_rows(str(SHARED / "ultrafeedback-argilla" / "train.parquet")).data
    for max_length, fits in ((128, 0.076), (1024, 0.88)):
        report = prepare(rows, tmp_path, tokenizer, max_length, 0.2, 64)
        adds_up(report, 800)
        unfit = dropped(report)["prompt_too_long"] + dropped(report)["equal_when_cut"]
        cut = sum(s["truncated"] * s["kept"] for s in report["splits"].values())
        # The published shares are of bare texts; the template adds five tokens to each.
        assert 1 - (unfit + cut) / 800 == pytest.approx(fits, abs=0.015)
        others = set(REASONS) - {"prompt_too_long", "equal_when_cut"}
        assert all(dropped(report)[reason] == 0 for reason in others)
    # At 1,024 tokens, nearly all: the longer answer is the chosen one in 67 % of pairs.
    kept = [s["kept"] for s in report["splits"].values()]
    longer = [s["longer_is_chosen"] for s in report["splits"].values()]
    assert np.average(longer, weights=kept) == pytest.approx(0.67, abs=0.01)
    assert report["splits"]["train"]["prompt_tokens"]["median"] == pytest.approx(81 + 5, abs=8)
    for row in load_pairs(tmp_path / "test.parquet").select(range(20)):
        whole = tokenizer.decode(row["prompt_ids"] + row["chosen_ids"])
        asked, answer = row["prompt"][-1]["content"].strip(), row["chosen"].strip()
        if row["chosen_ids"][-1] == tokenizer.eos_token_id:
            assert whole == f"User: {asked}\nAssistant: {answer}{EOS}"
        else:
            assert f"User: {asked}\nAssistant: {answer}".startswith(whole[:-3])
