"""What texts, columns and templates of real data sets hold is read as meant, or refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from test_preferences import CHATML, assistant, byte_tokenizer, dropped, numbered, system, user
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bench import data_shapes
from search_spaces.errors import UserError
from search_spaces.spec import SpecError, validate
from trainables.data.chat_template import settle
from trainables.data.columns import Columns, Reading
from trainables.data.messages import Unusable
from trainables.data.pairs import Pair, read_pair
from trainables.data.preferences import load_pairs, prepare_pairs
from trainables.data.sources import load_rows
from trainables.data.texts import dialogue, messages_as_text, visible
from tune.prepare import pairs_sentence

Row = dict[str, Any]
ANSWERS = ("chosen", "rejected")


def read(row: Row, repeats: bool = False, text: Any = "auto") -> Pair:
    prompt = ("prompt",) if "prompt" in row else ()
    others = [name if name in row else None for name in ("system", "tools", "chat_template_kwargs")]
    columns = Columns(prompt, "chosen", "rejected", *others)
    return read_pair(row, columns, Reading(text=text), repeats)


def prepare(
    rows: list[Row], out: Path, tokenizer: Any = None, **reading: Any
) -> tuple[Row, PreTrainedTokenizerFast, list[Row]]:
    """Return the data report, the tokenizer as it is saved, and the training rows."""
    report = prepare_pairs(
        Dataset.from_list(rows),
        tokenizer or byte_tokenizer(CHATML),
        max_length=2000,
        test_fraction=0.25,
        validation_pairs=10,
        seed=7,
        out=out,
        reading=Reading(**reading),
    )
    saved = AutoTokenizer.from_pretrained(out / "tokenizer")
    return report, saved, load_pairs(out / "train.parquet").to_list()


def shown(tokenizer: PreTrainedTokenizerFast, row: Row) -> tuple[str, str]:
    return tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["chosen_ids"])


# Texts.


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Human: Hi\n\nAssistant: Ho\n\nHuman: So: what?\n\nAssistant:",
         [user("Hi"), assistant("Ho"), user("So: what?")]),
        ("System: Be brief.\nUser: a\nb\nAssistant: c",
         [system("Be brief."), user("a\nb"), assistant("c")]),
        ("User: a\nBot: b", [user("a"), assistant("b")]),
        ("Talk. USER: a ASSISTANT: b</s>USER: c ASSISTANT:",
         [system("Talk."), user("a"), assistant("b"), user("c")]),
        ("### Human: a\n### Assistant: b", [user("a"), assistant("b")]),
        ("Below is a task.\n\n### Instruction:\na\n\n### Input:\nb\n\n### Response:\n",
         [system("Below is a task."), user("a\n\n### Input:\nb")]),
    ],
)  # fmt: skip
def test_dialogue_with_markers_is_turns(text: str, turns: list[Row]) -> None:
    assert dialogue(text) == turns


@pytest.mark.parametrize(
    "text",
    [
        "Human: translate this",  # no assistant
        "Write a play.\nHuman: a\nAssistant: b",  # words before the first marker
        "The Human: a film. Assistant: nobody",  # not at the beginning of lines
        "Assistant: I begin\nHuman: you end",
        "Human beings\nAssistant professors",
        "",
    ],
)
def test_other_texts_are_no_dialogues(text: str) -> None:
    assert dialogue(text) is None


def test_split_of_a_dialogue_falls_between_turns() -> None:
    """Both answers begin with the same words, which are theirs and not the prompt's."""
    before = "\n\nHuman: Is it?\n\nAssistant: It is.\n\nHuman: Why?\n\nAssistant:"
    pair = read({"chosen": f"{before} Well, so.", "rejected": f"{before} Well, no."})
    assert pair.prompt == [user("Is it?"), assistant("It is."), user("Why?")]
    assert (pair.chosen, pair.rejected) == (assistant("Well, so."), assistant("Well, no."))
    assert pair.read_as == {"dialogue"}
    as_prompt = read({"prompt": before, "chosen": " Well, so.", "rejected": " Well, no."})
    assert as_prompt == pair
    run_on = {"prompt": before, "chosen": "So.\n\nHuman: Thanks", "rejected": "No."}
    with pytest.raises(Unusable, match="several_turns"):
        read(run_on)
    plain = read({"prompt": before, "chosen": "So.", "rejected": "No."}, text="plain")
    assert plain.prompt == [user(before.strip())] and not plain.read_as


