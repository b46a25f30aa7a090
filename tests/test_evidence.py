"""The evidence, computed again from the recorded curves: what its page claims still holds."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from bench import calibration, evidence, measures, replay, verdicts
from bench.measures import Measure, chosen, feasible, rank_correlation, regret
from bench.replay import Curves, Found
from search_spaces.spec import load

PAGE = (Path(__file__).parent.parent / "docs" / "evidence.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def curves() -> Curves:
    return Curves()


def line(rate: float, truth: float, *rungs: tuple[float, float]) -> dict[str, Any]:
    """A configuration with (win_rate, kl) at its rungs."""
    told = [
        {"pairs": pairs, "win_rate": win_rate, "kl": kl}
        for pairs, (win_rate, kl) in zip((100, 300), rungs, strict=False)
    ]
    params = {"learning_rate": rate, "beta": 0.1, "loss_type": ["sigmoid"]}
    return {"params": params, "seed": 42, "rungs": told, "truth": truth, "diverged": None}


@pytest.fixture
def three(tmp_path: Path) -> Curves:
    """A good configuration, one that only looks good and went far for it, and a broken one."""
    path = tmp_path / "curves.jsonl"
    told = [
        line(1e-4, 0.8, (0.6, 1.0), (0.7, 3.0)),
        line(1e-3, 0.3, (0.7, 9.0), (0.9, 30.0)),
        line(1e-2, 0.0, (0.1, 90.0)),
    ]
    told.append({"params": None, "truth": 0.5})  # the reference
    path.write_text("".join(json.dumps(one) + "\n" for one in told))
    return Curves(path)


def test_limits_hold_at_every_rung(three: Curves) -> None:
    limits = {"kl": {"max": 20.0}}
    assert [feasible(one, limits, 1) for one in three.lines] == [True, True, False]
    assert [feasible(one, limits, 2) for one in three.lines] == [True, False, False]


def test_choice_and_regret_by_hand(three: Curves) -> None:
    """Without a limit the second is taken, which loses 0.8 - 0.3: 50 points."""
    free, bound = (Measure("", "win_rate", 1, limits) for limits in ({}, {"kl": {"max": 20.0}}))
    assert chosen(three, free) == [three.lines[1]] and chosen(three, bound) == [three.lines[0]]
    assert regret(three, free) == pytest.approx(50)
    assert regret(three, bound) == 0
    # Nothing within the limits: the reference stays.
    assert regret(three, Measure("", "win_rate", 1, {"kl": {"max": 0.5}})) == pytest.approx(30)
    # Two of one value: either may be taken.
    three.lines[0]["rungs"][-1]["win_rate"] = 0.9
    assert regret(three, free) == pytest.approx(25)


def test_rank_correlation_by_hand(three: Curves) -> None:
    """Ranks (2, 3, 1) against (3, 2, 1): Spearman's 1 - 6 * 2 / (3 * 8) = 0.5."""
    assert rank_correlation(three, Measure("", "win_rate", 1), 1) == pytest.approx(0.5)


def test_efficiency_counts_pairs_until_the_named_trial_is_close(three: Curves) -> None:
    """Three configurations of 300 pairs each: 900 in all; within two points from the third on."""
    states = [Found(90, 0.3), Found(180, 0.79), Found(270, 0.3), Found(450, 0.8), Found(990, 0.8)]
    found = replay.efficiency(three, iter(states))
    assert (found.reached, found.kept) == (0.2, 0.5)
    assert found.regret == pytest.approx(0.5)  # what it held at 360 pairs
    assert math.isinf(replay.efficiency(three, iter(states[:1])).reached)


def test_grid_is_what_was_asked_for(curves: Curves) -> None:
    """At least 40 configurations over lr 1e-6 to 1e-2, beta .01 to 1 and three losses."""
    assert len(curves.lines) >= 40
    rates, betas = ({one["params"][k] for one in curves.lines} for k in ("learning_rate", "beta"))
    assert (min(rates), max(rates), min(betas), max(betas)) == (1e-6, 1e-2, 0.01, 1.0)
    assert len({str(one["params"]["loss_type"]) for one in curves.lines}) == 3
    for one in curves.lines:  # all at full budget, unless training itself broke down
        assert len(one["rungs"]) == len(curves.rungs) or one["diverged"]


def test_our_measures_choose_well_and_trl_s_do_not(curves: Curves) -> None:
    rows = {row["measure"]: row for row in measures.table(curves)}
    assert rows["win_rate under its limit (ours, with a judge)"]["regret"] <= 2
    assert rows["pair_loss under its limits (ours, without)"]["regret"] <= 8
    for name in ("TRL's eval_loss", "TRL's rewards/margins"):
        assert rows[name]["regret"] > 8


def test_limits_are_worth_their_place_in_every_narrower_space(curves: Curves) -> None:
    found = calibration.over_subspaces(curves)
    assert found["pair_loss under its limits"].max() <= 8
    assert found["pair_loss without limits"].max() > 30


def test_tables_of_the_page_are_these(curves: Curves) -> None:
    rows = evidence.which_measure(curves)["rows"]
    rows += evidence.regrets(calibration.over_subspaces(curves))
    rows += evidence.regrets(calibration.over_kl(curves))
    rows += evidence.regrets(calibration.left_out(curves))
    seeds = evidence.seeds_alone(curves.reference)
    rows += seeds[0]
    for row in rows:
        assert f"| {' | '.join(row)} |" in PAGE
    assert all(f"win rate by {100 * deviation:.1f} points" in PAGE for deviation in seeds[1:])


def test_search_is_close_to_the_best_with_forty_per_cent_of_the_pairs(curves: Curves) -> None:
    """The searcher and the scheduler of a real search, on recorded trials; 20 seeds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = [
        replay.efficiency(curves, replay.our_search(curves, seed, "tpe", "asha"), until=0.4)
        for seed in range(20)
    ]
    assert np.median([one.reached for one in found]) <= 0.4
    assert np.median([one.kept for one in found]) <= 0.4


def test_verdict_is_right_about_simulated_searches() -> None:
    """A tenth of the page's searches: their rates within three standard errors of the bounds."""
    spec = load("quickstart", [])
    world = verdicts.World(exact=True, deviation=0.02)
    none, one = np.zeros(verdicts.TRIALS), np.zeros(verdicts.TRIALS)
    one[0] = verdicts.EFFECT
    assert verdicts.rates(spec, none, world, 200)["any"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert verdicts.rates(spec, one, world, 200)["best"] >= 0.8
