"""A checkpoint made into a model's folder: it ends its answers where its trial learned to."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from run_folder import CORPUS
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList

from results.publish.model_files import model_files
from results.publish.public_view import candidate
from results.run.listing import open_run
from search_spaces.spec import Spec, validate
from trainables.dpo import train
from trainables.models import load_tokenizer
from trainables.prepared import Prepared, Split
from trainables.reference import logps_of_pairs, read_pairs
from trainables.reference_files import save_logps
from trainables.trial_report import Report
from tune.cluster.connection import connected
from tune.export import model_folder
from tune.record import create
from tune.study import Study

# A turn ends with a token of the template's own, as in ChatML; the base's EOS ends documents.
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bfloat16 whose config knows only the token that ends documents."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "base"
    bpe = ByteLevelBPETokenizer()
    specials = ["<|document|>", "<|turn|>", "<|done|>"]
    bpe.train_from_iterator(CORPUS, vocab_size=400, special_tokens=specials, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|document|>",
        bos_token="<|document|>",
        additional_special_tokens=specials[1:],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Eight pairs, and the tokenizer with the token that ends a turn as its EOS."""
    from trainables.data.preferences import prepare_pairs
    from trainables.fused_head import load_scorer

    root = tmp_path_factory.mktemp("prepared")
    questions = [f"What is the capital of country {n}?" for n in range(60)]
    prepare_pairs(
        Dataset.from_list(
            [{"prompt": q, "chosen": "It is Paris.", "rejected": "No idea."} for q in questions]
        ),
        load_tokenizer(base),
        max_length=64,
        test_fraction=0.2,
        validation_pairs=8,
        seed=1,
        out=root,
    )
    model = load_scorer(base)
    pairs = read_pairs(root / "train.parquet")
    save_logps(root / "train.npz", *logps_of_pairs(model, pairs, batch_size=8, pad_token_id=0))
    split = Split(root / "train.parquet", root / "train.npz", None)
    return Prepared(base, root / "tokenizer", split, split)


def spec_of(lora: bool) -> Spec:
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": None,
            "space": {"beta": {"choice": [0.1, 0.3]}},
            "training": {"learning_rate": 1e-2, "per_device_train_batch_size": 4},
            "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]} if lora else None,
            "budget": {"pairs": 8},
            "search": {"scheduler": "none"},
            "precision": "fp32",
            "resources": {"gpu": 0},
        }
    )


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def trial(
    request: pytest.FixtureRequest, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spec, Path]:
    """A search's spec and what a trial of it has saved after its first step."""
    spec = spec_of(request.param)
    checkpoint = tmp_path_factory.mktemp("trial") / "checkpoint"

    def keep(report: Report) -> None:
        assert report.checkpoint is not None, report
        shutil.copytree(report.checkpoint, checkpoint)
        raise SystemExit

    with pytest.raises(SystemExit):
        train(spec, {"beta": 0.1}, prepared, keep, seed=1, save_now=lambda: True)
    return spec, checkpoint


@pytest.fixture(scope="module")
def exported(
    trial: tuple[Spec, Path], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    spec, checkpoint = trial
    out = tmp_path_factory.mktemp("run") / "best"
    with connected(None) if spec.lora else nullcontext():  # an adapter is merged on a worker
        model_folder(spec, out, prepared, checkpoint, {})
    return out


def test_answers_end_where_the_template_ends_a_turn(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    done = tokenizer.convert_tokens_to_ids("<|done|>")
    assert tokenizer.eos_token_id == done != 0
    model = AutoModelForCausalLM.from_pretrained(exported)
    ends = GenerationConfig.from_pretrained(exported).eos_token_id
    assert done in (ends if isinstance(ends, list) else [ends])
    assert model.config.eos_token_id == done
    pads = (model.config.pad_token_id, model.generation_config.pad_token_id)
    assert pads == (tokenizer.pad_token_id,) * 2
    # Made to say `<|done|>` for ever, it says it once.
    always = LogitsProcessorList(
        [lambda ids, scores: scores.index_fill(1, torch.tensor(done), 1e9)]
    )
    asked = torch.tensor([[5, 6, 7]])
    said = model.generate(asked, max_new_tokens=9, do_sample=False, logits_processor=always)
    assert said[0, 3:].tolist() == [done]


def test_weights_are_stored_as_the_base_stores_them_or_as_they_learned(
    trial: tuple[Spec, Path], exported: Path, base: Path
) -> None:
    """An adapter is merged into a base in bfloat16; a whole model has learned in float32.

    Rounding that to bfloat16 would undo every step that is smaller than half a unit there.
    """
    stored = "BF16" if trial[0].lora else "F32"
    with safe_open(exported / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {stored}
    config = json.loads((exported / "config.json").read_text())
    assert config["dtype"] == {"BF16": "bfloat16", "F32": "float32"}[stored]


def test_another_trial_is_pushed_as_the_winner_is_exported(
    trial: tuple[Spec, Path], exported: Path, prepared: Prepared, tmp_path: Path
) -> None:
    spec, checkpoint = trial
    record = create(spec.model_copy(update={"storage": str(tmp_path)}), "run", True, "test")
    base = {"path": str(prepared.model), "folder": str(prepared.model)}
    record.update(prepared={"data": "data-1"}, model=base)
    shutil.copytree(prepared.tokenizer, tmp_path / "prepared" / "data-1" / "tokenizer")
    shutil.copytree(checkpoint, record.folder / "checkpoint")
    study = Study(spec, record.folder)
    study.ask()
    study.note(0, checkpoint="checkpoint")
    run = open_run(record.folder)
    with model_files(run, candidate(run, 0)) as files:
        pushed = {name: path.read_bytes() for name, path in files.items()}
    assert pushed == {path.name: path.read_bytes() for path in exported.iterdir()}
