from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.errors import MalformedInput
from rl_assets.registry.gate import Decision, Gate, Play, compare, daily, lower_bound, spent_alpha
from rl_assets_tests.registry.made import DAYS, a_decision, some_play


def noisy(rng: np.random.Generator, mean: float, day_spread: float = 1.0) -> Play:
    """Play whose days, snapshots and episodes all vary, the days most of all, with the tails of real PnL."""
    days = rng.standard_t(4, size=16)[DAYS] * day_spread
    pnl = mean + days[:, None] + rng.standard_t(4, size=(64, 1)) + 2.0 * rng.standard_t(4, size=(64, 4))
    return replace(some_play(), expected_pnl=pnl)


def part(play: Play, snapshots: slice | list[int]) -> Play:
    return Play(*(getattr(play, field.name)[snapshots] for field in fields(Play)))


def test_equal_play_is_promoted_no_more_often_than_alpha_allows():
    gate = Gate(minimum_effect=0.0, alpha=0.1)
    allowed, trials = spent_alpha(gate.alpha, 1), 800
    promoted = 0
    for seed in range(trials):
        rng = np.random.default_rng([seed, 1])
        ten_days = [part(noisy(rng, 0.0), slice(40)) for _ in range(2)]
        promoted += compare(DAYS[:40], *ten_days, look=1, gate=gate).promote
    # Three standard deviations of a fair count above what is allowed.
    assert promoted <= trials * allowed + 3 * math.sqrt(trials * allowed * (1 - allowed))
    assert promoted > 0


def test_snapshots_of_a_day_do_not_count_as_independent():
    # All of the difference is the luck of two days: 8 of 64 snapshots, and significant if these were independent.
    luck = np.where(DAYS < 2, 8.0, 0.0)[:, None] * np.ones(4)
    assert not compare(DAYS, replace(some_play(), expected_pnl=luck), some_play(), look=1).promote


def test_a_clear_improvement_is_promoted():
    promoted = 0
    for seed in range(40):
        rng = np.random.default_rng([seed, 2])
        promoted += compare(DAYS, noisy(rng, 3.0), noisy(rng, 0.0), look=1).promote
    assert promoted >= 38


def test_the_very_same_play_is_not_promoted():
    play = noisy(np.random.default_rng(3), 1.0)
    decision = compare(DAYS, play, play, look=1)
    assert (decision.promote, decision.effect, decision.lower, decision.upper) == (False, 0.0, 0.0, 0.0)
    assert decision.reason.startswith(
        "rejected: lower bound of the gain 0.00 dollars per episode, must be above 0.10 ("
    )


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({"max_drawdown": 10.1}, "drawdown 10.10 dollars per episode, must be at most 10.00"),
        ({"breaches": 0.1}, "breaches 0.10 per episode, must be at most 0.05"),
        ({"trades": 0.25}, "trades 0.25 per episode, must be at least 0.50"),
    ],
)
def test_a_better_candidate_that_is_worse_elsewhere_is_rejected(worse: dict[str, float], said: str):
    decision = compare(DAYS, some_play(5.0, **worse), some_play(), look=1)
    assert [str(one) for one in decision.conditions() if not one.holds] == [said]
    assert not decision.promote
    assert decision.reason.startswith(f"rejected: {said} (")


@pytest.mark.parametrize(("gain", "most"), [(0.2, 6.0), (0.9, 6.0), (1.5, 6.5), (5.0, 10.0)])
def test_a_deeper_drawdown_is_paid_for_by_what_is_surely_earned(gain: float, most: float):
    candidate, champion = some_play(gain, max_drawdown=most), some_play()
    assert compare(DAYS, candidate, champion, look=1).promote
    deeper = replace(candidate, max_drawdown=candidate.max_drawdown + 0.01)
    assert not compare(DAYS, deeper, champion, look=1).promote


def test_a_gain_that_is_not_sure_pays_for_no_drawdown():
    # Earns 5 dollars more on average, and nobody knows whether that is luck.
    unsure, champion = noisy(np.random.default_rng(4), 5.0, day_spread=40.0), some_play()
    decision = compare(DAYS, replace(unsure, max_drawdown=champion.max_drawdown + 1.01), champion, look=1)
    assert decision.lower is not None and decision.lower < 0
    assert decision.most_drawdown == 6.0
    assert [one.name for one in decision.conditions() if not one.holds] == ["lower bound of the gain", "drawdown"]