@pytest.mark.parametrize("write", [json.dumps, str], ids=["JSON", "Python"])
def test_messages_kept_as_text_are_parsed(write: Any) -> None:
    talk = {
        "chosen": [user("It's so?"), assistant("Yes")],
        "rejected": [user("It's so?"), assistant("No")],
    }
    pair = read({name: write(turns) for name, turns in talk.items()})
    assert (pair.prompt, pair.chosen) == ([user("It's so?")], assistant("Yes"))
    assert pair.read_as == {"messages_as_text"}
    shared = read(
        {"prompt": write([{"from": "human", "value": "a"}]), "chosen": "b", "rejected": "c"}
    )
    assert shared.prompt == [user("a")]


@pytest.mark.parametrize("text", ["[1, 2]", '[{"a": 1}]', "[x]", "[{", "[" * 9999])
def test_lists_of_other_things_stay_text(text: str) -> None:
    assert messages_as_text(text) is None
    assert read({"prompt": text, "chosen": "a", "rejected": "b"}).prompt == [user(text)]


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff\u00a0", "\x00", "\u2800\u3164"])
def test_answer_without_a_visible_character_is_dropped(text: str) -> None:
    assert not visible(text) and visible(f"{text}.")
    with pytest.raises(Unusable, match="empty_answer"):
        read({"prompt": "q", "chosen": text, "rejected": "a"})


def test_prompt_is_cut_off_the_answers_where_both_repeat_it() -> None:
    asked = "Why is the sky so blue today?"
    repeated = {"prompt": asked, "chosen": f"{asked} Light.", "rejected": f"{asked}\nNo idea."}
    pair = read(repeated)
    assert (pair.chosen, pair.rejected) == (assistant("Light."), assistant("No idea."))
    assert pair.read_as == {"prompt_repeated"}
    assert read(repeated, text="plain").chosen["content"].startswith(asked)
    assert read({**repeated, "rejected": "No idea."}).chosen["content"].startswith(asked)
    # Two greetings begin alike by accident, unless the whole data set repeats its prompts.
    greeting = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi."}
    assert read(greeting).chosen == assistant("Hi there")
    assert read(greeting, repeats=True).chosen == assistant("there")
    assert read({**greeting, "chosen": "Highly"}, repeats=True).chosen == assistant("Highly")


@pytest.mark.parametrize("as_messages", [False, True])
def test_prompt_of_messages_is_cut_off_too(as_messages: bool) -> None:
    asked = "Why is the sky so blue today?"
    said = [f"{asked} Light.", f"{asked} No idea."]
    answers = [[assistant(text)] for text in said] if as_messages else said
    row = {"prompt": [system("Be kind."), user(asked)]} | dict(zip(ANSWERS, answers, strict=True))
    pair = read(row)
    assert (pair.chosen, pair.rejected) == (assistant("Light."), assistant("No idea."))
    assert pair.read_as == {"prompt_repeated"}


def test_scene_that_was_asked_for_is_an_answer() -> None:
    """Answers with role markers beside a prompt of their own, which they do not have in them."""
    scenes = {name: f"User: Hello\nAssistant: I am {name}" for name in ANSWERS}
    pair = read({"prompt": "Write a talk between a user and an assistant", **scenes})
    assert pair.prompt == [user("Write a talk between a user and an assistant")]
    assert pair.chosen == assistant(scenes["chosen"]) and not pair.read_as
    pair = read({"prompt": "Hello", **scenes})  # and this one they do have
    assert (pair.prompt, pair.chosen) == ([user("Hello")], assistant("I am chosen"))


