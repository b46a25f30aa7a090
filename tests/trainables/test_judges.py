"""Judges: what they return, and what a user reads when one of them fails."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from search_spaces.errors import UserError
from trainables.judges.load import load_judge
from trainables.models import load_tokenizer
from trainables.quickstart.world import rows

CPU = torch.device("cpu")
TEMPLATE = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"


def written(folder: Path, code: str) -> str:
    path = folder / "mine.py"
    path.write_text(code, encoding="utf-8")
    return str(path)


def test_a_file_judges_by_its_own_rule(tmp_path: Path) -> None:
    # A dataclass, because it needs a module that Python can look up.
    judge = written(
        tmp_path,
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "@dataclass\n"
        "class Rule:\n"
        "    weight: float\n"
        "def judge(prompts, answers):\n"
        "    rule = Rule(2.0)\n"
        "    return np.array([rule.weight * len(a) - len(p) for p, a in zip(prompts, answers)])\n",
    )
    assert load_judge(judge, CPU)(["ab", "c"], ["xyz", ""]) == [4.0, -1.0]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "def judge(prompts, answers):\n    x = 1\n    return [1 / 0]\n",
            "line 3.*ZeroDivisionError",
        ),
        ("def judge(prompts, answers):\n    return [float('nan')]\n", "scored answer 0 with nan"),
        ("def judge(prompts, answers):\n    return ['good']\n", "scored answer 0 with 'good'"),
        ("def judge(prompts, answers):\n    return [None]\n", "scored answer 0 with None"),
        ("def judge(prompts, answers):\n    return [1.0, 2.0]\n", "2 scores for 1 answers"),
        ("def judge(prompts, answers):\n    return 1.0\n", r"returned 1\.0 for 1 answers"),
        ("def judge(prompts):\n    return [1.0]\n", "TypeError: judge.. takes 1 positional"),
    ],
)
def test_what_goes_wrong_while_judging_is_named(tmp_path: Path, code: str, sentence: str) -> None:
    path = written(tmp_path, code)
    judge = load_judge(path, CPU)
    with pytest.raises(UserError, match=sentence) as raised:
        judge(["the question"], ["the answer"])
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def judge(prompts, answers):\n    return [\n", "line 2.*SyntaxError"),
        ("x = 1\nimport no_such_module\n", "line 2.*No module named 'no_such_module'"),
        ("def jugde(prompts, answers): ...\n", "defines no function `judge`"),
    ],
)
def test_a_file_that_holds_no_judge_is_refused(tmp_path: Path, code: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_judge(written(tmp_path, code), CPU)


COUNTED = """
from pathlib import Path
with Path(__file__).with_suffix(".log").open("a") as log:
    log.write("executed\\n")
def judge(prompts, answers):
    return [{score}] * len(answers)
