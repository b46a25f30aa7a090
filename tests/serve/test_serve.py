"""The engine behind the chat page, held against transformers' own generation."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folder import write_model, write_run
from streamlit.testing.v1 import AppTest
from transformers import AutoConfig, AutoModelForCausalLM

from results.run.layout import LOCK
from search_spaces.errors import UserError
from serve.choice import literal
from serve.engine import Engine, Message, load
from serve.launch import APP, command

HELLO: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(str(folder))


def test_greedy_stream_is_what_transformers_generates(engine: Engine) -> None:
    inputs = engine.tokenizer.apply_chat_template(
        HELLO, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(engine.model.device)
    expected = engine.model.generate(**inputs, do_sample=False, max_new_tokens=24)
    answer = expected[0, inputs["input_ids"].shape[1] :]
    text = engine.tokenizer.decode(answer, skip_special_tokens=True).lstrip()
    assert "".join(engine.stream(HELLO, temperature=0, max_new_tokens=24)) == text


STATES: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "rwkv": {"attention_hidden_size": 32},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "lru_width": 32,
        "attention_window_size": 64,
    },
}


@pytest.mark.parametrize("family", STATES)
def test_models_that_keep_their_state_otherwise_answer_too(folder: Path, family: str) -> None:
    """Two streams that alternate, of models that have no cache of keys and values."""
    torch.manual_seed(0)
    tokenizer = load(str(folder)).tokenizer
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(family, **{**sizes, **ends, **STATES[family]})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.1)
    engine = Engine(model, tokenizer, family)
    ids = torch.tensor([engine.prompt(HELLO, 12).ids])
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
    expected = tokenizer.decode(answer, skip_special_tokens=True).lstrip()
    streams = [engine.stream(HELLO, temperature=0, max_new_tokens=12) for _ in range(2)]
    pieces = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(column) for column in zip(*pieces, strict=True)] == [expected, expected]


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would draw what is missing at random, and the chat would talk to noise."""
    from safetensors.torch import load_file, save_file

    torn = shutil.copytree(folder, tmp_path / "torn")
    weights = load_file(torn / "model.safetensors")
    name = next(name for name in weights if "attn" in name)
    del weights[name]
    save_file(weights, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"torn has no weights for 1 parameters .*{name}"):
        load(str(torn))


def test_alternating_streams_do_not_disturb_each_other(engine: Engine) -> None:
    def one(seed: int) -> str:
        return "".join(engine.stream(HELLO, seed=seed, max_new_tokens=20, top_p=0.9, top_k=50))

    alone = [one(1), one(2)]
    assert alone[0] != alone[1]
    streams = [
        engine.stream(HELLO, seed=seed, max_new_tokens=20, top_p=0.9, top_k=50) for seed in (1, 2)
    ]
    pieces = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(column) for column in zip(*pieces, strict=True)] == alone


def test_an_abandoned_stream_leaves_the_engine_usable(engine: Engine) -> None:
    stream = engine.stream(HELLO, seed=3, max_new_tokens=200)
    first = next(stream)
    del stream
    assert next(engine.stream(HELLO, seed=3, max_new_tokens=200)) == first


def test_letters_of_several_bytes_come_whole(engine: Engine) -> None:
    import torch

    # A model that says one emoji, byte by byte, whatever it is asked.
    target = engine.tokenizer.encode(" \N{SNOWMAN}")
    assert len(target) > 2

    class Fixed:
        config = engine.model.config
        generation_config = engine.model.generation_config
        device = torch.device("cpu")
        said = 0

        def __call__(self, **inputs: object) -> object:
            logits = torch.full((1, 1, len(engine.tokenizer)), -100.0)
            end = engine.tokenizer.eos_token_id
            logits[0, 0, target[self.said] if self.said < len(target) else end] = 100.0
            self.said += 1
            return type("Output", (), {"logits": logits, "past_key_values": None})()

    pieces = list(Engine(Fixed(), engine.tokenizer, "fixed").stream(HELLO, temperature=0))
    assert pieces == ["\N{SNOWMAN}"]


def test_long_conversations_lose_their_oldest_turns(engine: Engine) -> None:
    system: Message = {"role": "system", "content": "Be kind."}
    turns: list[Message] = []
    for number in range(12):
        turns.append({"role": "user", "content": f"Question {number}: what is two plus three?"})
        turns.append({"role": "assistant", "content": "Two plus three is five, of course."})
    last: Message = {"role": "user", "content": "And the opposite of hot?"}
    prompt = engine.prompt([system, *turns, last], max_new_tokens=100)
    assert len(prompt.ids) + 100 <= engine.positions == 256
    assert prompt.dropped > 0 and prompt.dropped % 2 == 0
    text = engine.tokenizer.decode(prompt.ids)
    assert text.startswith("System: Be kind.") and "opposite of hot?" in text
    assert "Question 0:" not in text and "Question 11:" in text
    # One pair more would not have fitted.
    more = [system, *turns[prompt.dropped - 2 :], last]
    ids = engine.tokenizer.apply_chat_template(more, add_generation_prompt=True, return_dict=False)
    assert len(ids) + 100 > 256


def test_a_message_that_alone_is_too_long_is_refused(engine: Engine) -> None:
    long: list[Message] = [{"role": "user", "content": "hot and cold " * 100}]
    with pytest.raises(UserError, match="do not fit into this model's 256 positions"):
        list(engine.stream(long))


