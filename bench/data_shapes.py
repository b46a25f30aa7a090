"""Write docs/data.md: what is read of the shapes in which preference data sets are published.

    python -m bench.data_shapes

Columns are those of the named data sets; the rows are invented. Each shape is written as JSON
lines, loaded and prepared as a search does it, with the quickstart's tokenizer.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import AutoTokenizer

from search_spaces.errors import UserError
from trainables.data.columns import Reading
from trainables.data.preferences import prepare_pairs
from trainables.data.sources import load_rows
from trainables.quickstart.world import BASE

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
ROWS = 60
HEAD = Path(__file__).with_name("data_head.md")  # of the page


@dataclass(frozen=True)
class Shape:
    """A data set's columns, a row for each number, and what the search says of it."""

    name: str
    row: Callable[[int], dict[str, Any]]
    columns: dict[str, Any] = field(default_factory=dict)


def user(text: str) -> dict[str, Any]:
    """Return a user's turn."""
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": text, **more}


def said(speaker: str, text: str) -> dict[str, str]:
    """Return a turn as ShareGPT writes it."""
    return {"from": speaker, "value": text}


def asked(i: int) -> str:
    """Return a question."""
    return f"How many legs do {i + 2} ants have?"


def good(i: int) -> str:
    """Return a right answer."""
    return f"They have {6 * (i + 2)} legs."


def bad(i: int) -> str:
    """Return a wrong answer."""
    return f"About {4 * (i + 2)}, I think."


def texts(i: int) -> dict[str, Any]:
    """Return both answers as texts."""
    return {"chosen": good(i), "rejected": bad(i)}


def answers(i: int) -> dict[str, Any]:
    """Return both answers as messages."""
    return {"chosen": [assistant(good(i))], "rejected": [assistant(bad(i))]}


def whole(i: int) -> dict[str, Any]:
    """Return both answers as whole conversations."""
    return {name: [user(asked(i)), *turns] for name, turns in answers(i).items()}


def marked(i: int, answer: str) -> str:
    """Return a dialogue with role markers."""
    return f"\n\nHuman: {asked(i)}\n\nAssistant: {answer}"


