"""Preparation: which pairs are scored, what the keys hold, and what a run is resumed with."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest

from search_spaces.errors import UserError
from search_spaces.spec import Spec, validate
from trainables.artifacts import seal
from trainables.budget import in_order, plan
from trainables.dpo import train
from trainables.prepared import Prepared, Split
from trainables.quickstart.world import BASE
from trainables.reference import scored_pairs
from trainables.reference_files import load_logps, save_logps, scored_prompts
from tune.inputs import contents_of, model_contents, same_judge, tokenizer_contents
from tune.prepare import pairs_sentence, recorded
from tune.record import Record
from tune.scored_rows import most_pairs, training_rows
from tune.scored_rows import test_rows as measured
from tune.warm_start import _other_content


def search(**changes: object) -> Spec:
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "space": {"learning_rate": {"loguniform": [1e-5, 1e-2]}},
            "objective": {"metric": "pair_loss"},
            "resources": {"gpu": 0},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "configurations"),
    [
        ({"budget": {"pairs": 100}}, [{}]),
        (
            {
                "budget": {"pairs": 100},
                "space": {
                    "per_device_train_batch_size": {"choice": [3, 16, 4]},
                    "gradient_accumulation_steps": {"int": [1, 3]},
                },
            },
            [
                {"per_device_train_batch_size": b, "gradient_accumulation_steps": a}
                for b in (3, 16, 4)
                for a in (1, 2, 3)
            ],
        ),
        (
            {
                "budget": {"steps": 7},
                "search": {"scheduler": "none"},
                "space": {"per_device_train_batch_size": {"choice": [2, 5]}},
                "training": {"gradient_accumulation_steps": 2},
            },
            [{"per_device_train_batch_size": 2}, {"per_device_train_batch_size": 5}],
        ),
    ],
)
def test_every_pair_that_a_configuration_trains_on_is_scored(
    changes: dict[str, object], configurations: list[dict[str, object]]
) -> None:
    spec, rows, seeds = search(**changes), 500, (7, 1007, 2**32 - 1)
    scored = training_rows(rows, most_pairs(spec), seeds)
    assert len(scored) < rows and (np.diff(scored) > 0).all()
    for params in configurations:
        budget = plan(spec, params)
        for seed in seeds:
            trained = in_order(rows, budget.steps * budget.effective_batch, seed)
            assert np.isin(trained, scored).all()


def test_more_pairs_than_there_are_means_all_of_them() -> None:
    assert training_rows(5, 5, [1]).tolist() == [0, 1, 2, 3, 4]
    assert training_rows(5, 99, [1, 2]).tolist() == [0, 1, 2, 3, 4]
    assert len(training_rows(50, 5, [1])) == 5


def test_a_small_space_scores_a_small_part() -> None:
    """48,733 pairs and 3 seeds of 4,000 each: by chance they share about a tenth."""
    spec = search(space={"per_device_train_batch_size": {"choice": [4, 8]}})
    scored = training_rows(48_733, most_pairs(spec), [42, 1042, 1043])
    assert 11_000 < len(scored) < 3 * 4007


@pytest.mark.parametrize(
    ("sampled", "pairs", "expected"),
    [
        (2, 2, [0, 1]),
        (2, 3, [0, 1, 2]),  # another pair of a sampled prompt before an earlier one of another's
        (3, 3, [0, 1, 3]),
        (3, 4, [0, 1, 2, 3]),
        (2, 5, [0, 1, 2, 3, 5]),
        (4, 1, [0, 1, 3, 4]),  # one pair of each sampled prompt in any case
        (2, 99, [0, 1, 2, 3, 4, 5]),
        (99, 1, [0, 1, 3, 4]),
    ],
)
def test_test_pairs_are_those_of_the_sampled_prompts_first(
    sampled: int, pairs: int, expected: list[int]
) -> None:
    assert measured(list("abacda"), sampled, pairs).tolist() == expected


def test_the_same_prompts_are_sampled_whatever_number_of_pairs() -> None:
    chance = np.random.default_rng(0)
    for _ in range(50):
        prompts = chance.integers(0, 12, 40).tolist()
        wanted = int(chance.integers(1, 14))
        rows = measured(prompts, wanted, int(chance.integers(1, 45)))
        few = list(dict.fromkeys(prompts[row] for row in rows))[:wanted]
        assert few == list(dict.fromkeys(prompts))[:wanted]


def part_of(prepared: Prepared, rows: np.ndarray, out: Path) -> Prepared:
    """The prepared search with the log-probs of these training pairs only."""
    logps = np.full((2, len(load_logps(prepared.train.logps)[0])), np.nan, np.float32)
    logps[:, rows] = np.stack(load_logps(prepared.train.logps))[:, rows]
    save_logps(out / "train.npz", *logps)
    return replace(prepared, train=replace(prepared.train, logps=out / "train.npz"))


def test_a_trial_needs_the_log_probs_of_its_own_pairs_and_no_others(
    prepared: Prepared, small_spec: Spec, tmp_path: Path
) -> None:
    spec = small_spec.model_copy(
        update={
            "budget": small_spec.budget.model_copy(update={"pairs": 16}),
            "search": small_spec.search.model_copy(update={"scheduler": "none"}),
        }
    )
    rows = pyarrow.parquet.read_metadata(prepared.train.pairs).num_rows
    few = part_of(prepared, training_rows(rows, most_pairs(spec), [3]), tmp_path)
    params = {"learning_rate": 1e-4, "per_device_train_batch_size": 8}
    reports = {}
    for name, given in (("all", prepared), ("few", few)):
        reports[name] = []
        train(spec, params, given, reports[name].append, seed=3)
    of_all, of_few = (reports[name][-1].measures for name in ("all", "few"))
    assert math.isfinite(of_few["train_loss"] or math.nan)
    assert of_all["train_loss"] == of_few["train_loss"]
    assert of_all["pair_loss"] == of_few["pair_loss"]
    with pytest.raises(UserError, match="of the 16 pairs to train on with seed 4 have no"):
        train(spec, params, few, reports["few"].append, seed=4)


def test_pairs_without_log_probs_are_not_measured(prepared: Prepared, tmp_path: Path) -> None:
    split = prepared.held_out
    chosen, rejected = load_logps(split.logps)
    rows = np.array([0, 3, 5])
    logps = np.full((2, len(chosen)), np.nan, np.float32)
    logps[:, rows] = chosen[rows], rejected[rows]
    save_logps(tmp_path / "few.npz", *logps)
    few = Split(split.pairs, tmp_path / "few.npz", split.answers)
    pairs, some_chosen, some_rejected = scored_pairs(few)
    whole, *_ = scored_pairs(split)
    assert len(whole) == len(chosen)
    assert pairs["row"][:] == [whole["row"][row] for row in rows]
    assert np.array_equal(some_chosen, chosen[rows])
    assert np.array_equal(some_rejected, rejected[rows])
    assert scored_prompts(few) == [tuple(ids) for ids in pairs["prompt_ids"]]


@pytest.mark.parametrize("trusted", [False, True])
def test_keys_hold_whatever_changes_a_model_or_a_tokenizer(tmp_path: Path, trusted: bool) -> None:
    spec = search(trust_remote_code=trusted)
    folder = tmp_path / "model"
    shutil.copytree(BASE, folder)
    (folder / "code").mkdir()
    files = {
        "generation_config.json": ("model",),
        "added_tokens.json": ("tokenizer",),
        "special_tokens_map.json": ("tokenizer",),
        "vocab.tiktoken": ("tokenizer",),
        "config.json": ("model", "tokenizer"),
        "model.safetensors": ("model",),
        "modeling.py": ("model", "tokenizer") if trusted else (),
        "code/attention.py": ("model", "tokenizer") if trusted else (),
        "README.md": (),
    }
    contents = {"model": model_contents, "tokenizer": tokenizer_contents}
    for name, expected in files.items():
        before = {kind: of(spec, folder) for kind, of in contents.items()}
        (folder / name).write_text(f"{{}} {name}")
        changed = [kind for kind, of in contents.items() if of(spec, folder) != before[kind]]
        assert tuple(changed) == expected, name


def test_files_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text(name)
    assert set(contents_of(tmp_path, ("**/*.py",))) == {"a/code.py", "b/code.py"}


def test_a_judge_of_an_older_version_is_compared_by_the_files_that_it_recorded() -> None:
    now = {"config.json": "1", "model.safetensors": "2", "tokenizer.json": "3"}
    then = {"config.json": "1", "model.safetensors": "2"}
    assert same_judge({"format": 2, "judge": then}, now)
    assert not same_judge({"format": 2, "judge": {**then, "config.json": "0"}}, now)
    assert not same_judge({"format": 3, "judge": then}, now)
    assert same_judge({"format": 3, "judge": now}, now)
    assert same_judge({"format": 2, "judge": "sum"}, "sum")
    assert not same_judge({"format": 2, "judge": "sum"}, "other")


def test_a_run_of_an_older_version_keeps_what_it_was_prepared_with(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Its folders have keys without a format, and log-probs of all pairs."""
    root = tmp_path / "runs" / "prepared"
    names = {"data": "data-0a", "sft": None, "reference": "reference-1b", "answers": "answers-2c"}
    source = prepared.train.pairs.parent
    for stage, name in names.items():
        if name is None:
            continue
        folder = root / name
        folder.mkdir(parents=True)
        if stage == "data":
            shutil.copytree(source / "tokenizer", folder / "tokenizer")
        pattern = {"data": "*.parquet", "reference": "*.npz", "answers": "*.jsonl"}[stage]
        for path in source.glob(pattern):
            shutil.copy(path, folder)
        seal(folder, stage=stage, inputs={"format": 2, "judge": None} if stage == "answers" else {})
    run = tmp_path / "runs" / "old"
    run.mkdir()
    info = {"prepared": names, "model": {"folder": str(BASE)}, "state": "failed"}
    (run / "run.json").write_text(json.dumps(info))
    found = recorded(search(storage=str(run.parent)), Record(run, None))
    assert found is not None and found.search.model == BASE
    assert len(scored_pairs(found.test)[0]) == len(scored_prompts(found.test)) > 64


