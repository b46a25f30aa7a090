"""The verdict, on finalists whose truth is known."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

from results.run.listing import open_run
from search_spaces.errors import UserError
from search_spaces.spec import Spec, validate
from trainables.artifacts import seal
from trainables.prepared import Prepared, Split
from trainables.reference_files import save_logps
from trainables.trial_report import Report
from tune.cluster.preemption import Preemption
from tune.cluster.share import Share
from tune.cluster.shipping import Shipment
from tune.context import Context
from tune.measurement import Baseline, save
from tune.measurement import measured as measurement
from tune.prepare import Preparation
from tune.progress import Progress
from tune.record import create
from tune.study import Study
from tune.verdict import (
    Measured,
    bounds,
    by_prompt,
    configuration_draws,
    decide,
    fresh_seeds,
    resampled,
    seed_variance,
)
from tune.verify import (
    _best_so_far,
    _refuse_if_all_failed,
    _undamaged,
    verification_spec,
    verify,
)

PROMPTS = 400


@pytest.fixture
def spec() -> Spec:
    return validate(
        {
            "model": "quickstart",
            "dataset": {"path": "quickstart"},
            "judge": "quickstart",
            "space": {"beta": {"choice": [0.1, 0.3]}},
            "budget": {"pairs": 900},
            "verify": {"finalists": 3, "seeds": 2, "prompts": PROMPTS},
        }
    )


def decided(spec: Spec, done: dict[tuple[int, int | None], Measured]) -> dict[str, Any]:
    """Decide on measured finalists, each with the same configuration."""
    fresh = fresh_seeds(spec.search.seed, spec.verify.seeds)
    params = {number: {"beta": 0.1} for number, _ in done}
    return decide(spec.objective, spec.search.seed, fresh, params, done)


def seeds(spec: Spec) -> tuple[int | None, ...]:
    return (None, *fresh_seeds(spec.search.seed, spec.verify.seeds))


def measured(share_won: float, shift: int = 0) -> Measured:
    """A model that wins the given share of the prompts and loses the rest."""
    wins = np.roll(np.arange(PROMPTS) < share_won * PROMPTS, shift)
    gains = np.where(wins, 0.5, -0.5)
    return Measured(
        {"win_rate": float(wins.mean()), "judge_score": 0.8, "kl": 1.0}, gains, gains * 2
    )


def verdict(spec: Spec, shares: dict[int, tuple[float, float, float]]) -> dict[str, Any]:
    """Decide on finalists given as (own checkpoint, first fresh seed, second fresh seed)."""
    done = {}
    for number, values in shares.items():
        for seed, share in zip(seeds(spec), values, strict=True):
            done[number, seed] = measured(share, shift=37 * number)
    return decided(spec, done)


def test_clear_winner(spec: Spec) -> None:
    found = verdict(spec, {3: (0.8, 0.81, 0.79), 5: (0.6, 0.61, 0.6)})
    assert (found["outcome"], found["winner"], found["passing"]) == ("winner", 3, True)
    entry = found["finalists"][0]
    assert entry["difference"] == pytest.approx(0.3)
    low, high = entry["interval"]
    # Two finalists: 97.5 % of a share of 0.8 over 400 prompts is 2.24 standard errors of 0.02.
    assert (low, high) == (pytest.approx(0.3 - 0.045, abs=0.01), pytest.approx(0.345, abs=0.01))


def test_two_that_cannot_be_told_apart_are_a_tie(spec: Spec) -> None:
    found = verdict(spec, {3: (0.8, 0.8, 0.79), 5: (0.79, 0.8, 0.8)})
    assert (found["outcome"], found["passing"]) == ("tie", True)
    assert found["winner"] in (3, 5) and len(found["tied"]) == 1


def test_no_better_than_the_reference(spec: Spec) -> None:
    found = verdict(spec, {3: (0.51, 0.5, 0.52), 5: (0.3, 0.3, 0.3)})
    assert (found["outcome"], found["winner"], found["passing"]) == ("none", None, False)


def test_luck_with_one_seed_is_no_merit(spec: Spec) -> None:
    """The own checkpoint wins clearly, but training again does not: the seeds disagree."""
    found = verdict(spec, {3: (0.7, 0.45, 0.4)})
    entry = found["finalists"][0]
    assert entry["interval"][0] > 0
    assert not found["passing"]


def test_no_finalist(spec: Spec) -> None:
    found = decided(spec, {})
    assert (found["outcome"], found["finalists"], found["passing"]) == ("none", [], False)


def test_search_in_which_every_trial_failed_has_no_verdict(spec: Spec, tmp_path: Path) -> None:
    record = create(spec.model_copy(update={"storage": str(tmp_path)}), "t", True, "test")
    study = Study(spec, record.folder)
    for number in range(2):
        study.ask()
        study.tell(number, "error", f"judge.py, line {number}: KeyError")
    with pytest.raises(UserError, match=r"all 2 trials failed.*line 1: KeyError.*--trials \+2"):
        _refuse_if_all_failed(study, record)
    study.ask()
    study.measured(2, 900, {"win_rate": 0.4, "kl": 90.0})
    study.tell(2, "constraint", "kl 90 > 20")
    _refuse_if_all_failed(study, record)


def test_finalist_whose_rerun_broke_down_does_not_pass(spec: Spec) -> None:
    nothing = np.array([math.nan])
    done: dict[tuple[int, int | None], Measured] = {(3, None): measured(0.9)}
    for seed in seeds(spec)[1:]:
        done[3, seed] = Measured({}, nothing, nothing)
    found = decided(spec, done)
    assert found["outcome"] == "none"


def test_more_finalists_ask_for_more_evidence(spec: Spec) -> None:
    """5.5 points over 400 prompts are 2.2 standard errors: enough for one finalist, not three."""
    one = verdict(spec, {3: (0.555, 0.555, 0.555)})
    three = verdict(spec, {n: (0.555, 0.555, 0.555) for n in (3, 4, 5)})
    assert one["passing"] and not three["passing"]


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    gains = np.random.default_rng(0).normal(0.1, 1.0, 1000)
    low, high = bounds(resampled(gains, 1), 0.95)
    error = 1.96 * gains.std() / math.sqrt(1000)
    assert (low, high) == pytest.approx((gains.mean() - error, gains.mean() + error), abs=0.01)


def test_seed_variance_by_hand() -> None:
    """Means 0.1, 0.2 and 0.3: a variance of 0.01; pooled with three equal runs, half of that."""
    steady, shaky = [np.full(5, 0.2)] * 3, [np.full(5, mean) for mean in (0.1, 0.2, 0.3)]
    assert seed_variance([steady]) == (pytest.approx(0.0, abs=1e-12), 2)
    assert seed_variance([shaky]) == (pytest.approx(0.01), 2)
    assert seed_variance([shaky, steady]) == (pytest.approx(0.005), 4)


def test_sampling_of_answers_is_not_taken_for_a_variance_over_seeds() -> None:
    """Two runs that win everything and nothing on each prompt in turn: their means are equal."""
    turns = np.array([0.5, -0.5] * 50)
    assert seed_variance([[turns, -turns]]) == (0.0, 1)
    generator = np.random.default_rng(0)
    same = [(generator.random((3, 400)) < 0.6) - 0.5 for _ in range(300)]
    found = [seed_variance([list(runs)])[0] for runs in same]
    # One run's mean has a sampling variance of 0.24 / 400 = 0.0006; most of it is recognised.
    assert np.mean(found) < 0.0003


def test_spread_of_seeds_widens_the_interval() -> None:
    steady, shaky = [measured(0.7).gains] * 3, [measured(s).gains for s in (0.6, 0.7, 0.8)]
    narrow = bounds(configuration_draws(steady, *seed_variance([steady]), (1, 0)), 0.95)
    wide = bounds(configuration_draws(shaky, *seed_variance([shaky]), (1, 0)), 0.95)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_pair_loss_is_better_when_it_is_smaller(spec: Spec) -> None:
    objective = spec.objective.model_copy(update={"metric": "pair_loss", "constraints": {}})
    spec = spec.model_copy(update={"objective": objective, "judge": None})
    gains = np.full(PROMPTS, 0.3) + np.linspace(-0.1, 0.1, PROMPTS)
    measures = {"pair_loss": math.log(2) - 0.3}
    found = decided(spec, {(1, s): Measured(measures, gains, np.zeros(0)) for s in seeds(spec)})
    assert found["passing"] and found["finalists"][0]["difference"] == pytest.approx(0.3)


def test_verification_measures_once_at_the_full_budget_with_its_own_prompts(spec: Spec) -> None:
    once = verification_spec(spec)
    assert once.rungs_pairs == [900]
    assert once.evaluation.prompts == PROMPTS


def test_pairs_of_a_prompt_are_drawn_together() -> None:
    """Prompts a, b, a with gains 1, 2, 3: sums 4 and 2, times 2 prompts / 3 pairs."""
    found = by_prompt(np.array([1.0, 2.0, 3.0]), ["a", "b", "a"])
    np.testing.assert_allclose(found, [8 / 3, 4 / 3])
    assert found.mean() == pytest.approx(2.0)


def test_winner_keeps_to_the_limits_of_the_search(spec: Spec) -> None:
    """0.8 of the prompts, but 30 nats away from the reference, where 20 are allowed."""
    done = {(3, seed): measured(0.8, shift=37) for seed in seeds(spec)}
    assert decided(spec, done)["passing"]
    own, again = done[3, None], seeds(spec)[1]
    far = replace(own, measures={**own.measures, "kl": 30.0})
    found = decided(spec, {**done, (3, None): far})
    assert found["outcome"] == "none" and not found["passing"]
    assert found["finalists"][0]["broken"] == [{"name": "kl", "value": 30.0, "of": "own"}]
    far = replace(done[3, again], measures={**own.measures, "kl": 59.0})  # with 1: a mean of 30
    found = decided(spec, {**done, (3, again): far})
    assert found["finalists"][0]["broken"] == [{"name": "kl", "value": 30.0, "of": "fresh_seeds"}]
    assert not found["passing"]
    unknown = replace(own, measures={"win_rate": 0.8})
    found = decided(spec, {**done, (3, None): unknown})
    assert found["finalists"][0]["broken"] == [{"name": "kl", "value": None, "of": "own"}]


def test_measurement_without_answers_beats_nothing(spec: Spec) -> None:
    """Logits that are not finite give no answers to sample, and may give finite deltas."""
    report = Report(step=1, pairs=8, rung=0, deltas=np.ones(4, np.float32), samples=[])
    found = measurement(report, "win_rate", Baseline({}, [(1,)] * 4))
    assert np.isnan(found.gains).all()
    assert decided(spec, {(3, seed): found for seed in seeds(spec)})["outcome"] == "none"


def test_win_is_half_a_gain_and_a_tie_is_none() -> None:
    """Scores 2, 1 and 0 against 1 each: a win, a tie and a loss."""
    samples = [{"row": row, "score": float(2 - row)} for row in range(3)]
    report = Report(deltas=np.zeros(1, np.float32), samples=samples)
    reference = Baseline({row: {"score": 1.0} for row in range(3)}, [(1,)])
    found = measurement(report, "win_rate", reference)
    assert (found.gains.tolist(), found.scores.tolist()) == ([0.5, 0, -0.5], [1, 0, -1])


def test_finalist_whose_checkpoint_is_damaged_is_left_out_aloud(spec: Spec, tmp_path: Path) -> None:
    record = create(spec.model_copy(update={"storage": str(tmp_path)}), "t", True, "test")
    study = Study(spec, record.folder)
    for number, win_rate in enumerate((0.7, 0.6)):
        study.ask()
        study.measured(number, 900, {"win_rate": win_rate, "kl": 1.0})
        study.note(number, checkpoint=f"tune/{number}")
        study.tell(number, "budget", None)
        folder = record.folder / "tune" / str(number)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        seal(folder, step=1)
    console = Console(record=True, width=200)
    progress = Progress(console, spec, record, study)
    (record.folder / "tune" / "0" / "model.safetensors").write_bytes(b"weighty")
    sound = _undamaged(study, study.finalists(2), record, progress)
    assert [trial.number for trial in sound] == [1]
    said = console.export_text(clear=False)
    assert "trial 0 is left out of verification" in said and "has changed" in said
    (record.folder / "tune" / "1" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"resume t --storage .* --trials \+10"):
        _undamaged(study, study.finalists(2), record, progress)


def ended(spec: Spec, folder: Path, reached: dict[int, dict[int, float]]) -> tuple[Study, Any]:
    """A search whose trials have these values at these rungs; those at 900 pairs are complete."""
    record = create(spec.model_copy(update={"storage": str(folder)}), "t", True, "test")
    study = Study(spec, record.folder)
    for number, values in reached.items():
        study.ask()
        for pairs, win_rate in values.items():
            study.measured(number, pairs, {"win_rate": win_rate, "kl": 1.0})
        if 900 in values:
            study.note(number, checkpoint=f"tune/{number}")
            study.tell(number, "budget", None)
            checkpoint = record.folder / "tune" / str(number)
            checkpoint.mkdir(parents=True)
            (checkpoint / "config.json").write_text(json.dumps({"of trial": number}))
            seal(checkpoint, step=1)
    return study, record


def concluded(spec: Spec, study: Study, record: Any, prepared: Preparation) -> dict[str, Any]:
    """Verify without Ray: every measurement is on the disk already."""
    progress = Progress(Console(quiet=True), spec, record, study)
    context = Context(spec, record, study, prepared, Shipment("here"), Share(1, 0, 1))
    return verify(context, progress, Preemption(lambda text: None))


def test_search_that_was_stopped_before_a_last_rung_is_not_verified(
    spec: Spec, tmp_path: Path
) -> None:
    """The best trial at the highest rung is named: not trial 0, which looked better earlier."""
    study, record = ended(spec, tmp_path, {0: {100: 0.9}, 1: {100: 0.5, 300: 0.6}, 2: {300: 0.55}})
    study.tell(0, "asha", None)
    found = concluded(spec, study, record, Preparation(None, None))  # type: ignore[arg-type]
    assert (found["outcome"], found["passing"], found["winner"]) == ("unverified", False, None)
    assert found["best"] == {"number": 1, "pairs": 300, "value": 0.6}
    assert open_run(record.folder).verdict() == found
    study.tell(1, "constraint", "kl 90 > 20")
    study.tell(2, "nan", "the loss is nan")
    assert _best_so_far(study, spec) == {"number": 0, "pairs": 100, "value": 0.9}


class Killed(BaseException):
    """The driver is gone at this moment."""


@pytest.fixture
def compared(tmp_path: Path) -> Preparation:
    """The reference's answers to two prompts, and a tokenizer."""
    answers = tmp_path / "answers.jsonl"
    lines = [{"row": n, "score": 0.0, "ended": True, "repetition": 0.0} for n in range(2)]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pyarrow.parquet.write_table(pa.table({"prompt_ids": [[1], [2]]}), tmp_path / "test.parquet")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    save_logps(tmp_path / "test.npz", np.zeros(2, np.float32), np.zeros(2, np.float32))
    split = Split(tmp_path / "test.parquet", tmp_path / "test.npz", answers)
    return Preparation(Prepared(tmp_path, tmp_path / "tokenizer", split, split), split)