def test_dialogue_on_one_side_alone_is_dropped() -> None:
    """The words that both begin with would end in the middle of a turn."""
    with pytest.raises(Unusable, match="several_turns"):
        read({"chosen": "Human: Hi there\n\nAssistant: Ho", "rejected": "Human: Hi you"})


@pytest.mark.parametrize("where", ["prompt", "chosen", "both answers"])
def test_messages_that_cannot_be_parsed_are_not_trained_on_as_text(where: str) -> None:
    """NumPy writes arrays of messages without commas between them, and so do tables as CSV."""
    written = "[{'content': 'q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]"
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    row |= dict.fromkeys(ANSWERS if where == "both answers" else [where], written)
    with pytest.raises(Unusable, match="malformed"):
        read(row)
    assert not read({**row, "rejected": "b"}, text="plain").read_as


def test_short_prompts_that_most_answers_repeat_are_cut_off(tmp_path: Path) -> None:
    rows = [
        {**row, **{k: f"{row['prompt']} {row[k]}" for k in ("chosen", "rejected")}}
        for row in numbered(60)
    ]
    report, tokenizer, train = prepare(rows, tmp_path)
    assert sum(split["read_as"]["prompt_repeated"] for split in report["splits"].values()) == 60
    number = train[0]["row"]
    assert shown(tokenizer, train[0])[1] == f"yes {number}<|im_end|>"
    assert f"60 read as: {report['readings']['prompt_repeated']} (row " in pairs_sentence(report)


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>user\nq<|im_end|>", "[INST] q [/INST]", "<start_of_turn>user\nq", "a <mark> b"],
)
def test_text_with_tokens_of_a_template_is_dropped_with_a_row(text: str, tmp_path: Path) -> None:
    """Of any family's templates, and the special tokens of this very tokenizer."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    odd = {"prompt": text, "chosen": "a", "rejected": "b"}
    report, *_ = prepare([*numbered(40), odd], tmp_path, tokenizer)
    assert dropped(report)["template_tokens"] == 1 and report["examples"]["template_tokens"] == 40
    assert "tokens of a chat template in it (row 40)" in pairs_sentence(report)
    report, *_ = prepare([*numbered(40), odd], tmp_path, tokenizer, text="plain")
    assert dropped(report)["template_tokens"] == 0


def test_data_of_such_texts_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    rows = [{**row, "prompt": f"<|user|>{row['prompt']}"} for row in numbered(60)]
    with pytest.raises(
        UserError, match=r"tokens of a chat template in it \(such as row .*dataset.text to plain"
    ):
        prepare(rows, tmp_path)


# Columns.


def test_shapes_of_known_data_sets_are_read_as_the_page_says() -> None:
    assert data_shapes.page() == data_shapes.PAGE.read_text(encoding="utf-8"), (
        "write docs/data.md anew with `python -m bench.data_shapes`, and look at what changed"
    )
    assert len(data_shapes.SHAPES) >= 25


def test_prompt_of_another_name_is_said_aloud(tmp_path: Path) -> None:
    """Two answers in three begin alike by accident; the question is in a column of its own."""
    rows = [
        {
            "query": f"Q{i}?",
            "id": i,
            **{k: "Well now " * (i % 3 > 0) + f"{k} {i}" for k in ("chosen", "rejected")},
        }
        for i in range(60)
    ]
    report, tokenizer, train = prepare(rows, tmp_path)
    assert (report["columns"]["prompt"], report["unread"]) == ("query", ["id"])
    assert pairs_sentence(report).endswith("prompt from query; columns not read: id")
    assert f"Q{train[0]['row']}?" in shown(tokenizer, train[0])[0]
    columns = {"prompt": ["query"], "chosen": "rejected", "rejected": "chosen"}
    report, *_ = prepare(rows, tmp_path, columns=columns)
    assert report["columns"] == {**columns, "prompt": "query"}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "ask"}, ["no column ask", "dataset.columns", "query"]),
        ({"prompt": ["query", "ask"]}, ["no column ask"]),
        ({"chosen": "best"}, ["no column best", "rejected"]),
    ],
)
def test_column_that_is_not_there_is_named(columns: Row, words: list[str], tmp_path: Path) -> None:
    rows = [{"query": "q", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(60)]
    with pytest.raises(UserError) as error:
        prepare(rows, tmp_path, columns=columns)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("dataset", "key"),
    [
        ({"columns": {"promt": "q"}}, "dataset.columns"),
        ({"columns": {"chosen": None}}, "dataset.columns"),
        ({"columns": {"chosen": ["a", "b"]}}, "dataset.columns"),
        ({"text": "dialogue"}, "dataset.text"),
        ({"chat_template_kwargs": {"a b": 1}}, "dataset.chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [1]}}, "dataset.chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": True}}, "dataset.chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": float("inf")}}, "dataset.chat_template_kwargs"),
    ],
)
def test_spec_names_parts_columns_and_switches(dataset: Row, key: str) -> None:
    spec = {"model": "quickstart", "judge": "quickstart", "space": {"beta": {"choice": [0.1, 0.2]}}}
    with pytest.raises(SpecError, match=key):
        validate({**spec, "dataset": {"path": "quickstart", **dataset}})
    columns = {"prompt": ["a", "b"], "system": None}
    validate({**spec, "dataset": {"path": "quickstart", "columns": columns, "text": "plain"}})


def test_prompt_column_that_the_conversations_do_not_have_is_named(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Other {i}",
            "chosen": [user(f"Q{i}"), assistant("a")],
            "rejected": [user(f"Q{i}"), assistant("b")],
        }
        for i in range(60)
    ]
    report, *_ = prepare(rows, tmp_path)
    assert sum(split["read_as"]["other_prompt"] for split in report["splits"].values()) == 60


def test_values_of_one_column_need_not_be_alike_in_json_lines(tmp_path: Path) -> None:
    """Lists and texts, one message instead of a list, and arguments of other types."""
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"x": "z"}}]
    rows: list[Row] = [
        {"prompt": [user("q?")], "chosen": [assistant("a")], "rejected": assistant("b")}
    ]
    for call in calls:
        answer = {"role": "assistant", "tool_calls": [{"function": call}]}
        rows.append({"prompt": "c?", "chosen": [answer], "rejected": [assistant("b")]})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *numbered(40)]))
    pairs = [read(row) for row in load_rows(str(path)).data]
    assert [pair.prompt for pair in pairs[:2]] == [[user("q?")], [user("c?")]]
    assert (pairs[0].chosen, pairs[0].rejected) == (assistant("a"), assistant("b"))
    assert [pair.chosen["tool_calls"][0]["function"] for pair in pairs[1:3]] == calls
    assert pairs[3].prompt == [user("Q0?")] and pairs[3].read_as == frozenset()


@pytest.mark.parametrize("kind", ["list_view", "map"])
def test_types_of_parquet_that_datasets_lacks_are_read(kind: str, tmp_path: Path) -> None:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = {}
    for name in ANSWERS:
        talks: list[Any] = [[user(f"Q{i}"), assistant(name)] for i in range(40)]
        if kind == "map":
            talks = [[list(turn.items()) for turn in talk] for talk in talks]
            columns[name] = pa.array(talks, pa.list_(pa.map_(pa.string(), pa.string())))
        else:
            columns[name] = pa.array(talks, pa.list_view(message))
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    pair = read(load_rows(str(tmp_path / "rows.parquet")).data[3])
    assert pair.prompt == [user("Q3")]
    assert (pair.chosen, pair.rejected) == (assistant("chosen"), assistant("rejected"))


def test_type_of_parquet_that_nobody_reads_is_named(tmp_path: Path) -> None:
    odd = pa.array([[b"\xff"]] * 3, pa.list_view(pa.binary()))
    pq.write_table(pa.table({"chosen": odd, "rejected": odd}), tmp_path / "rows.parquet")
    words = r"column 'chosen' of '.*rows.parquet' has the type list_view"
    with pytest.raises(UserError, match=words):
        load_rows(str(tmp_path / "rows.parquet"))


def test_keys_of_messages_that_nobody_reads_are_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{**user(f"Q{i}"), "id": i}]}
        | {name: [{**assistant(name), "weight": 0.5, "name": "bot"}] for name in ANSWERS}
        for i in range(60)
    ]
    report, *_ = prepare(rows, tmp_path)
    assert report["unread"] == ["chosen[].weight", "prompt[].id", "rejected[].weight"]


def test_system_that_is_no_text_is_no_turn(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{**row, "system": [1]} for row in numbered(3)] + [{**numbered(1)[0], "system": "Hm."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [read(row) for row in load_rows(str(path)).data]
    assert [len(pair.prompt) for pair in pairs] == [1, 1, 1, 2]


# What templates read beside roles and contents.

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "d",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
FULL = (
    "{% if tools %}{{ 'tools ' + (tools | tojson) + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}"
    "{% elif m.role == 'assistant' and loop.last and thinking is defined and not thinking %}"
    "{{ '<think></think>' }}{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if thinking is defined and not thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)


def full_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.chat_template = FULL
    return tokenizer


def calling(i: int) -> list[Row]:
    return [{"type": "function", "function": {"name": "look", "arguments": {"at": f"stone {i}"}}}]


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_calls_and_thoughts_are_rendered_as_trl_renders_them(
    as_text: bool, tmp_path: Path
) -> None:
    from trl.data_utils import apply_chat_template

    rows: list[Row] = [
        {
            "prompt": [
                user(f"Q{i}"),
                {**assistant(""), "tool_calls": calling(i)},
                {"role": "tool", "content": f"{i}"},
            ],
            "chosen": [{**assistant("Found."), "reasoning_content": "I think."}],
            "rejected": [{**assistant("Again."), "tool_calls": calling(i)}],
            "tools": json.dumps(TOOLS) if as_text else TOOLS,
        }
        for i in range(60)
    ]
    report, tokenizer, train = prepare(rows, tmp_path, full_tokenizer())
    assert report["splits"]["train"]["read_as"]["tools"] == report["splits"]["train"]["kept"]
    for row in train[:3]:
        theirs = apply_chat_template(
            {k: rows[row["row"]][k] for k in ("prompt", "chosen", "rejected")},
            tokenizer,
            tools=TOOLS,
        )
        ours = {k: tokenizer.decode(row[f"{k}_ids"]) for k in theirs}
        # TRL keeps what the template writes after the end of the turn, which no model generates.
        assert ours == {
            k: text if k == "prompt" else text.removesuffix("\n") for k, text in theirs.items()
        }
    held = load_pairs(tmp_path / "validation.parquet")[0]
    assert held["chosen"] == "Found." and held["rejected"].startswith('Again.\n{"type": "function"')


def test_template_that_leaves_calls_out_drops_the_row(tmp_path: Path) -> None:
    odd = {
        "prompt": [user("q")],
        "chosen": [{**assistant("a"), "tool_calls": calling(1)}],
        "rejected": [assistant("b")],
    }
    talk = [
        {"prompt": [user(f"Q{i}")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
        for i in range(40)
    ]
    report, *_ = prepare([*talk, odd], tmp_path)
    assert dropped(report)["template"] == 1 and report["examples"]["template"] == 40


def test_switches_of_rows_and_of_the_search(tmp_path: Path) -> None:
    rows = [
        {**row, "chat_template_kwargs": {"thinking": bool(i % 2)}}
        for i, row in enumerate(numbered(60))
    ]
    report, tokenizer, train = prepare(rows, tmp_path, full_tokenizer())
    assert report["splits"]["train"]["read_as"]["chat_template_kwargs"] > 0
    for row in train[:4]:
        assert shown(tokenizer, row)[0].endswith("<think></think>") is (row["row"] % 2 == 0)
    report, tokenizer, train = prepare(
        numbered(60), tmp_path, full_tokenizer(), chat_template_kwargs={"thinking": False}
    )
    assert all(shown(tokenizer, row)[0].endswith("<think></think>") for row in train)
    # Whoever loads the tokenizer has the switch, and can still set it.
    options: Row = {"tokenize": False, "add_generation_prompt": True}
    written = [
        tokenizer.apply_chat_template([user("q")], **options, **more)
        for more in ({}, {"thinking": True})
    ]
    assert [text.endswith("<think></think>") for text in written] == [True, False]
    assert report["chat_template"]["kwargs"] == {"thinking": False}


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "prompt", "messages", "self"])
def test_rows_set_variables_and_steer_nothing(name: str, tmp_path: Path) -> None:
    rows = [{**row, "chat_template_kwargs": {name: "{{ 1 }}"}} for row in numbered(60)]
    rows[:20] = [{**row, "chat_template_kwargs": {"thinking": True}} for row in rows[:20]]
    if name != "prompt":
        with pytest.raises(UserError, match="the chat template refuses the conversation"):
            prepare(rows, tmp_path, full_tokenizer())
    else:
        report, tokenizer, train = prepare(rows, tmp_path, full_tokenizer())
        assert not dropped(report)["template"]
        assert shown(tokenizer, train[0])[0].startswith("<|im_start|>user")


# What ends a turn.

PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
HEADLESS = PHI.partition("{% if add")[0]
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)


def with_tokens(template: str, *special: str, **named: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special), **named})
    tokenizer.chat_template = template
    return tokenizer


def test_template_that_writes_an_end_of_its_own_and_eos_too() -> None:
    tokenizer = with_tokens(PHI, "<|user|>", "<|assistant|>", "<|end|>")
    settled = settle(tokenizer)
    assert (tokenizer.eos_token, settled.end) == ("<|end|>", "<|end|>")
    texts = settled.render([user("q")], assistant("a"), assistant("b"))
    assert texts == ("<|user|>\nq<|end|>\n<|assistant|>\n", "a<|end|>", "b<|end|>")


def test_only_a_special_token_ends_a_turn() -> None:
    tokenizer = with_tokens(CHATML, "<|im_start|>", "<|im_end|>")
    tokenizer.add_tokens(["\n"])  # an added token like any other word
    assert settle(tokenizer).end == "<|im_end|>"
    words = with_tokens(
        "{% for m in messages %}{{ m.role + ': ' + m.content + ' OVER\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    words.add_tokens(["OVER"])
    assert settle(words).end == f" OVER{words.eos_token}"


def test_template_without_a_generation_prompt_is_refused() -> None:
    tokenizer = with_tokens(HEADLESS, "<|user|>", "<|assistant|>", "<|end|>")
    with pytest.raises(UserError, match=r"has no generation prompt: '<\|assistant\|>'"):
        settle(tokenizer)


def test_template_of_llama_2_needs_no_generation_prompt() -> None:
    tokenizer = with_tokens(INST, bos_token="<s>", eos_token="</s>")
    settled = settle(tokenizer)
    texts = settled.render([user("q")], assistant("a"), assistant("b"))
    assert texts == ("<s>[INST] q [/INST]", " a</s>", " b</s>")
    (ids,) = settled.tokenize([texts])
    whole = tokenizer.apply_chat_template([user("q"), assistant("a")], return_dict=False)
    assert ids.prompt + ids.chosen == whole
