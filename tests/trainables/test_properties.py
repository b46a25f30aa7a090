"""Whatever a user writes is a search or its problems, pairs or their reasons; never a stray error.

Derandomized: the same examples every time, so that a failure is a change's and not the day's.
"""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_preferences import adds_up, assistant, byte_tokenizer, numbered, prepare, user

from search_spaces.errors import SpecError, UserError
from search_spaces.spec import Spec, load
from search_spaces.yaml_io import SHIPPED, shipped
from trainables.data.preferences import load_pairs
from trainables.data.sources import load_rows
from tune.record import append_line, read_lines


def examples(count: int) -> Any:
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,  # the first example pays for the imports
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


# A search.

# With the characters that YAML, paths and terminals take for something else.
WORDS = st.one_of(
    st.text(max_size=8),
    st.text(alphabet="ab~./-_:#{}[],&*!|>'\"%@` \t\n\r\0\x85\u2028\ufeff\ud800é0e1", max_size=8),
    st.sampled_from(
        ["quickstart", "./x", "~", "~nobody/x", "owner/name", "s3://b", "latest", "1e-3", "0x1F",
         "1_000", "null", "yes", "2024-01-01", ".nan", "sigmoid", "grid", "none", "rmsprop", "auto"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.floats(0, 1),
    st.sampled_from(
        [0, -1, 2**31, 2**53 + 1, 10**40, 1e-300, 1e308, math.inf, -math.inf, math.nan]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
NAMES = [
    *Spec.model_fields, "path", "name", "split", "test_fraction", "validation_pairs", "seed",
    "epochs", "learning_rate", "beta", "optim", "loss_type", "loss_weights", "max_length",
    "warmup_steps",
    "lr_scheduler_type", "lr_scheduler_kwargs", "per_device_train_batch_size", "lora.r", "r",
    "target_modules", "prompts", "max_new_tokens", "metric", "constraints", "kl", "min", "max",
    "pairs", "steps", "trials", "rungs", "sampler", "scheduler", "try_first", "warm_start",
    "minutes", "choice", "uniform", "loguniform", "int", "logint", "finalists", "seeds", "cpu",
    "gpu",
]  # fmt: skip
KEYS = st.one_of(st.sampled_from(NAMES), WORDS)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
VALID = [yaml.safe_load((SHIPPED / f"{name}.yaml").read_text()) for name in shipped()]


def a_spec_or_its_problems(source: str, overrides: list[str], again: Path) -> bool:
    """Load; what loads has to survive its own YAML. Tells which of the two it was."""
    try:
        spec = load(source, overrides)
    except SpecError as error:
        assert error.problems
        # Each problem is a line, whatever characters the key and the value have.
        assert len(str(error).split("\n")) == len(error.problems)
        return False
    again.write_text(spec.to_yaml(), encoding="utf-8")
    assert load(str(again)) == spec
    return True


@given(st.dictionaries(KEYS, NESTED, max_size=6), st.booleans())
@examples(150)
def test_any_mapping_as_a_file(tmp_path: Path, data: dict[str, Any], whole: bool) -> None:
    if whole:
        data = {"model": "quickstart", "dataset": {"path": "quickstart"}, "space": {}, **data}
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    a_spec_or_its_problems(str(path), [], tmp_path / "again.yaml")


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A shipped search in which keys are gone, renamed, moved or hold something else."""
    data = json.loads(json.dumps(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(1, 3))):
        section = data
        while draw(st.booleans()):
            inner = [value for value in section.values() if isinstance(value, dict) and value]
            if not inner:
                break
            section = draw(st.sampled_from(inner))
        if not section:
            continue
        key = draw(st.sampled_from(sorted(section)))
        match draw(st.sampled_from(["value", "key", "gone", "more", "moved"])):
            case "value":
                section[key] = draw(st.one_of(SCALARS, NESTED))
            case "key":
                section[draw(KEYS)] = section.pop(key)
            case "gone":
                del section[key]
            case "more":
                section[draw(KEYS)] = draw(NESTED)
            case "moved":
                data[key] = section.pop(key)
    return data


def test_mutations_of_the_shipped_searches(tmp_path: Path) -> None:
    whole = []

    @given(mutated())
    @examples(150)
    def check(data: dict[str, Any]) -> None:
        path = tmp_path / "mutated.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        whole.append(a_spec_or_its_problems(str(path), [], tmp_path / "again.yaml"))

    check()
    assert 10 < sum(whole) < len(whole) - 10  # both happen, or this has shown little


SETTINGS = st.one_of(
    WORDS,
    st.text(max_size=20),
    st.builds(
        lambda keys, value: f"{'.'.join(keys)}={value}",
        st.lists(KEYS, min_size=1, max_size=3),
        st.one_of(SCALARS, st.text(max_size=12), NESTED.map(json.dumps)),
    ),
)


@given(st.sampled_from(shipped()), st.lists(SETTINGS, min_size=1, max_size=3))
@examples(200)
def test_any_settings(tmp_path: Path, name: str, overrides: list[str]) -> None:
    a_spec_or_its_problems(name, overrides, tmp_path / "again.yaml")


TEXTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode()),
    st.text(alphabet="abk:[]{},&*!|>-#%@'\"\n \t019.e?~<=\0", max_size=40).map(str.encode),
    st.sampled_from(["model: ", "model: !!", "? ", "<<: ", "%YAML ", "--- ", "model: &a "]).flatmap(
        lambda head: st.text(max_size=20).map(lambda rest: (head + rest).encode())
    ),
)


@given(TEXTS)
@examples(200)
def test_any_bytes_as_a_file_and_any_text_as_a_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    a_spec_or_its_problems(str(path), [], tmp_path / "again.yaml")
    a_spec_or_its_problems(content.decode("latin-1"), [], tmp_path / "again.yaml")


# Pairs.

ASKED = st.sampled_from(["Q?", "a b", "How are you?\n", " ", "", "é\u2028x", "<|endoftext|>"])
ANSWER = st.one_of(ASKED, st.text(max_size=8), st.just("x" * 80))
TURN = st.one_of(
    ASKED.map(user),
    ANSWER.map(assistant),
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "", None, 3])},
        optional={
            "content": st.one_of(ANSWER, st.none(), st.lists(ANSWER, max_size=2)),
            "weight": st.integers(0, 1),
            "tool_calls": st.lists(st.dictionaries(st.text(max_size=2), ANSWER, max_size=1)),
        },
    ),
)


def standard(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def implicit_standard(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"chosen": f"{asked} {chosen}", "rejected": f"{asked} {rejected}"}


def conversational(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [user(asked)],
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
    }


def implicit_conversational(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    talks = conversational(asked, chosen, rejected)
    return {side: talks["prompt"] + talks[side] for side in ("chosen", "rejected")}


def argilla(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    talks = implicit_conversational(asked, chosen, rejected)
    return {"source": "x", "prompt": asked, "chosen-rating": 4.5, **talks}


FORMATS = (standard, implicit_standard, conversational, implicit_conversational, argilla)
ODD = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(TURN, max_size=3), TURN)


@st.composite
def row(draw: st.DrawFn) -> dict[str, Any]:
    """A row of one of the formats, in half of the cases with a column changed, lost or more."""
    made: dict[str, Any] = draw(st.sampled_from(FORMATS))(draw(ASKED), draw(ANSWER), draw(ANSWER))
    if draw(st.booleans()):
        column = draw(st.sampled_from(["prompt", "chosen", "rejected"]))
        match draw(st.sampled_from(["odd", "gone", "turns", "more"])):
            case "odd":
                made[column] = draw(ODD)
            case "gone":
                made.pop(column, None)
            case "turns" if isinstance(made.get(column), list):
                made[column] = made[column] + draw(st.lists(TURN, max_size=2))
            case _:
                made["extra"] = draw(ODD)
    return made


def pairs_that_add_up(path: Path, rows: int, out: Path) -> bool:
    """Prepare a file: each row is a pair or has its reason. Tells whether there are pairs."""
    try:
        report = prepare(load_rows(str(path)).data, out, TOKENIZER, validation_pairs=16)
    except UserError as error:
        assert "\n" not in str(error)
        return False
    adds_up(report, rows)
    for name, split in report["splits"].items():
        kept = load_pairs(out / f"{name}.parquet")
        assert len(kept) == split["kept"]
        assert all(kept["chosen_ids"][i] != kept["rejected_ids"][i] for i in range(len(kept)))
    return True


TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_rows_of_every_format_as_json_lines(tmp_path: Path) -> None:
    """Odd rows among enough good ones of any one format, so that a split is never too small."""
    prepared = []

    @given(st.sampled_from(FORMATS), st.lists(row(), max_size=12), st.booleans())
    @examples(60)
    def check(good: Any, odd: list[dict[str, Any]], alone: bool) -> None:
        rows = [] if alone else [good(*plain.values()) for plain in numbered(80)]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in [*rows, *odd]), encoding="utf-8")
        prepared.append(pairs_that_add_up(path, len(rows) + len(odd), tmp_path / "out"))

    check()
    assert 10 < sum(prepared) < len(prepared) - 10


# Column types that parquet files have, with values of each; the last ones hold no answers at all.
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
RICH = pa.struct([*MESSAGE, ("weight", pa.int32()), ("parts", pa.list_(pa.string()))])
TALKS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", None]), "content": ANSWER}
    ),
    max_size=3,
)
COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), ANSWER),
    (pa.large_string(), ANSWER),
    (pa.dictionary(pa.int32(), pa.string()), ANSWER),
    (pa.list_(MESSAGE), TALKS),
    (pa.large_list(MESSAGE), TALKS),
    (pa.list_(RICH), TALKS),
    (MESSAGE, st.builds(assistant, ANSWER)),
    (pa.list_(pa.string()), st.lists(ANSWER, max_size=2)),
    (pa.list_(pa.list_(MESSAGE)), st.lists(TALKS, max_size=2)),
    (pa.binary(), st.binary(max_size=4)),
    (pa.int64(), st.integers(0, 9)),
    (pa.timestamp("s"), st.integers(0, 9)),
    (pa.null(), st.none()),
]


@st.composite
def table(draw: st.DrawFn) -> pa.Table:
    """Rows whose columns are of any type each, with nulls among them.

    In half of the cases all answers are text, and there are enough good rows for every split.
    """
    good = draw(st.booleans())
    columns: dict[str, pa.Array] = {}
    for name in ("prompt", "chosen", "rejected", "extra"):
        if not good and name != "chosen" and not draw(st.integers(0, 3)):
            continue
        kind, values = draw(st.sampled_from(COLUMNS[:3] if good else COLUMNS))
        drawn = draw(st.lists(st.one_of(values, values, st.none()), min_size=3, max_size=6))
        rows = [row.get(name, "x") for row in numbered(80)] if good else []
        filler = [drawn[i % len(drawn)] for i in range(40 if good else 120)]
        columns[name] = pa.array([*rows, *filler], kind)
    return pa.table(columns)


def test_any_columns_of_a_parquet_file(tmp_path: Path) -> None:
    read = []

    @given(table())
    @examples(60)
    def check(content: pa.Table) -> None:
        path = tmp_path / "rows.parquet"
        pq.write_table(content, path)
        read.append(pairs_that_add_up(path, 120, tmp_path / "out"))

    check()
    assert 3 < sum(read) < len(read) - 10


# The run folder.


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9), min_size=1), max_size=4))
@examples(100)
def test_lines_of_a_run_folder_are_read_as_they_were_written(
    tmp_path: Path, lines: list[dict[str, str]]
) -> None:
    """Whatever a model writes: U+2028 and U+0085 end a line for `splitlines`, and for no file."""
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"")
    for line in [*lines, {"answer": "one\u2028two\x85three\r\n"}]:
        append_line(path, line)
    with path.open("ab") as file:
        file.write(b'{"cut sho')
    assert read_lines(path) == [*lines, {"answer": "one\u2028two\x85three\r\n"}]
