from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.registry.sequence import bounds

ALPHA = 0.05
VALUES = st.lists(st.floats(-1.0, 1.0), max_size=60).map(np.array)


def test_before_any_observation_anything_may_be():
    found = bounds(np.array([]), ALPHA)
    assert (found.lower, found.upper, found.count) == (-1.0, 1.0, 0)


def test_a_value_outside_the_range_is_refused():
    for value in (1.5, float("nan")):
        with pytest.raises(ValueError, match="must lie in"):
            bounds(np.array([value]), ALPHA)


@given(VALUES)
def test_the_two_sides_mirror_each_other(values: np.ndarray):
    one, other = bounds(values, ALPHA), bounds(-values, ALPHA)
    assert (one.lower, one.upper) == pytest.approx((-other.upper, -other.lower), abs=1e-9)


@given(VALUES, st.integers(0, 60))
def test_bounds_only_ever_tighten(values: np.ndarray, cut: int):
    before, after = bounds(values[:cut], ALPHA), bounds(values, ALPHA)
    assert after.upper <= before.upper + 1e-9
    assert after.lower >= before.lower - 1e-9


@pytest.mark.parametrize("kind", ["coin", "skewed", "rare", "drifting"])
def test_a_true_mean_is_missed_at_any_time_no_more_often_than_alpha(kind: str):
    """200 sequences of 400 observations each; the bounds that are left at the end are the tightest there ever were."""
    rng = np.random.default_rng(2021)
    draws = {
        "coin": lambda: rng.choice([-1.0, 1.0], 400),
        "skewed": lambda: np.where(rng.random(400) < 0.2, 0.8, -0.2),
        "rare": lambda: np.where(rng.random(400) < 0.02, 0.98, -0.02),
        "drifting": lambda: rng.normal(0.0, np.linspace(0.05, 0.3, 400)).clip(-1.0, 1.0),
    }[kind]
    found = [bounds(draws(), ALPHA) for _ in range(200)]
    # Up to 19 of 200 are within three standard errors of 5 %.
    assert sum(b.upper < 0.0 for b in found) <= 19
    assert sum(b.lower > 0.0 for b in found) <= 19


def test_a_difference_is_found_soon_where_it_is_large_and_late_where_it_is_small():
    rng = np.random.default_rng(1)
    values = rng.normal(-0.2, 0.24, 2000).clip(-1.0, 1.0)
    assert bounds(values[:150], ALPHA).upper < -0.04
    small = rng.normal(-0.08, 0.24, 2000).clip(-1.0, 1.0)
    assert bounds(small[:50], ALPHA).upper > -0.04
    assert bounds(small, ALPHA).upper < -0.04
    found = bounds(small, ALPHA)
    assert found.lower < small.mean() < found.upper
