"""A search is refused with every reason at once, or it is whole."""

# ruff: noqa: E501 - one refusal a row reads better than four lines each

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces.errors import Problem, SpecError
from search_spaces.spec import Spec, load, validate
from search_spaces.upstream_fields import F_DIVERGENCES, LOSS_TYPES
from search_spaces.yaml_io import shipped

BASE = """
model: quickstart
dataset: {path: quickstart, validation_pairs: 256}
judge: quickstart
space:
  learning_rate: {loguniform: [1e-5, 1e-3]}
  beta: {uniform: [0.05, 1]}
  per_device_train_batch_size: {choice: [4, 8]}
training: {max_length: 128}
budget: {pairs: 900}
"""
LORA = "lora={r: 8}"
GRID = (
    "search.sampler=grid",
    "space={beta: {choice: [0.1, 0.2]}, gradient_accumulation_steps: {int: [1, 3]}}",
)


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(BASE)
    return str(path)


def problems_of(source: str, *overrides: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        load(source, overrides)
    return caught.value.problems


# Overrides on BASE; the key of the only problem they make; what its line says.
REFUSED = [
    # names of keys
    ("search.trils=8", "search.trils", ["no such key", "trials"]),
    ("serch={trials: 8}", "serch", ["no such key", "`search`"]),
    ("verify.seed=2", "verify.seed", ["`seeds`"]),
    ("training={1: 2}", "training.1", ["not text"]),
    ("judge.x=1", "--set judge.x=1", ["judge={...}"]),
    ("search", "--set search", ["search.trials=8"]),
    ("=8", "--set =8", ["key.path=value"]),
    ("search.trials=[8", "--set search.trials=[8", ["not valid YAML"]),
    # types and ranges
    ("search.trials=many", "search.trials", ['"many"', "integer", "without quotes"]),
    ("search.trials=true", "search.trials", ["true", "integer"]),
    ("search.trials=0", "search.trials", ["greater than or equal to 1"]),
    ("search.trials=null", "search.trials", ["write one"]),
    ("search.minutes=0", "search.minutes", ["greater than 0"]),
    ("search.minutes=.inf", "search.minutes", ["finite"]),
    ("search.sampler=bayes", "search.sampler", ["'tpe', 'random' or 'grid'"]),
    ("search.seed=-1", "search.seed", ["greater than or equal to 0"]),
    ("search.concurrent=0", "search.concurrent", ["greater than or equal to 1"]),
    ("search=9", "search", ["mapping", "trials"]),
    ("dataset=owner/name", "dataset", ["mapping", "path"]),
    ("dataset.test_fraction=1", "dataset.test_fraction", ["less than 1"]),
    ("dataset.revision=2024", "dataset.revision", ["string", "quotes"]),
    ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens", ["1"]),
    ("evaluation.prompts=300", "evaluation.prompts", ["256", "dataset.validation_pairs"]),
    ("verify.seeds=0", "verify.seeds", ["greater than or equal to 1"]),
    ("sft={epochs: 0}", "sft.epochs", ["greater than 0"]),
    ("precision=fp16", "precision", ["bf16"]),
    ("trust_remote_code=1", "trust_remote_code", ["boolean"]),
    ("resources.gpu=2", "resources.gpu", ["at most one device", "auto"]),
    ("resources.gpu=true", "resources.gpu", ["auto"]),
    ("resources.cpu=0", "resources.cpu", ["greater than 0"]),
    ("storage=s3://bucket/runs", "storage", ["driver's own file system"]),
    # not yet
    ("trackers=[wandb]", "trackers", ["not yet supported", "leave it out"]),
    # places of checkpoints
    ("checkpoints=s3://AKIA:hidden@bucket/x", "checkpoints", ["\"s3://...\"", "must not hold credentials", "AWS_SECRET_ACCESS_KEY"]),
    ("checkpoints=s3://bucket/x?access_key=a&secret_key=hidden", "checkpoints", ["\"s3://...\"", "environment"]),
    ("checkpoints=s3://bucket/x?endpoint_override=http%3A%2F%2Fme%3Ahidden%40host", "checkpoints", ["must not hold credentials"]),
    ("checkpoints=s4://bucket/x", "checkpoints", ["`s3`"]),
    ("checkpoints=s3:///x", "checkpoints", ["names no bucket"]),
    ("checkpoints=somewhere/else", "checkpoints", ["absolute path"]),
    ("resources.label=a100", "resources.label", ["not yet supported"]),
    # places
    ("model=./nowhere", "model", ["no such file or folder"]),
    ("dataset.path=pairs.jsonl.gz", "dataset.path", ["no such file or folder"]),
    ("judge=judge.py", "judge", ["no such file or folder"]),
    ("judge=~/nowhere-at-all", "judge", ["no such file or folder"]),
    ("model=a b", "model", ["owner/name"]),
    ("model=a/b/c", "model", ["owner/name"]),
    ("model=''", "model", ["owner/name"]),
    ("revision=main", "revision", ["only a Hub repository"]),
    ("dataset.revision=main", "dataset.revision", ["only a Hub repository"]),
    # objective
    ("objective.metric=accuracy", "objective.metric", ["ties", "win_rate"]),
    ("objective.metric=rewards/margins", "objective.metric", ["factor beta"]),
    ("objective.metric=eval_loss", "objective.metric", ["0.669", "pair_loss"]),
    ("objective.metric=kl", "objective.metric", ["not trained"]),
    ("objective.metric=judge_score", "objective.metric", ["own unit"]),
    ("objective.metric=repetition", "objective.metric", ["collapse"]),
    ("objective.metric=winrate", "objective.metric", ["`win_rate`"]),
    ("objective=fast", "objective", ["mapping"]),
    ("objective.constraints=[kl]", "objective.constraints", ["mapping"]),
    ("objective.constraints.kll={max: 1}", "objective.constraints.kll", ["`kl`"]),
    ("objective.constraints.kl=5", "objective.constraints.kl", ["mapping", "keys from min, max"]),
    ("objective.constraints.kl={max: .nan}", "objective.constraints.kl.max", ["finite"]),
    ("objective.constraints.ended={min: 1, max: 0}", "objective.constraints.ended", ["min below"]),
    ("objective={metric: pair_loss, constraints: {ended: null}}", "objective.constraints.ended", ["without this limit"]),
    # budget and rungs
    ("budget={}", "budget", ["exactly one", "{pairs: 4000}"]),
    ("budget.steps=5", "budget", ["exactly one"]),
    ("budget={steps: 500}", "budget", ["equal pairs", "search.scheduler"]),
    ("budget.pairs=1e3", "budget.pairs", ["integer"]),
    ("search.rungs=[300, 100, 900]", "search.rungs", ["in order"]),
    ("search.rungs=[100, 300]", "search.rungs", ["end with 900"]),
    ("search.rungs=[]", "search.rungs", ["end with 900"]),
    ("search.rungs=[0, 900]", "search.rungs[0]", ["1"]),
    # domains
    ("space={}", "space", ["nothing is searched"]),
    ("space.weight_decay=0.1", "space.weight_decay", ["constant", "`training`", "{choice:"]),
    ("space.weight_decay={}", "space.weight_decay", ["exactly one of choice"]),
    ("space.weight_decay={choice: [0.1], uniform: [0, 1]}", "space.weight_decay", ["2 keys"]),
    ("space.weight_decay={unifrom: [0, 1]}", "space.weight_decay", ["`uniform`"]),
    ("space.weight_decay={choice: []}", "space.weight_decay", ["at least one"]),
    ("space.weight_decay={choice: 0.1}", "space.weight_decay", ["list"]),
    ("space.weight_decay={choice: [0.1, 0.10]}", "space.weight_decay", ["twice"]),
    ("space.weight_decay={choice: [0, .nan]}", "space.weight_decay", ["finite"]),
    ("space.weight_decay={uniform: [0.1]}", "space.weight_decay", ["{uniform: [low, high]}"]),
    ("space.weight_decay={uniform: [1, 0]}", "space.weight_decay", ["below the second"]),
    ("space.weight_decay={uniform: [1, 1]}", "space.weight_decay", ["{choice: [1]}"]),
    ("space.weight_decay={uniform: [0, .inf]}", "space.weight_decay", ["not a finite number"]),
    ("space.weight_decay={uniform: ['0', '1e-1']}", "space.weight_decay", ["'0'", "quotes"]),
    ("space.weight_decay={loguniform: [0, 1]}", "space.weight_decay", ["above 0", "uniform"]),
    ("space.warmup_steps={logint: [0, 9]}", "space.warmup_steps", ["above 0", "use int"]),
    ("space.warmup_steps={int: [0.5, 9]}", "space.warmup_steps", ["whole number"]),
    ("space.warmup_steps={int: [0, true]}", "space.warmup_steps", ["not a finite number"]),
    # names of fields
    ("training.learning_rte=1e-4", "training.learning_rte", ["DPOConfig", "`learning_rate`"]),
    ("space.batch_size={choice: [4]}", "space.batch_size", ["`per_device_train_batch_size`"]),
    ("space.lr={choice: [1e-3]}", "space.lr", ["`learning_rate`", '"choice"']),
    ("space.r={choice: [8]}", "space.r", ["LoraConfig", "lora.r"]),
    ("training={lora.r: 8}", "training.lora.r", ["under `lora`"]),
    ("training.beta=0.1", "training.beta", ["also in `space`"]),
    ("space.lora.r={choice: [8]}", "space.lora.r", ["LoRA is off", "`lora: {}`"]),
    ("lora={rr: 8}", "lora.rr", ["LoraConfig", "`r`"]),
    # fields that are not the user's
    ("training.output_dir=out", "training.output_dir", ["run's folder"]),
    ("training.report_to=wandb", "training.report_to", ["records"]),
    ("training.run_name=a", "training.run_name", ["leave it out"]),
    ("training.max_steps=5", "training.max_steps", ["`budget`"]),
    ("training.num_train_epochs=1", "training.num_train_epochs", ["`budget`"]),
    ("training.seed=1", "training.seed", ["search.seed"]),
    ("space.seed={choice: [1, 2]}", "space.seed", ["search.seed"]),
    ("training.bf16=true", "training.bf16", ["`precision`"]),
    ("training.use_cpu=true", "training.use_cpu", ["resources.gpu"]),
    ("training.eval_steps=4", "training.eval_steps", ["`evaluation`"]),
    ("training.do_eval=true", "training.do_eval", ["`evaluation`"]),
    ("training.save_total_limit=4", "training.save_total_limit", ["`objective`"]),
    ("training.load_best_model_at_end=true", "training.load_best_model_at_end", ["`objective`"]),
    ("training.resume_from_checkpoint=a", "training.resume_from_checkpoint", ["checkpoints"]),
    ("training.push_to_hub=true", "training.push_to_hub", ["preftune push"]),
    ("training.hub_model_id=a/b", "training.hub_model_id", ["preftune push"]),
    ("training.precompute_ref_log_probs=true", "training.precompute_ref_log_probs", ["once"]),
    ("training.remove_unused_columns=false", "training.remove_unused_columns", ["prepared"]),
    ("training.deepspeed=ds.json", "training.deepspeed", ["one device"]),
    ("training.fsdp=full_shard", "training.fsdp", ["one device"]),
    ("training.auto_find_batch_size=true", "training.auto_find_batch_size", ["halves"]),
    ("training.use_liger_kernel=true", "training.use_liger_kernel", ["deprecated"]),
    ("training.padding_free=true", "training.padding_free", ["no effect"]),
    ("training.sync_ref_model=true", "training.sync_ref_model", ["does not change"]),
    ("space.ref_model_mixup_alpha={uniform: [0, 1]}", "space.ref_model_mixup_alpha", ["does not change"]),
    ("training.pad_token=x", "training.pad_token", ["deprecated"]),
    ("training.label_smoothing_factor=0.1", "training.label_smoothing_factor", ["label_smoothing"]),
    ("training.trust_remote_code=true", "training.trust_remote_code", ["top level"]),
    ("space.ld_alpha={uniform: [0, 1]}", "space.ld_alpha", ["stored reference"]),
    ("space.truncation_mode={choice: [keep_start]}", "space.truncation_mode", ["stored reference"]),
    ("space.torch_compile={choice: [true, false]}", "space.torch_compile", ["speed", "`training`"]),
    ("space.activation_checkpointing={choice: [true]}", "space.activation_checkpointing", ["speed"]),
    # values of fields
    ("training.optim=adamw_troch", "training.optim", ["`adamw_torch`"]),
    ("training.optim=bogus", "training.optim", ["no such optim", "nearest"]),
    ("training.optim=galore_adamw", "training.optim", ["galore"]),
    ("space.optim={choice: [adamw_torch, rmsprp]}", "space.optim", ['"rmsprp"', "`rmsprop`"]),
    ("training.lr_scheduler_type=cosin", "training.lr_scheduler_type", ["`cosine`"]),
    ("training.lr_scheduler_type=reduce_lr_on_plateau", "training.lr_scheduler_type", ["eval strategy"]),
    ("training.loss_type=sgmoid", "training.loss_type", ["`sigmoid`"]),
    ("training.loss_type=[]", "training.loss_type", ["at least one"]),
    ("space.loss_type={choice: [sigmoid, [ipo, sf]]}", "space.loss_type", ["'sf'", "`sft`"]),
    ("training.loss_type=exo_pair", "training.loss_type", ["label_smoothing above 0"]),
    ("training={loss_type: aot, use_weighting: true}", "training.loss_type", ["use_weighting"]),
    ("training={loss_type: aot, f_divergence_type: forward_kl}", "training.loss_type", ["reverse_kl"]),
    ("training={loss_type: [sigmoid, sft], loss_weights: [1.0]}", "training.loss_type", ["1 entries for 2"]),
    ("training.f_divergence_type=reverse-kl", "training.f_divergence_type", ["`reverse_kl`"]),
    ("training.label_smoothing=0.5", "training.label_smoothing", ["below 0.5"]),
    ("training.weight_decay=fast", "training.weight_decay", ["number", "without quotes"]),
    ("training.weight_decay=-0.1", "training.weight_decay", ["0 or more"]),
    ("training.weight_decay=.nan", "training.weight_decay", ["finite"]),
    ("training.warmup_steps=-1", "training.warmup_steps", ["0 or more"]),
    ("training.gradient_accumulation_steps=0", "training.gradient_accumulation_steps", ["at least 1"]),
    ("training.gradient_accumulation_steps=1.5", "training.gradient_accumulation_steps", ["integer"]),
    ("training.adam_beta1=1", "training.adam_beta1", ["below 1"]),
    ("training.max_length=null", "training.max_length", ["number of tokens"]),
    ("training.max_length=0", "training.max_length", ["at least 1"]),
    ("training.truncation_mode=keep_end", "training.truncation_mode", ["keeps the start"]),
    ("training.torch_empty_cache_steps=0", "training.torch_empty_cache_steps", ["DPOConfig", "bigger than 0"]),
    ("space.learning_rate={uniform: [-1, 1]}", "space.learning_rate", ["-1.0", "above 0"]),
    ("space.per_device_train_batch_size={choice: [0, 4]}", "space.per_device_train_batch_size", ["at least 1"]),
    ("space.beta={choice: [0.1, high]}", "space.beta", ['"high"', "number"]),
    # LoRA
    ("lora={target_modules: [q_proj, lm_head]}", "lora.target_modules", ["take lm_head out"]),
    ("lora={lora_dropout: 0.1}", "lora.lora_dropout", ["disable_dropout"]),
    ("lora={bias: all}", "lora.bias", ["not be the reference"]),
    ("lora={bias: most}", "lora.bias", ["'none', 'all' or 'lora_only'"]),
    ("lora={init_lora_weights: pissa}", "lora.init_lora_weights", ["start at the reference"]),
    ("lora={task_type: CAUSAL_LM}", "lora.task_type", ["fills it in"]),
    ("lora={loftq_config: {}}", "lora.loftq_config", ["base weights"]),
    ("lora={r: 0}", "lora.r", ["at least 1"]),
    ("lora={target_modules: all-linear, layers_to_transform: [1]}", "lora", ["LoraConfig", "layers_to_transform"]),
    # try_first
    ("search.try_first=[{beta: 9}]", "search.try_first[0].beta", ["outside {uniform: [0.05, 1.0]}"]),
    ("search.try_first=[{beta: high}]", "search.try_first[0].beta", ["outside"]),
    ("search.try_first=[{per_device_train_batch_size: 6}]", "search.try_first[0].per_device_train_batch_size", ["[4, 8]"]),
    ("search.try_first=[{bta: 0.1}]", "search.try_first[0].bta", ["`beta`"]),
    ("search.try_first=[{max_length: 128}]", "search.try_first[0].max_length", ["fixed under `training`"]),
    ("search.try_first=[{}]", "search.try_first[0]", ["no field"]),
    ("search.try_first=[{beta: 0.1}, {beta: 0.1}]", "search.try_first[1]", ["twice"]),
    ("search.try_first=[5]", "search.try_first[0]", ["mapping"]),
]  # fmt: skip


@pytest.mark.parametrize(("override", "key", "fragments"), REFUSED, ids=[row[0] for row in REFUSED])
def test_every_refusal_names_the_key_and_the_way_out(
    base: str, override: str, key: str, fragments: list[str]
) -> None:
    problems = problems_of(base, override)
    assert [problem.key for problem in problems] == [key], problems
    line = str(problems[0])
    assert "\n" not in line and "hidden" not in line
    for fragment in fragments:
        assert fragment in line


# The same for refusals that need more than one override.
REFUSED_TOGETHER = [
    ((LORA, "space.lora.r={choice: [4, 8]}"), "lora.r", ["also in `space`"]),
    ((LORA, "space.lora.lora_alpha={int: [0, 8]}"), "space.lora.lora_alpha", ["at least 1"]),
    ((LORA, "space.lora.lora_dropout={uniform: [0, 0.2]}"), "space.lora.lora_dropout", ["no effect"]),
    ((LORA, "space.lora.alpha={choice: [4]}"), "space.lora.alpha", ["`lora_alpha`"]),
    (("judge=null", "objective.metric=win_rate"), "objective.metric", ["only a judge"]),
    (("judge=null", "objective.constraints.judge_score={min: 1}"), "objective.constraints.judge_score", ["only a judge"]),
    (("budget={steps: 5}", "search.scheduler=none", "search.rungs=[1, 5]"), "search.rungs", ["budget in steps"]),
    ((*GRID, "search.warm_start=runs/a"), "search.warm_start", ["a grid learns nothing", "leave it out"]),
    ((*GRID, "space.learning_rate={uniform: [0.1, 1]}"), "space.learning_rate", ["choice or int"]),
    ((*GRID, "space.warmup_steps={int: [1, 9999]}"), "search.sampler", ["59,994", "narrow"]),
    ((*GRID, "search.try_first=[{beta: 0.1}]"), "search.try_first[0].gradient_accumulation_steps", ["give it a value"]),
    (("training.loss_weights=[1.0, 0.5]", "space.loss_type={choice: [sigmoid, [sigmoid, sft]]}"), "space.loss_type", ['["sigmoid"]', "2 entries for 1"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "key", "fragments"), REFUSED_TOGETHER)
def test_refusals_between_keys(
    base: str, overrides: tuple[str, ...], key: str, fragments: list[str]
) -> None:
    problems = problems_of(base, *overrides)
    assert [problem.key for problem in problems] == [key], problems
    for fragment in fragments:
        assert fragment in str(problems[0])


ACCEPTED = [
    ("search.rungs=[100, 900]",),
    ("search.scheduler=none", "search.rungs=[100, 900]"),
    ("search.try_first=[{beta: 0.1}]",),
    ("space.loss_type={choice: [sigmoid, [sigmoid, sft]]}", "search.try_first=[{loss_type: sigmoid}]"),
    ("training={loss_type: [sigmoid, sft], loss_weights: [1.0, 0.5]}",),
    ("training={loss_type: exo_pair, label_smoothing: 1e-3}",),
    ("training={gradient_checkpointing: true, lr_scheduler_type: cosine, lr_scheduler_kwargs: {}}",),
    ("training={dataloader_num_workers: 2, dataloader_prefetch_factor: 2}",),
    (LORA, "training.disable_dropout=false", "lora.lora_dropout=0.1"),
    (LORA, "space.lora.target_modules={choice: [[q_proj], all-linear]}", "training={}"),
    ("resources.gpu=0.25", "precision=bf16", "search.minutes=5"),
    ("model=owner/name", "revision=main", "dataset={path: owner/data, revision: v1}", "judge=null"),
    ("objective.constraints={length_ratio: {max: 2}, kl: null}",),
]  # fmt: skip


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_what_is_right_loads_and_survives_its_own_yaml(
    base: str, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    spec = load(base, overrides)
    again = tmp_path / "again.yaml"
    again.write_text(spec.to_yaml())
    assert load(str(again)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec  # Ray carries it to the workers


def test_all_problems_come_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        validate(
            {
                "dataset": {"path": "quickstart", "sead": 1},
                "space": {"beta": 0.1, "lr": {"choice": [1]}, "optim": {"choice": ["rmsprp"]}},
                "training": {"learning_rate": "fast"},
                "search": {"trials": "many", "rungs": [9, 5], "try_first": [{"optim": "sgd"}]},
                "trackers": ["wandb"],
            }
        )
    assert {problem.key for problem in caught.value.problems} == {
        "model",
        "dataset.sead",
        "space.beta",
        "space.lr",
        "space.optim",
        "training.learning_rate",
        "search.trials",
        "search.rungs",
        "search.try_first[0].optim",
        "trackers",
    }
    lines = str(caught.value).split("\n")
    assert [line.split(":")[0].split(" = ")[0] for line in lines] == [
        problem.key for problem in caught.value.problems
    ]


def test_problem_lines_show_the_value_as_the_yaml_has_it() -> None:
    assert str(Problem("a.b", None, "why")) == "a.b = null: why"
    assert str(Problem("a.b", [True, "x"], "why")) == 'a.b = [true, "x"]: why'
    assert str(Problem("a.b", "x" * 200, "why")) == f'a.b = "{"x" * 76}...: why'
    assert str(Problem("a.b", ..., "why")) == "a.b: why"


BROKEN_FILES = {
    "empty": ("", "the file is empty"),
    "comment": ("# nothing\n", "the file is empty"),
    "list": ("- model\n", "a spec is a mapping"),
    "syntax": ("model: [a\nspace: b\n", "not valid YAML"),
    "twice": ("model: a\nspace: {}\nmodel: b\n", "`model` is there twice; keep one (line 3, column 1)"),
    "deep": ("a:\n  b: {c: 1, c: 2}\n", "`c` is there twice"),
    "alias": ("a: &a [*a]\n", "aliases are not supported"),
    "date": ("model: 2024-99-99\n", "not valid YAML"),
    "tag": ("model: !!python/object:os.system {}\n", "not valid YAML"),
    "int": ("model: !!int ''\n", "not valid YAML"),
    "list key": ("[a]: 1\n", "not valid YAML"),
    "nesting": ("[" * 1500, "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_file_that_is_no_spec_is_one_sentence(tmp_path: Path, name: str) -> None:
    text, fragment = BROKEN_FILES[name]
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    (problem,) = problems_of(str(path))
    assert problem.key == str(path)
    assert fragment in problem.reason


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "`quickstart`" in str(problems_of("quickstrat")[0])
    assert "no such file" in str(problems_of("quickstrat.yaml")[0])
    assert "quickstart" in str(problems_of("gone.yaml")[0])
    assert len(problems_of("a\0b")) == len(problems_of("a\0b.yaml")) == len(problems_of("")) == 1
    assert len(problems_of("x" * 5000 + ".yaml")) == 1
    Path("folder.yaml").mkdir()
    assert "cannot be read" in str(problems_of("folder.yaml")[0])
    Path("latin.yaml").write_bytes("model: é".encode("latin-1"))
    assert "UTF-8" in str(problems_of("latin.yaml")[0])


def test_a_minimal_spec_has_every_default() -> None:
    spec = validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "space": {"beta": {"uniform": [0.1, 1]}},
        }
    )
    assert (spec.dataset.split, spec.dataset.test_fraction, spec.dataset.seed) == ("train", 0.2, 42)
    assert (spec.training, spec.lora, spec.sft, spec.judge) == ({}, None, None, None)
    assert (spec.budget.pairs, spec.budget.steps, spec.rungs_pairs) == (
        4000,
        None,
        [444, 1333, 4000],
    )
    assert (spec.search.sampler, spec.search.scheduler, spec.trials) == ("tpe", "asha", 36)
    assert (spec.resources.cpu, spec.resources.gpu, spec.precision) == (1, "auto", "auto")
    # Without a judge the objective is pair_loss, and only under its four limits.
    assert (spec.objective.metric, spec.objective.direction) == ("pair_loss", "minimize")
    assert set(spec.objective.constraints) == {"kl", "chosen_drift", "repetition", "ended"}
    assert set(yaml.safe_load(spec.to_yaml())) == set(Spec.model_fields)


def test_limits_can_be_added_changed_and_lifted(base: str) -> None:
    assert load(base).objective.direction == "maximize"
    assert load(base).objective.constraints["kl"].max == 20
    changed = load(base, ["objective.constraints={kl: {max: 5}, length_ratio: {max: 2}}"]).objective
    assert [(name, bound.max) for name, bound in changed.constraints.items()] == [("kl", 5), ("length_ratio", 2)]  # fmt: skip
    assert not changed.constraints["kl"].holds(6) and not changed.constraints["kl"].holds(
        float("nan")
    )
    lifted = load(base, ["objective.constraints.kl=null"]).objective.constraints["kl"]
    assert lifted.holds(1e9) and (lifted.min, lifted.max) == (None, None)


def test_rungs_follow_the_budget_and_the_scheduler(base: str) -> None:
    assert load(base).rungs_pairs == [100, 300, 900]
    assert load(base, ["search.rungs=[450, 900]"]).rungs_pairs == [450, 900]
    assert load(base, ["search.scheduler=none"]).rungs_pairs == [900]
    assert load(base, ["budget.pairs=2"]).rungs_pairs == [1, 2]  # 2/9 rounds to nothing
    assert load(base, ["budget={steps: 5}", "search.scheduler=none"]).rungs_pairs == []


def test_a_grid_is_never_larger_than_its_product(base: str) -> None:
    assert load(base, [*GRID, "search.trials=null"]).trials == 6
    assert load(base, [*GRID, "search.trials=99"]).trials == 6
    assert load(base, [*GRID, "search.trials=4"]).trials == 4


def test_overrides_reach_every_level(base: str) -> None:
    spec = load(
        base,
        [
            "search.trials=8",
            "space.beta={choice: [1e-1, 2e-1]}",
            "space.learning_rate=null",
            "lora.r=4",
            "space.lora.lora_alpha={choice: [4, 8]}",
            "training.learning_rate=1e-4",
            "judge=",
        ],
    )
    assert spec.search.trials == 8
    assert spec.space["beta"].values == [0.1, 0.2]
    assert list(spec.space) == ["beta", "per_device_train_batch_size", "lora.lora_alpha"]
    assert spec.lora == {"r": 4}
    assert spec.configuration({}).dpo == {"max_length": 128, "learning_rate": 1e-4}
    assert spec.judge is None
    spec.configuration({}).dpo["max_length"] = 1  # a copy
    assert spec.training["max_length"] == 128


def test_paths_start_from_the_specs_folder_and_those_of_overrides_from_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
        (folder / "pairs.jsonl").touch()
    (there / "owner").mkdir()
    (there / "owner" / "name").mkdir()
    (there / "quickstart").mkdir()
    path = there / "mine.yaml"
    path.write_text(BASE.replace("{path: quickstart,", "{path: pairs.jsonl,"))
    monkeypatch.chdir(here)
    assert load(str(path)).dataset.path == str(there / "pairs.jsonl")
    assert load("../there/mine.yaml").dataset.path == str(there / "pairs.jsonl")
    assert load(str(path), ["dataset.path=./pairs.jsonl"]).dataset.path == str(here / "pairs.jsonl")
    # A Hub id that is also a folder beside the spec is that folder; the embedded model always wins.
    path.write_text(path.read_text().replace("model: quickstart", "model: owner/name"))
    assert load(str(path)).model == str(there / "owner" / "name")
    assert load(str(path)).judge == "quickstart"
    assert load(str(path), ["model=owner/other"]).model == "owner/other"
    # A Hub id in an override is not looked for beside the spec.
    assert load(str(path), ["model=owner/name"]).model == "owner/name"


def test_numbers_and_text_keep_their_kind_through_yaml(base: str, tmp_path: Path) -> None:
    spec = load(
        base, ["model=owner/name", "revision='1e5'", "space.beta={loguniform: [1e-7, 3e-3]}"]
    )
    assert spec.revision == "1e5"
    assert spec.space["beta"].values == [1e-7, 3e-3]
    (tmp_path / "again.yaml").write_text(spec.to_yaml())
    assert load(str(tmp_path / "again.yaml")) == spec


def test_a_spec_cannot_be_changed(base: str) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(base).model = "other"  # type: ignore[misc]


def test_all_shipped_specs_load_offline_and_round_trip(tmp_path: Path) -> None:
    assert shipped() == ["gpt2_ultrafeedback", "gpt2_ultrafeedback_original", "quickstart", "qwen_lora"]  # fmt: skip
    for name in shipped():
        spec = load(name)
        (tmp_path / "again.yaml").write_text(spec.to_yaml())
        assert load(str(tmp_path / "again.yaml")) == spec
        assert spec.objective.metric == "win_rate"
    assert load("qwen_lora").lora is not None
    assert {load("quickstart").model, load("quickstart").dataset.path, load("quickstart").judge} == {"quickstart"}  # fmt: skip


def test_the_original_grid_is_the_original_grid() -> None:
    spec = load("gpt2_ultrafeedback_original")
    assert spec.space["learning_rate"].values == [5e-4, 1e-3, 2e-3]
    assert spec.space["per_device_train_batch_size"].values == [4, 8]
    assert spec.space["beta"].values == [0.1, 0.2, 0.3]
    assert spec.space["optim"].values == ["adamw_torch", "rmsprop"]
    assert spec.trials == 3 * 2 * 3 * 2 == 36
    assert (spec.budget.steps, spec.search.scheduler, spec.search.sampler) == (500, "none", "grid")
    assert spec.training == {"max_length": 128, "warmup_steps": 150}
    assert (spec.precision, spec.sft, spec.dataset.test_fraction) == ("bf16", None, 0.2)
    assert [tuple(entry.values()) for entry in spec.search.try_first] == [
        (5e-4, 4, 0.1, "adamw_torch"),
        (1e-3, 8, 0.2, "rmsprop"),
        (2e-3, 8, 0.3, "adamw_torch"),
    ]


def test_names_that_trl_checks_late_are_those_of_its_help() -> None:
    from trl import DPOConfig

    fields = DPOConfig.__dataclass_fields__
    loss_help = fields["loss_type"].metadata["help"]
    assert [name for name in loss_help.split("'") if name.isidentifier()] == list(LOSS_TYPES)
    divergence_help = fields["f_divergence_type"].metadata["help"]
    assert all(f"`{name}`" in divergence_help for name in F_DIVERGENCES)


def test_listing_the_specs_imports_nothing_heavy() -> None:
    code = (
        "import sys; from search_spaces.yaml_io import shipped; shipped(); "
        "print(sorted({'torch', 'trl', 'peft', 'transformers', 'optuna', 'huggingface_hub'} & set(sys.modules)))"
    )  # fmt: skip
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6),
    st.sampled_from(["quickstart", "sigmoid", "grid", "none", "adamw_torch", "./x", "1e-3"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(
        [*Spec.model_fields, "path", "trials", "rungs", "try_first", "sampler", "pairs", "steps", "kl", "min",
         "max", "metric", "constraints", "choice", "uniform", "int", "logint", "learning_rate", "beta", "optim",
         "loss_type", "loss_weights", "lora.r", "r", "target_modules", "seed"]
    ),
    st.text(max_size=4),
    st.integers(0, 2),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=10,
)
DOMAINS = st.dictionaries(st.sampled_from(["choice", "uniform", "loguniform", "int", "logint"]), st.lists(SCALARS, max_size=3), max_size=2)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.dictionaries(KEYS, st.one_of(DOMAINS, VALUES), max_size=3),
    st.dictionaries(KEYS, VALUES, max_size=3),
)
def test_any_mapping_is_a_spec_or_a_spec_error(data: dict, space: dict, training: dict) -> None:  # type: ignore[type-arg]
    whole = {"model": "quickstart", "dataset": {"path": "quickstart"}, "space": space, "training": training, **data}  # fmt: skip
    for mapping in (data, whole):
        try:
            assert isinstance(validate(mapping), Spec)
        except SpecError as error:
            assert error.problems and all(str(problem) for problem in error.problems)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    text=st.text(alphabet="abk:[]{},&*!|>-#'\"\n 019.e", max_size=40), override=st.text(max_size=20)
)
def test_any_text_is_a_spec_or_a_spec_error(tmp_path: Path, text: str, override: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text)
    for source, overrides in ((str(path), []), (text, []), ("quickstart", [override, f"space.{override}={text}"])):  # fmt: skip
        try:
            assert isinstance(load(source, overrides), Spec)
        except SpecError as error:
            assert error.problems


def test_storage_may_start_at_home(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load(base, ["storage=~/runs"]).storage == "/home/me/runs"