def test_what_is_within_the_tolerance_is_let_through():
    decision = compare(DAYS, some_play(5.0, max_drawdown=6.0, breaches=0.04, trades=0.5), some_play(), look=1)
    assert decision.promote
    assert decision.reason.startswith("promoted: expected PnL differs by +5.00 dollars per episode")


def test_an_improvement_below_the_minimum_effect_is_rejected():
    assert not compare(DAYS, some_play(0.1), some_play(), look=1).promote
    assert compare(DAYS, some_play(0.101), some_play(), look=1).promote


def test_alpha_is_spent_over_candidates_and_never_more_than_there_is():
    shares = [spent_alpha(0.05, look) for look in range(1, 10_000)]
    assert shares == sorted(shares, reverse=True)
    assert 0.0499 < sum(shares) < 0.05


def test_later_candidates_must_show_more():
    rng = np.random.default_rng(5)
    candidate, champion = noisy(rng, 1.0), noisy(rng, 0.0)
    bounds = [compare(DAYS, candidate, champion, look=look).lower or math.nan for look in (1, 4, 16)]
    assert bounds[0] > bounds[1] > bounds[2]


def test_too_few_days_decide_nothing_and_the_reason_says_how_many_it_takes():
    few = np.array([0, 0, 1, 1])
    decision = compare(few, part(some_play(9.0), slice(4)), part(some_play(), slice(4)), look=1)
    assert (decision.promote, decision.lower, decision.upper) == (False, None, None)
    assert "2 market days cannot decide at alpha 0.0304, it takes 6" in decision.reason


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.floats(0.001, 0.5))
def test_the_bound_is_the_inverted_sign_flip_test(values: list[float], alpha: float):
    differences = np.array(values)
    bound = lower_bound(differences, alpha)
    patterns = np.array(np.meshgrid(*[[1.0, -1.0]] * len(values))).reshape(len(values), -1).T

    def p_value(true_mean: float) -> float:
        shifted = differences - true_mean
        return float(np.mean(patterns @ shifted >= shifted.sum() - 1e-9))

    if bound is None:
        assert 1 / 2 ** len(values) > alpha
    else:
        assert bound <= differences.mean() + 1e-9
        assert p_value(bound - 1e-3) <= alpha + 1e-12 or np.ptp(differences) < 0.01


def test_more_days_than_can_be_enumerated_are_bounded_alike():
    rng = np.random.default_rng(6)
    values = rng.normal(1.0, 1.0, size=40)
    bound = lower_bound(values, 0.03)
    assert bound == lower_bound(values, 0.03)
    assert bound == pytest.approx(values.mean() - 1.88 * values.std(ddof=1) / math.sqrt(40), abs=0.05)


@given(st.permutations(range(64)))
@settings(max_examples=20)
def test_the_order_of_snapshots_does_not_matter(order: list[int]):
    rng = np.random.default_rng(7)
    candidate, champion = noisy(rng, 1.0), noisy(rng, 0.0)
    one = compare(DAYS, candidate, champion, look=1)
    other = compare(DAYS[order], part(candidate, order), part(champion, order), look=1)
    assert one.days == other.days
    assert one.lower == pytest.approx(other.lower)
    assert one.promote == other.promote


def test_days_of_unequal_size_weigh_the_same():
    assert daily(np.array([7, 3, 7]), np.array([1.0, 5.0, 3.0])).tolist() == [5.0, 2.0]


@pytest.mark.parametrize("promote", [True, False])
def test_a_decision_survives_json(promote: bool):
    decision = a_decision(promote, look=3)
    assert Decision.from_json(decision.to_json()) == decision


def test_a_decision_of_another_version_is_refused():
    raw = a_decision(True).to_json()
    del raw["days"]
    with pytest.raises(MalformedInput, match="evaluate the candidate again"):
        Decision.from_json(raw)


def test_numbers_that_are_no_numbers_and_unequal_play_are_refused():
    broken = some_play()
    broken.expected_pnl[3, 1] = math.nan
    with pytest.raises(MalformedInput, match="expected_pnl of an episode on the gate is not a finite number"):
        compare(DAYS, broken, some_play(), look=1)
    with pytest.raises(MalformedInput, match="must play alike"):
        compare(DAYS, some_play(), part(some_play(), slice(60)), look=1)
    with pytest.raises(MalformedInput, match="a day for each"):
        compare(DAYS[:5], some_play(), some_play(), look=1)
