"""The measures against arithmetic that a reader can redo."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.evaluation.metrics import (
    deltas,
    length_controlled_win_rate,
    pair_measures,
    repetition,
    sample_measures,
    wins,
)


def test_an_untrained_policy_stands_at_the_neutral_point() -> None:
    logps = [-20.0, -31.5, -7.25]
    delta = deltas(logps, logps, logps, logps)
    assert pair_measures(delta, [0, 0, 0], [5, 6, 7]) == {
        "pair_loss": pytest.approx(math.log(2)),
        "accuracy": 0.5,
        "margin": 0.0,
        "chosen_drift": 0.0,
    }


def test_a_delta_is_the_difference_of_two_log_ratios() -> None:
    # chosen: -10 against -12, two nats more likely; rejected: -11 against -8, three nats less
    # likely.
    assert deltas([-10.0], [-11.0], [-12.0], [-8.0]) == pytest.approx([5.0])


def test_pair_loss_is_the_dpo_loss_at_one_nat_whatever_beta_was() -> None:
    # One gap of five nats: TRL's loss at beta .01, .1 and .3 is log(1 + exp(-5 beta)), three
    # numbers for one policy. Ours has no beta in it.
    of_trl = [math.log1p(math.exp(-5 * beta)) for beta in (0.01, 0.1, 0.3)]
    assert of_trl == pytest.approx([0.668, 0.474, 0.201], abs=5e-4)
    ours = pair_measures([5.0], [2.0], [4])
    assert (
        ours["pair_loss"]
        == pytest.approx(math.log1p(math.exp(-5.0)))
        == pytest.approx(0.00672, abs=5e-6)
    )
    assert ours["margin"] == 5.0
    assert ours["chosen_drift"] == 0.5


def test_pair_measures_by_hand() -> None:
    measures = pair_measures([2.0, 0.0, -1.0, 3.0], [1.0, -2.0, 0.0, 6.0], [2, 4, 5, 3])
    assert measures["accuracy"] == (1 + 0.5 + 0 + 1) / 4
    assert measures["margin"] == 1.0
    assert measures["chosen_drift"] == pytest.approx((0.5 - 0.5 + 0 + 2) / 4)
    losses = [0.126928, 0.693147, 1.313262, 0.048587]
    assert measures["pair_loss"] == pytest.approx(sum(losses) / 4, abs=1e-6)


def test_pair_loss_neither_overflows_nor_rounds_to_nothing() -> None:
    assert pair_measures([-1e4], [0], [1])["pair_loss"] == 1e4
    assert pair_measures([40.0], [0], [1])["pair_loss"] == pytest.approx(math.exp(-40.0), rel=1e-6)


def test_one_nan_spoils_every_measure_it_touches() -> None:
    measures = pair_measures([1.0, math.nan], [math.nan, 1.0], [3, 3])
    assert all(math.isnan(value) for value in measures.values())
    assert np.isnan(wins([math.nan, 1.0], [0.0, math.nan])).all()
    assert math.isnan(length_controlled_win_rate([math.nan, 1.0], [1, 2], [2, 2]))


def test_wins_count_ties_half() -> None:
    assert wins([3, 2, 1, 1], [1, 2, 3, 1]).tolist() == [1.0, 0.5, 0.0, 0.5]


def test_length_control_recovers_the_rate_at_equal_length() -> None:
    # Outcomes drawn without noise from sigmoid(-0.4 + 1.5 tanh(d / std d)): at equal length the
    # true rate is sigmoid(-0.4) = 0.401, though answers are longer than the reference's and win
    # more than half.
    tokens = np.tile(np.arange(15, 66, 10), 500)
    reference_tokens = np.full_like(tokens, 30)
    length = np.tanh((tokens - 30) / np.std(tokens - 30))
    won = 1 / (1 + np.exp(0.4 - 1.5 * length))
    assert won.mean() > 0.5
    assert length_controlled_win_rate(won, tokens, reference_tokens) == pytest.approx(
        0.401, abs=2e-3
    )


def test_length_control_takes_back_what_length_alone_won() -> None:
    # Of 300 answers that are ten tokens longer 80 % win, of 100 that are ten shorter 20 %: 65 % in
    # all, and by symmetry exactly half at equal length.
    won = np.repeat([1.0, 0.0, 1.0, 0.0], [240, 60, 20, 80])
    tokens = np.repeat([30, 10], [300, 100])
    assert won.mean() == 0.65
    assert length_controlled_win_rate(won, tokens, np.full(400, 20)) == pytest.approx(0.5, abs=0.01)


def test_length_control_is_the_plain_rate_where_there_is_nothing_to_control() -> None:
    assert length_controlled_win_rate([1, 1, 1], [5, 9, 20], [9, 9, 9]) == 1.0
    assert length_controlled_win_rate([1, 0, 0.5, 0], [9, 9, 9, 9], [9, 9, 9, 9]) == 0.375
    assert length_controlled_win_rate([1, 0, 0, 0], [9, 9, 9, 9], [4, 4, 4, 4]) == 0.25


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 500), st.integers(1, 500)),
        min_size=1,
        max_size=60,
    )
)
def test_length_control_is_a_rate_and_turns_over_with_the_outcome(
    rows: list[tuple[float, int, int]],
) -> None:
    won, tokens, reference_tokens = map(np.array, zip(*rows, strict=True))
    rate = length_controlled_win_rate(won, tokens, reference_tokens)
    assert 0 <= rate <= 1
    assert rate + length_controlled_win_rate(1 - won, tokens, reference_tokens) == pytest.approx(
        1, abs=1e-6
    )


def test_repetition_by_hand() -> None:
    assert repetition([1, 2, 3]) == 0.0  # no 4-gram at all
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    # 1234 2341 3412 4123 1234: four different of five.
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([7] * 13) == pytest.approx(9 / 10)  # ten times the same


def test_sample_measures_by_hand() -> None:
    measures = sample_measures(
        ids=[[7] * 13, [1, 2, 3]],
        ended=[False, True],
        log_ratios=[3.0, -1.0],
        reference_tokens=[2, 2],
        scores=[0.0, 1.0],
        reference_scores=[0.0, 0.5],
    )
    assert measures["win_rate"] == 0.75
    assert measures["judge_score"] == 0.5
    assert measures["kl"] == 1.0
    assert measures["length_ratio"] == 4.0
    assert measures["repetition"] == pytest.approx(0.45)
    assert measures["ended"] == 0.5


def test_without_a_judge_only_its_measures_are_missing() -> None:
    measures = sample_measures([[1, 2]], [True], [0.0], [2])
    missing = {name for name, value in measures.items() if value is None}
    assert missing == {"win_rate", "win_rate_length_controlled", "judge_score"}
