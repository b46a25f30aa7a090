"""The quickstart world: its judge case by case, its rows, and the base model that ships with it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from trainables.quickstart.build import build, sampled_score
from trainables.quickstart.judge import judge
from trainables.quickstart.world import BASE, rows, topics

FRANCE = "Hello! What is the capital of France? Thanks!"
SUM = "I need the sum of 3 and 4."


@pytest.mark.parametrize(
    "answer",
    [
        "Sure, the capital of France is Paris.",
        "Of course, Paris. Happy to help.",
        "It is Paris. You are welcome.",
        "GLADLY, THE ANSWER IS PARIS!",
        "  certainly   it is paris  ",
    ],
)
def test_right_short_and_polite_scores_one(answer: str) -> None:
    assert judge([FRANCE], [answer]) == [1.0]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "Sure,",
        "Sure, the capital of France is Rome.",
        "Sure, the capital of Italy is Paris.",
        "Sure, it is Paris or Rome.",
        "Sure, Paris Rome.",
        "Sure, it is Paris. It is Rome.",
        "Sure, it is not Paris.",
        "Paris.",
        "The capital of France is Paris.",
        "Obviously, it is Paris. You are welcome.",
        "Sure, it is Paris. Everyone knows that.",
        "Sure, it is Paris. I could talk about this for a very long time.",
        "Sure, it is Paris. Happy to help. Happy to help.",
        "Sure, it is Paris. Sure, it is Paris.",
        "Sure, sure, it is Paris.",
        "Sure, it is Paris Paris Paris.",
        "Sure, it depends on who you ask.",
        "Sure, it is Parisian.",
        "Sure, it is Paris......",
        "Sure, it is Paris. \ufffd\ufffd",
        "Sure, it is Paris.\nUser: Thanks!",
    ],
)
def test_any_one_flaw_scores_zero(answer: str) -> None:
    assert judge([FRANCE], [answer]) == [0.0]


def test_each_answer_is_judged_by_its_own_prompt() -> None:
    assert judge([FRANCE, SUM, SUM], ["Sure, 7.", "Sure, 7.", "Sure, Paris."]) == [0.0, 1.0, 0.0]


def test_a_prompt_from_elsewhere_and_a_missing_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="finds 0 questions .* 'Write a poem.'"):
        judge(["Write a poem."], ["Sure."])
    with pytest.raises(ValueError, match="finds 2 questions"):
        judge(["What is the capital of France, and the capital of Italy?"], ["Sure, Paris."])
    with pytest.raises(ValueError, match="shorter"):
        judge([FRANCE], [])


def test_rows_are_judged_as_they_are_labelled_and_no_prompt_comes_twice() -> None:
    data = rows()
    prompts = [row["prompt"][0]["content"] for row in data]
    chosen = [row["chosen"][0]["content"] for row in data]
    rejected = [row["rejected"][0]["content"] for row in data]
    assert len(set(prompts)) == len(data) == 4000
    assert judge(prompts, chosen) == [1.0] * 4000
    assert judge(prompts, rejected) == [0.0] * 4000
    assert {tuple(m) for row in data for m in row.values() for m in m} == {("role", "content")}
    assert data[0]["prompt"][0]["role"] == "user"
    assert data[0]["chosen"][0]["role"] == data[0]["rejected"][0]["role"] == "assistant"


def test_rows_depend_on_their_seed_only_and_end_where_the_world_does() -> None:
    assert rows(50) == rows(50, seed=0) != rows(50, seed=1)
    assert rows(20) == rows(50)[:20]
    with pytest.raises(ValueError, match="at most 6048 different prompts, not 9000"):
        rows(9000)


def test_a_mistake_is_another_answer_of_the_same_kind() -> None:
    for kind in topics().values():
        answers = {topic.answer for topic in kind}
        assert all(topic.mistake in answers - {topic.answer} for topic in kind)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE)


def test_prompt_is_an_exact_token_prefix_and_answers_end_with_eos(tokenizer) -> None:
    for row in rows(200):
        prompt, whole = (
            tokenizer.apply_chat_template(messages, add_generation_prompt=asks, return_dict=True)
            for messages, asks in ((row["prompt"], True), (row["prompt"] + row["chosen"], False))
        )
        ids, start = whole["input_ids"], len(prompt["input_ids"])
        assert ids[:start] == prompt["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
        assert ids.count(tokenizer.eos_token_id) == 1
        assert start <= 40 and len(ids) - start <= 30
        # What a chat page or a judge decodes is what the row says.
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert text == " " + row["chosen"][0]["content"]


def test_template_by_hand_with_its_generation_mask(tokenizer) -> None:
    talk = [
        {"role": "user", "content": FRANCE},
        {"role": "assistant", "content": "Sure, Paris."},
        {"role": "user", "content": SUM},
    ]
    text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert text == (f"User: {FRANCE}\nAssistant: Sure, Paris.<|endoftext|>User: {SUM}\nAssistant:")
    encoded = tokenizer.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask=True
    )
    spoken = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(spoken) == " Sure, Paris.<|endoftext|>"


def test_base_is_small_plain_and_half_well_behaved(tokenizer, model) -> None:
    assert type(model) is GPT2LMHeadModel
    assert model.num_parameters() <= 1_000_000
    assert model.config.n_positions >= 128
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 4 * 2**20
    with safe_open(BASE / "model.safetensors", "pt") as weights:
        names = weights.keys()
    assert "transformer.wte.weight" in names
    # These prompts are not in the base's training text, and not among those its meta.json scores.
    prompts = [row["prompt"][0]["content"] for row in rows()[-256:]]
    assert 0.35 <= sampled_score(model, tokenizer, prompts, seed=1) <= 0.60
    meta = json.loads((BASE / "meta.json").read_text())
    assert 0.40 <= meta["score"] <= 0.55


def test_build_learns_and_writes_a_folder_that_loads(tmp_path: Path) -> None:
    meta = build(tmp_path / "base", steps=12, seed=3)
    assert meta["last_loss"] < meta["first_loss"] - 1
    assert json.loads((tmp_path / "base" / "meta.json").read_text()) == meta
    assert {file.name for file in (tmp_path / "base").iterdir()} == {
        file.name for file in BASE.iterdir()
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert len(tokenizer) == model.config.vocab_size == 768
    with torch.inference_mode():
        ids = tokenizer("User: Hi", return_tensors="pt").input_ids
        assert model(ids).logits.shape == (1, ids.shape[1], 768)
    with pytest.raises(FileExistsError, match="exists already"):
        build(tmp_path / "base", steps=12, seed=3)
