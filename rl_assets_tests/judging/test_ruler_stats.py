from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.judging.ruler_stats import LEAST_NOISE, agreement, compare, flips, kendall, level, noise, position_bias

lists = st.lists(st.integers(0, 5).map(float), min_size=2, max_size=9)


@given(lists, st.data())
def test_tau_is_what_counting_pairs_gives(a: list[float], data: st.DataObject):
    b = data.draw(st.permutations(a))
    same = opposite = only_a = only_b = 0
    for i in range(len(a)):
        for j in range(i):
            x, y = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
            same, opposite = same + (x * y > 0), opposite + (x * y < 0)
            only_a, only_b = only_a + (x != 0), only_b + (y != 0)
    if only_a and only_b:
        assert kendall(a, b) == pytest.approx((same - opposite) / (only_a * only_b) ** 0.5)
    assert flips(a, b) == (opposite, same + opposite)
    assert kendall(a, b) == kendall(b, a)


def test_tau_at_its_ends():
    assert kendall([1, 2, 3], [10, 20, 30]) == 1.0
    assert kendall([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall([1, 1], [2, 2]) == 1.0
    assert kendall([1, 1], [1, 2]) == 0.0
    assert agreement(np.array([[1.0, 2.0]])) == 1.0


def test_noise_is_the_standard_error_of_a_mean():
    draw = np.random.default_rng(7)
    scores = np.linspace(0, 1, 400) + draw.normal(0, 0.1, (4, 400)) + np.array([[0.0], [0.2], [-0.1], [0.3]])
    assert noise(scores) == pytest.approx(0.05, rel=0.1)
    assert noise(np.tile([0.1, 0.9], (3, 1))) == LEAST_NOISE


def test_position_bias_is_found_and_taken_out():
    draw = np.random.default_rng(3)
    positions = np.array([draw.permutation(8) for _ in range(5)])
    honest = np.tile(draw.random(8), (5, 1))
    scores = honest - 0.35 * positions / 7
    assert position_bias([(scores, positions)]) == pytest.approx(-0.35)
    assert noise(level(scores, positions)) == LEAST_NOISE
    assert position_bias([(scores[:1], positions[:1])]) is None
    assert position_bias([]) is None


def test_sets_are_compared_by_group_and_member():
    one = {"g": {"a": 0.1, "b": 0.5, "c": 0.9}, "alone": {"x": 1.0}, "other": {"p": 0.0, "q": 1.0}}
    two = {"g": {"c": 0.8, "a": 0.4, "b": 0.3}, "alone": {"x": 0.0}, "other": {"p": 0.0, "r": 1.0}}
    agreed = compare(one, two)
    assert agreed.groups == 1
    assert agreed.tau == pytest.approx(1 / 3)
    assert agreed.flipped == pytest.approx(1 / 3)
    assert compare(one, {}).tau is None