def test_what_is_dropped_and_cut_is_named() -> None:
    """Of 10 + 20 usable pairs 3 + 0 have a cut answer: a tenth."""
    report = {
        "max_length": 1024,
        "reasons": {"a": "an answer is empty", "b": "both are the same", "c": "no prompt"},
        "readings": {"d": "a text with role markers", "e": "messages"},
        "examples": {"a": 7, "b": 2, "d": 0},
        "columns": {"prompt": ["instruction", "input"], "chosen": "better", "rejected": "rejected"},
        "unread": ["id", "source"],
        "splits": {
            "train": {"raw": 14, "kept": 10, "dropped": {"a": 3, "b": 1, "c": 0}, "truncated": 0.3}
            | {"read_as": {"d": 4}},
            "test": {"raw": 21, "kept": 20, "dropped": {"a": 0, "b": 1, "c": 0}, "truncated": 0.0}
            | {"read_as": {}},
        },
    }
    assert pairs_sentence(report) == (
        "30 of 35 pairs can be used; 3 dropped: an answer is empty (row 7); 2 dropped: both are "
        "the same (row 2); 4 read as: a text with role markers (row 0); prompt from instruction "
        "and input; chosen from better; columns not read: id, source; 10.00% of them have an "
        "answer cut to training.max_length 1,024"
    )