def test_killed_at_any_moment_weights_and_verdict_belong_together(
    spec: Spec, compared: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More trials have made another one the winner; the driver dies at each change of a file."""
    spec = spec.model_copy(update={"verify": spec.verify.model_copy(update={"finalists": 1})})
    study, record = ended(spec, tmp_path / "runs", {0: {900: 0.8}})
    best = record.folder / "best"

    def measured_as(number: int) -> None:
        (record.folder / "verify").mkdir(exist_ok=True)
        for seed in seeds(spec):
            save(record.folder / "verify", number, seed, measured(0.8))

    def pair() -> tuple[Any, Any]:
        """The winner by the verdict, and the trial that the weights are of."""
        verdict = open_run(record.folder).verdict()
        config = best / "config.json"
        weights = json.loads(config.read_text())["of trial"] if config.exists() else None
        return verdict and verdict["winner"], weights

    measured_as(0)
    concluded(spec, study, record, compared)
    assert pair() == (0, 0)
    study.ask()
    study.measured(1, 900, {"win_rate": 0.9, "kl": 1.0})
    study.note(1, checkpoint="tune/1")
    study.tell(1, "budget", None)
    shutil.copytree(record.folder / "tune" / "0", record.folder / "tune" / "1")
    (record.folder / "tune" / "1" / "config.json").write_text(json.dumps({"of trial": 1}))
    seal(record.folder / "tune" / "1", step=1)
    measured_as(1)

    def dies_at(step: int) -> bool:
        left = step

        def counted(function: Any) -> Any:
            def called(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return function(*arguments, **options)

            return called

        with monkeypatch.context() as patched:
            for place, name in (
                *((Path, name) for name in ("unlink", "rename", "mkdir", "chmod")),
                *((os, name) for name in ("replace", "chmod")),
                *((shutil, name) for name in ("copy2", "copytree", "rmtree")),
            ):
                patched.setattr(place, name, counted(getattr(place, name)))
            try:
                concluded(spec, study, record, compared)
            except Killed:
                return True
        return False

    was = shutil.copytree(record.folder, tmp_path / "was")
    for step in range(1, 100):
        if not dies_at(step):
            break
        winner, weights = pair()
        assert winner is None or winner == weights, f"killed at step {step}"
        concluded(spec, study, record, compared)
        assert pair() == (1, 1), f"resumed after step {step}"
        for name in ("best", "verdict.json"):
            path = record.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(was / "best", best)
        shutil.copy(was / "verdict.json", record.folder)
    assert step > 5 and pair() == (1, 1)