def test_refuses_what_it_cannot_trust_or_speak_to(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json"):
        load(str(tmp_path))
    silent = shutil.copytree(folder, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        load(str(silent))
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no \*\.safetensors"):
        load(str(pickled))
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps({"model_type": "nothing known"}))
    with pytest.raises(UserError, match="broken cannot be loaded"):
        load(str(broken))


def test_literal_leaves_nothing_for_markdown() -> None:
    assert literal("![x](http://y) <b> $a$ :red[z]") == (
        r"\!\[x\]\(http\://y\) \<b\> \$a\$ \:red\[z\]"
    )


def test_command_keeps_the_page_on_this_machine_and_quiet() -> None:
    words = command("127.0.0.1", 8501, ["--storage", "runs", "--run", "runs/won"])
    assert words[words.index("--server.address") + 1] == "127.0.0.1"
    assert words[words.index("--server.port") + 1] == "8501"
    assert words[words.index("--browser.gatherUsageStats") + 1] == "false"
    assert words[words.index("--") + 1 :] == ["--storage", "runs", "--run", "runs/won"]


def open_app(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> AppTest:
    monkeypatch.setattr("sys.argv", [str(APP), *arguments])
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.exception
    return app


def test_page_without_any_run_says_how_to_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = open_app(monkeypatch, "--storage", str(tmp_path))
    assert "preftune run quickstart" in app.error[0].value.replace("\\", "")


def test_run_without_a_winner_chats_with_the_reference_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_run(tmp_path, "lost", outcome="none")
    app = open_app(monkeypatch, "--storage", str(tmp_path), "--run", str(folder))
    assert "the reference alone" in app.info[0].value
    app.sidebar.slider[3].set_value(8)
    app.chat_input[0].set_value("Hello").run()
    assert not app.exception and app.chat_message[0].children[0].value == "Hello"
    captions = [caption.value for caption in app.caption]
    assert "Reference" in captions and not any("Tuned" in caption for caption in captions)


def test_board_of_a_damaged_run_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_run(tmp_path, "damaged", state="searching")
    arguments = ("--storage", str(tmp_path), "--run", str(folder))
    monkeypatch.setattr("sys.argv", [str(APP), *arguments])
    script = (
        "from serve import board, choice\n"
        f"board.page(choice.pick({str(tmp_path)!r}, {str(folder)!r}, None))"
    )
    app = AppTest.from_string(script, default_timeout=60).run()
    assert not app.exception
    assert [metric.value for metric in app.metric] == ["searching", "4 of 6", "0.810", "0.500"]
    assert "KL blow-up, missing EOS, pairs mislead" in set(app.dataframe[0].value["warnings"])
    warnings = next(box for box in app.expander if box.label == "Warnings")
    words = warnings.markdown[0].value.replace("\\", "")
    assert "- **The data, truncated answers.** In many pairs" in words
    assert "- **Trial 2, pairs mislead.** It ranks 99 % of the pairs right" in words
    (folder / "verdict.json").write_text("{")
    app.run()
    assert not app.exception and "cannot be read" in app.error[0].value.replace("\\", "")


def test_other_weights_under_the_same_path_are_loaded_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """More trials name another winner: `best/` is replaced while the page is open."""
    folder = write_run(tmp_path, "won")
    app = open_app(monkeypatch, "--storage", str(tmp_path), "--run", str(folder))
    title = "Tuned: trial 0"
    app.sidebar.slider[0].set_value(0.0)
    app.sidebar.slider[3].set_value(8)
    app.chat_input[0].set_value(HELLO[0]["content"]).run()
    answers = [app.session_state["turns"][0].answers[title]]
    shutil.rmtree(folder / "best")
    write_model(folder / "best", seed=7)
    app.run()
    assert app.session_state["turns"] == []  # it was another model's conversation
    app.chat_input[0].set_value(HELLO[0]["content"]).run()
    answers.append(app.session_state["turns"][0].answers[title])
    expected = load(str(folder / "best")).stream(HELLO, temperature=0, max_new_tokens=8)
    assert answers[1] == "".join(expected) != answers[0]


OPENED: list[str] = []
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)


def test_the_board_reads_only_what_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_run(tmp_path, "live", state="searching")
    monkeypatch.setattr("sys.argv", [str(APP), "--storage", str(tmp_path), "--run", str(folder)])
    script = (
        "from serve import board, choice\n"
        f"board.page(choice.pick({str(tmp_path)!r}, {str(folder)!r}, None))"
    )
    app = AppTest.from_string(script, default_timeout=60).run()

    def read_again() -> set[str]:
        OPENED.clear()
        app.run()
        assert not app.exception
        ours = {Path(name) for name in OPENED if name.startswith(str(tmp_path))}
        return {str(path.relative_to(folder)) for path in ours if path.name != LOCK}

    assert read_again() == set()
    measures = folder / "trials" / "1" / "measures.jsonl"
    line = json.loads(measures.read_text().splitlines()[-1]) | {"pairs": 533, "kl": 77.0}
    with measures.open("a") as file:
        file.write(json.dumps(line) + "\n")
    # Its answers too: they are those of another rung now.
    assert read_again() == {"trials/1/measures.jsonl", "trials/1/samples.jsonl"}
    assert 77.0 in set(app.dataframe[0].value["kl"])