@pytest.mark.parametrize(
    ("reference", "answers", "said"),
    [
        ({"rows": {"train": "b"}}, {}, []),  # another space may need other pairs
        ({"lora": True}, {}, ["another reference model"]),
        ({}, {"judge": "other"}, ["another judge"]),
        ({}, {"format": 2}, ["answers of the reference from another version"]),
    ],
)
def test_a_warm_start_asks_for_the_model_and_the_judge_not_for_the_scored_rows(
    tmp_path: Path, reference: dict[str, object], answers: dict[str, object], said: list[str]
) -> None:
    inputs = {
        "reference": {"model": {"config.json": "1"}, "lora": False, "rows": {"train": "a"}},
        "answers": {"judge": "exact", "format": 3},
    }
    runs = []
    for name, changes in (("now", {}), ("then", {"reference": reference, "answers": answers})):
        prepared = {"data": "data-0a"}
        for stage, of in inputs.items():
            prepared[stage] = f"{stage}-{name}"
            folder = tmp_path / "prepared" / prepared[stage]
            folder.mkdir(parents=True)
            seal(folder, inputs=of | changes.get(stage, {}))
        runs.append(SimpleNamespace(folder=tmp_path / name, info={"prepared": prepared}))
    found = list(_other_content(*runs))
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))
