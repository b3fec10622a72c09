"""The generator: the same seed gives the same bytes everywhere, and instruments do not touch each other's numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.errors import ConfigurationError
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY, SPLITS

PINNED = {
    ("train", 0): ("6b106b212a67", "59a28ef9498d"),
    ("train", 1): ("694b6304ee42", "53b0ab781b97"),
    ("train", 799_999): ("2eb57bf8b3f4", "933b8289a68a"),
    ("gate", 800_000): ("81e76e954a83", "c33fb2b3b45a"),
    ("sealed", 999_999): ("be0516d3576c", "42f583e55041"),
}
"""Content hash and truth digest of default worlds, their first twelve digits."""

CONFIGS = st.builds(
    WorldConfig,
    ticks=st.integers(2, 40),
    markets=st.integers(1, 4),
    perps=st.integers(0, 3),
    crowd_lag=st.integers(0, 50),
    horizon=st.integers(1, 50),
    post_rate=st.sampled_from([0.0, 0.5, 1.0]),
)


@pytest.mark.parametrize(("split", "seed"), PINNED)
def test_a_seed_gives_the_pinned_world_on_this_machine_too(split, seed):
    snapshot, truth = generate(split, seed)
    assert (snapshot.content_hash[:12], truth.digest[:12]) == PINNED[split, seed]
    assert snapshot.id == f"{split}-{seed:06d}-{PINNED[split, seed][0]}"


def test_a_world_of_another_size_is_pinned_as_well():
    snapshot, truth = generate("train", 7, WorldConfig(ticks=30, markets=0, perps=3))
    assert (snapshot.content_hash[:12], truth.digest[:12]) == ("38b882db3f53", "4eb96b9d4c1c")


@given(seed=st.integers(0, 799_999), config=CONFIGS)
@settings(max_examples=30, deadline=None)
def test_generating_again_gives_the_same_bytes(seed, config):
    (snapshot, truth), (again, truth_again) = generate("train", seed, config), generate("train", seed, config)
    assert snapshot.to_json() == again.to_json()
    assert truth.to_json() == truth_again.to_json()


@given(seed=st.integers(0, 799_999), config=CONFIGS)
@settings(max_examples=30, deadline=None)
def test_adding_instruments_changes_no_number_of_the_others(seed, config):
    from dataclasses import replace

    snapshot, truth = generate("train", seed, config)
    wider, wider_truth = generate("train", seed, replace(config, markets=config.markets + 2, perps=config.perps + 1))
    np.testing.assert_array_equal(wider.crowd[:, : config.markets], snapshot.crowd)
    np.testing.assert_array_equal(wider.perp[:, : config.perps], snapshot.perp)
    np.testing.assert_array_equal(wider.funding[:, : config.perps], snapshot.funding)
    np.testing.assert_array_equal(wider_truth.latent[:, : config.markets], truth.latent)
    np.testing.assert_array_equal(wider_truth.fair[:, : config.perps], truth.fair)
    np.testing.assert_array_equal(wider_truth.outcomes[: config.markets], truth.outcomes)
    of_old = [
        (post.tick, post.instrument if post.instrument < config.markets else post.instrument - 2, post.source, post.up)
        for post in wider.posts
        if post.instrument < config.markets or config.markets + 2 <= post.instrument < config.markets + 2 + config.perps
    ]
    assert of_old == [(post.tick, post.instrument, post.source, post.up) for post in snapshot.posts]


@given(seed=st.integers(0, 799_999), config=CONFIGS)
@settings(max_examples=30, deadline=None)
def test_every_world_is_within_its_units(seed, config):
    snapshot, truth = generate("train", seed, config)
    assert snapshot.crowd.min() >= 200
    assert snapshot.crowd.max() <= 9_800
    assert truth.latent.min() > 0
    assert truth.latent.max() < 1_000_000
    assert (snapshot.perp > 0).all()
    assert (np.abs(snapshot.funding) <= 500).all()
    assert snapshot.day == seed // SNAPSHOTS_PER_DAY


def test_splits_share_neither_seeds_nor_market_days():
    days = {name: {seed // SNAPSHOTS_PER_DAY for seed in (r.start, r.stop - 1)} for name, r in SPLITS.items()}
    assert max(days["train"]) < min(days["gate"])
    assert max(days["gate"]) < min(days["sealed"])


@pytest.mark.parametrize(("split", "seed"), [("train", 800_000), ("gate", 0), ("sealed", -1), ("other", 0)])
def test_a_seed_outside_its_split_is_refused(split, seed):
    with pytest.raises(ConfigurationError, match=r"splits' seeds are train 0\.\.799999"):
        generate(split, seed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ticks": 1},
        {"ticks": 12.5},
        {"markets": 13},
        {"markets": True},
        {"perps": -1},
        {"markets": 0, "perps": 0},
        {"fee": 0.3},
        {"fee": float("nan")},
        {"start_cash": 0.0},
        {"leverage": "10"},
        {"tick_seconds": 0},
    ],
    ids=str,
)
def test_a_world_that_cannot_be_is_refused_with_a_sentence(wrong):
    with pytest.raises(ConfigurationError, match=r"choose one inside|must be a whole number|set markets or perps"):
        WorldConfig(**wrong)