CALL = {"type": "function", "function": {"name": "count", "arguments": {"of": "legs"}}}
TOOLS = [
    {"type": "function", "function": {"name": "count", "description": "Count.", "parameters": {}}}
]
SHAPES = (
    Shape("Anthropic/hh-rlhf", lambda i: {k: marked(i, text) for k, text in texts(i).items()}),
    Shape("Dahoas/rm-static", lambda i: {"prompt": marked(i, ""), "response": good(i), **texts(i)}),
    Shape(
        "HuggingFaceH4/ultrafeedback_binarized",
        lambda i: (
            {"prompt": asked(i), "prompt_id": f"p{i}", **whole(i)}
            | {"messages": whole(i)["chosen"], "score_chosen": 8.0, "score_rejected": 5.0}
        ),
    ),
    Shape(
        "argilla/ultrafeedback-binarized-preferences-cleaned",
        lambda i: (
            {"source": "evol", "prompt": asked(i), **whole(i)}
            | {"chosen-rating": 5.0, "chosen-model": "a", "rejected-rating": 2.0}
        ),
    ),
    Shape(
        "trl-lib/ultrafeedback_binarized",
        lambda i: {**whole(i), "score_chosen": 8.0, "score_rejected": 5.0},
    ),
    Shape(
        "Intel/orca_dpo_pairs",
        lambda i: {"system": "You are exact.", "question": asked(i), **texts(i)},
    ),
    Shape(
        "argilla/distilabel-intel-orca-dpo-pairs",
        lambda i: (
            {"system": "You are exact.", "input": asked(i), **texts(i)}
            | {"generations": [good(i), bad(i)], "order": ["a", "b"], "rating": [9.0, 3.0]}
        ),
    ),
    Shape(
        "argilla/distilabel-capybara-dpo-7k-binarized",
        lambda i: (
            {"source": "x", "conversation": [{"input": asked(i), "output": good(i)}]}
            | {"original_response": good(i), **whole(i), "rating_chosen": 5}
        ),
    ),
    Shape(
        "mlabonne/orpo-dpo-mix-40k",
        lambda i: {"source": "x", **whole(i), "prompt": asked(i), "question": ""},
    ),
    Shape(
        "jondurbin/truthy-dpo-v0.1",
        lambda i: {"id": str(i), "source": "x", "system": "", "prompt": asked(i), **texts(i)},
    ),
    Shape(
        "jondurbin/gutenberg-dpo-v0.1",
        lambda i: {"prompt": asked(i), **texts(i), "rejected_model": "m", "genre": "x"},
    ),
    Shape("Skywork/Skywork-Reward-Preference-80K-v0.2", lambda i: {**whole(i), "source": "x"}),
    Shape(
        "allenai/llama-3.1-tulu-3-8b-preference-mixture",
        lambda i: (
            {"id": str(i), "source": "x", "prompt": asked(i), **whole(i)}
            | {"chosen_rating": 4.0, "chosen_model": "m"}
        ),
    ),
    Shape(
        "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset",
        lambda i: (
            {"prompt_id": f"p{i}", "prompt": asked(i), **whole(i)}
            | {"all_generated_responses": [good(i), bad(i)], "all_rm_scores": [1.0, -1.0]}
        ),
    ),
    Shape(
        "allenai/reward-bench",
        lambda i: {"prompt": asked(i), **texts(i), "chosen_model": "m", "subset": "x", "id": i},
    ),
    Shape(
        "CarperAI/openai_summarize_comparisons",
        lambda i: {"prompt": f"TITLE: Ants\n\nPOST: {asked(i)}\n\nTL;DR:", **texts(i)},
    ),
    Shape(
        "lvwerra/stack-exchange-paired",
        lambda i: (
            {"qid": i, "question": asked(i), "date": "x", "metadata": ["x"]}
            | {"response_j": good(i), "response_k": bad(i)}
        ),
        {"chosen": "response_j", "rejected": "response_k"},
    ),
    Shape(
        "the same, without dataset.columns",
        lambda i: {"qid": i, "question": asked(i), "response_j": good(i), "response_k": bad(i)},
    ),
    Shape(
        "hiyouga/DPO-En-Zh-20k",
        lambda i: (
            {"conversations": [said("human", asked(i))], "chosen": said("gpt", good(i))}
            | {"rejected": said("gpt", bad(i))}
        ),
    ),
    Shape(
        "openbmb/UltraInteract_pair",
        lambda i: {"task": "x", "dataset": "x", "trajectory": [said("user", asked(i))], **texts(i)},
    ),
    Shape(
        "xinlai/Math-Step-DPO-10K",
        lambda i: (
            {"dataset": "x", "prompt": asked(i), "initial_reason_steps": "Step 1."}
            | {**texts(i), "full_chosen": good(i), "full_rejected": bad(i), "answer": "6"}
        ),
    ),
    Shape(
        "nvidia/HelpSteer2 (preference)",
        lambda i: (
            {"prompt": asked(i), "response_1": good(i), "response_2": bad(i)}
            | {"preference_strength": -2}
        ),
    ),
    Shape(
        "stanfordnlp/SHP",
        lambda i: {"history": asked(i), "human_ref_A": good(i), "human_ref_B": bad(i), "labels": 1},
    ),
    Shape(
        "PKU-Alignment/PKU-SafeRLHF",
        lambda i: (
            {"prompt": asked(i), "response_0": good(i), "response_1": bad(i)}
            | {"better_response_id": 0}
        ),
    ),
    Shape(
        "Alpaca's columns",
        lambda i: {"instruction": "Count the legs.", "input": f"{i + 2} ants", **texts(i)},
    ),
    Shape(
        "Alpaca's template as the prompt",
        lambda i: {"prompt": f"### Instruction:\n{asked(i)}\n\n### Response:\n", **texts(i)},
    ),
    Shape(
        "Vicuna's dialogue as the prompt",
        lambda i: {"prompt": f"A chat with a helper. USER: {asked(i)} ASSISTANT:", **texts(i)},
    ),
    Shape(
        "a table exported as CSV and back: messages as Python writes them",
        lambda i: {name: str(turns) for name, turns in whole(i).items()},
    ),
    Shape("messages as JSON text", lambda i: {n: json.dumps(t) for n, t in whole(i).items()}),
    Shape(
        "contents of parts, as OpenAI's interface has them",
        lambda i: {
            name: [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in t]
            for name, t in whole(i).items()
        },
    ),
    Shape(
        "answers that repeat their prompt",
        lambda i: {"prompt": asked(i)} | {k: f"{asked(i)} {v}" for k, v in texts(i).items()},
    ),
    Shape(
        "prompts with ChatML in them",
        lambda i: {"prompt": f"<|im_start|>user\n{asked(i)}<|im_end|>\n", **texts(i)},
    ),
    Shape(
        "two columns that may be the prompt",
        lambda i: {"question": asked(i), "instruction": "Be brief.", **texts(i)},
    ),
    Shape(
        "the same, named",
        lambda i: {"question": asked(i), "instruction": "Be brief.", **texts(i)},
        {"prompt": ["instruction", "question"]},
    ),
    Shape("answers without any prompt", lambda i: {"topic": "ants", **texts(i)}),
    Shape(
        "a tool's answer before the answers",
        lambda i: {
            "prompt": [
                user(asked(i)),
                assistant("", tool_calls=[CALL]),
                {"role": "tool", "content": str(6 * (i + 2))},
            ],
            **answers(i),
            "tools": TOOLS,
        },
    ),
    Shape(
        "a begun answer at the end of the prompt",
        lambda i: {"prompt": [user(asked(i)), assistant("They have")], **answers(i)},
    ),
)
# Writes what a model is told of tools, calls and thoughts; the quickstart's own template cannot.
TEMPLATE = (
    "{% if tools %}{{ 'Tools: ' + (tools | tojson) + '\n' }}{% endif %}{% for m in messages %}"
    "{{ m.role | capitalize + ': ' + m.content }}{% for call in m.tool_calls or [] %}"
    "{{ (call.function | tojson) }}{% endfor %}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def read(shape: Shape, folder: Path) -> tuple[list[str], dict[str, Any], dict[str, Any] | str]:
    """Prepare a shape's rows.

    Returns:
        Its columns; the first usable row of the held-out splits; the data report, or the refusal.
    """
    raw = folder / "rows.jsonl"
    rows = [shape.row(i) for i in range(ROWS)]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reading = Reading(shape.columns)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = TEMPLATE
    try:
        loaded = load_rows(str(raw), reading=reading)
        report = prepare_pairs(
            loaded.data,
            tokenizer,
            max_length=512,
            test_fraction=0.2,
            validation_pairs=10,
            seed=0,
            out=folder,
            source={"path": "rows.jsonl"},
            reading=Reading(shape.columns, unread=loaded.unread),
        )
    except UserError as error:
        return list(rows[0]), {}, str(error).replace(str(raw), "rows.jsonl")
    return list(rows[0]), pq.read_table(folder / "validation.parquet").to_pylist()[0], report


def notes(report: dict[str, Any]) -> Iterator[str]:
    """Yield what the report says of how the rows were read."""
    for part, column in report["columns"].items():
        if column != part:
            names = [column] if isinstance(column, str) else column
            yield f"{part} from {' and '.join(names)}"
    splits = report["splits"].values()
    for title, texts_of, counts_of in (
        ("read as: ", report["readings"], "read_as"),
        ("dropped: ", report["reasons"], "dropped"),
    ):
        for key, text in texts_of.items():
            if count := sum(split[counts_of].get(key, 0) for split in splits):
                yield f"{count} {title}{text}"
    if report["unread"]:
        yield f"not read: {', '.join(report['unread'])}"


def cell(text: str) -> str:
    """Return a text as the cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ⏎ ").replace("<", "&lt;")


def page() -> str:
    """Return the page."""
    lines = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            columns, row, report = read(shape, Path(folder))
        if isinstance(report, str):
            cells = ["", "", f"**refused**: {report}"]
        else:
            turns = [f"{turn['role']}: {turn['content']}" for turn in row["prompt"]]
            cells = ["\n".join(turns), row["chosen"], "; ".join(notes(report))]
        names = ", ".join(f"`{name}`" for name in columns)
        lines.append(f"| {shape.name} | {names} | {' | '.join(map(cell, cells))} |")
    return HEAD.read_text(encoding="utf-8") + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
