"""The order in which a batch is gone through, and what may not be asked of other backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.errors import ConfigurationError
from rl_assets.settings import Settings
from rl_assets.training.cpu import _by_tiers
from rl_assets.training.lines import service_of


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 5))
def test_tiers_come_from_easy_to_hard_and_keep_their_order_within(difficulty: list[float], tiers: int):
    order = np.random.default_rng(0).permutation(len(difficulty))
    hard = np.array(difficulty)
    found = _by_tiers(order, hard[order], tiers)
    assert sorted(found) == sorted(order)
    edges = np.quantile(hard, np.arange(1, tiers) / tiers)
    assert list(found) == sorted(order, key=lambda row: int((edges < hard[row]).sum()))  # sorting keeps ties in order


def test_with_one_tier_the_order_stays():
    order = np.array([3, 1, 2, 0])
    assert list(_by_tiers(order, np.array([0.1, 0.9, 0.5, 0.5]), 1)) == [3, 1, 2, 0]


def test_a_curriculum_is_not_promised_where_the_service_shuffles(conn: psycopg.Connection, tmp_path: Path):
    settings = Settings(tmp_path, backend="serverless", model_line="wandb")
    with pytest.raises(ConfigurationError, match=r"leave curriculum_tiers at 1|WANDB_API_KEY"):
        service_of(settings, tmp_path, conn, tiers=3)