"""


def test_a_file_is_executed_once_while_its_content_stays(tmp_path: Path) -> None:
    path = written(tmp_path, COUNTED.format(score=1))
    first, second = (load_judge(path, CPU) for _ in range(2))
    assert first(["a"], ["b"]) == second(["a"], ["b"]) == [1.0]
    assert (tmp_path / "mine.log").read_text() == "executed\n"
    (tmp_path / "link.py").symlink_to(path)  # another name of the same file
    load_judge(str(tmp_path / "link.py"), CPU)
    assert (tmp_path / "mine.log").read_text() == "executed\n"


def test_a_file_that_changes_is_executed_again_even_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    scores = []
    for score in (1, 2, 1):
        written(tmp_path, COUNTED.format(score=score))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        scores += load_judge(str(path), CPU)(["a"], ["b"])
    assert scores == [1.0, 2.0, 1.0]
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_that_failed_is_tried_again(tmp_path: Path) -> None:
    needed = tmp_path / "weights.txt"
    code = f"from pathlib import Path\nWEIGHT = float(Path({str(needed)!r}).read_text())\n"
    path = written(tmp_path, code + "def judge(prompts, answers):\n    return [WEIGHT]\n")
    with pytest.raises(UserError, match="line 2.*FileNotFoundError"):
        load_judge(path, CPU)
    needed.write_text("0.5")
    assert load_judge(path, CPU)(["a"], ["b"]) == [0.5]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist.*gone\.py"):
        load_judge(str(tmp_path / "gone.py"), CPU)


def test_the_quickstarts_judge_prefers_what_is_wanted() -> None:
    pairs = rows(20)
    prompts = [pair["prompt"][-1]["content"] for pair in pairs]
    judge = load_judge("quickstart", CPU)
    assert judge(prompts, [pair["chosen"][0]["content"] for pair in pairs]) == [1.0] * 20
    assert judge(prompts, [pair["rejected"][0]["content"] for pair in pairs]) == [0.0] * 20


def test_the_quickstarts_judge_says_that_it_knows_its_own_world_only() -> None:
    with pytest.raises(UserError, match="quickstart.*`judge` a reward model"):
        load_judge("quickstart", CPU)(["What is love?"], ["A question."])


def tokenizer_of(template: str | None) -> PreTrainedTokenizerFast:
    words = ["<eos>", "<unk>", "user", "assistant", "a", "b", "c"]
    level = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(level)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = template
    return fast


def saved(folder: Path, model: Any, template: str | None = TEMPLATE) -> Path:
    model.save_pretrained(folder)
    tokenizer_of(template).save_pretrained(folder)
    return folder


def config(labels: int) -> GPT2Config:
    torch.manual_seed(0)
    return GPT2Config(
        vocab_size=7,
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        num_labels=labels,
        bos_token_id=0,
        eos_token_id=0,
    )


def test_a_reward_model_scores_conversations_whatever_their_batch(tmp_path: Path) -> None:
    model = GPT2ForSequenceClassification(config(1)).eval()
    judge = load_judge(str(saved(tmp_path, model)), CPU)
    answers = [" ".join("abc"[(i + j) % 3] for j in range(i % 7 + 1)) for i in range(40)]
    tokenizer = tokenizer_of(TEMPLATE)
    expected = []
    for answer in answers:
        ids = tokenizer(f"user c b assistant {answer}")["input_ids"]
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids])).logits[0, 0]))
    assert len(set(expected)) > 10
    assert judge(["c b"] * 40, answers) == pytest.approx(expected, abs=1e-5)


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "llama mistral qwen2 qwen3 gemma gemma2 phi phi3 stablelm starcoder2 persimmon".split(),
        SMALL,
    ),
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 8},
    "gpt_neox": SMALL,
    "gpt_bigcode": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "opt": {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "bert": SMALL,
    "roberta": SMALL,
    "deberta-v2": SMALL,
    "modernbert": {**SMALL, "num_attention_heads": 2},
}
# EOS ends a conversation, and it is there that the score is trained.
ENDING = TEMPLATE.replace("{% endfor %}", "{{ eos_token if m.role == 'assistant' }}{% endfor %}")


@pytest.mark.parametrize("own", [False, True], ids=["no padding token", "EOS pads"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_gives_what_a_model_gives_one_by_one(family: str, own: bool, tmp_path: Path) -> None:
    """Where the configuration has no padding token, EOS is a token like any other."""
    torch.manual_seed(0)
    # Encoders place their words by the padding token, so all have one.
    encoder = family in ("bert", "roberta", "deberta-v2", "modernbert", "opt")
    pads = 0 if own else 1 if encoder else None
    sizes = {"vocab_size": 40, "num_labels": 1, "bos_token_id": 0, "eos_token_id": 0}
    made = AutoConfig.for_model(family, **{**sizes, "pad_token_id": pads, **FAMILIES[family]})
    model = AutoModelForSequenceClassification.from_config(made).float().eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.2)
    judge = load_judge(str(saved(tmp_path, model, ENDING)), CPU)
    answers = [" ".join("abc"[(i + j) % 3] for j in range(i % 5 + 1)) for i in range(12)]
    tokenizer = load_tokenizer(tmp_path)  # some families have a class of their own
    expected = []
    for answer in answers:
        ids = tokenizer(f"user c b assistant {answer} <eos>")["input_ids"]
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids])).logits[0, 0]))
    assert len({round(score, 4) for score in expected}) > 4
    assert judge(["c b"] * 12, answers) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_conversations_longer_than_the_judge_reads_are_cut_and_counted(
    side: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """64 positions; the tokenizer says at which end, and its own limit may be lower."""
    model = GPT2ForSequenceClassification(config(1)).eval()
    saved(tmp_path, model)
    path = tmp_path / "tokenizer_config.json"
    settings = {"truncation_side": side, "model_max_length": 40}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    tokenizer = tokenizer_of(TEMPLATE)
    answers = ["a b c " * 30, "a", "c b " * 40]
    scores = load_judge(str(tmp_path), CPU)(["c b"] * 3, answers)
    assert "2 of 3 conversations have more than the 40 tokens" in caplog.text
    for answer, score in zip(answers, scores, strict=True):
        ids = tokenizer(f"user c b assistant {answer}")["input_ids"]
        ids = ids[:40] if side == "right" else ids[-40:]
        with torch.no_grad():
            assert float(model(torch.tensor([ids])).logits[0, 0]) == pytest.approx(score, abs=1e-5)


def test_a_reward_model_reads_fewer_conversations_where_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = load_judge(str(saved(tmp_path, GPT2ForSequenceClassification(config(1)))), CPU)
    answers = ["a " * (i % 5 + 1) for i in range(20)]
    expected = judge(["c"] * 20, answers)
    forward, sizes = GPT2ForSequenceClassification.forward, []

    def on_a_small_device(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(input_ids))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids, **options)

    monkeypatch.setattr(GPT2ForSequenceClassification, "forward", on_a_small_device)
    assert judge(["c"] * 20, answers) == pytest.approx(expected, abs=1e-5)
    assert sizes == [16, 8, 4, 4, 4, 4, 4]


def test_models_that_are_no_judges_are_refused(tmp_path: Path) -> None:
    two_labels = GPT2ForSequenceClassification(config(2))
    # Its scoring head would be drawn at random.
    language = GPT2LMHeadModel(config(1))
    no_template = GPT2ForSequenceClassification(config(1))
    for name, model, template, sentence in (
        ("two", two_labels, TEMPLATE, "2 labels"),
        ("language", language, TEMPLATE, "weights lack score.weight"),
        ("bare", no_template, None, "no chat template"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_judge(str(saved(tmp_path / name, model, template)), CPU)


def test_a_reward_model_kept_as_a_pickle_is_refused(tmp_path: Path) -> None:
    model = GPT2ForSequenceClassification(config(1))
    saved(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded as a reward model"):
        load_judge(str(tmp_path), CPU)


def test_a_reward_model_that_is_nowhere_is_named() -> None:
    with pytest.raises(UserError, match=r"/no/such/judge"):
        load_judge("/no/such/judge", CPU)
