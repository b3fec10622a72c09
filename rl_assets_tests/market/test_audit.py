"""Audits of snapshots: they pass on what the generator makes and find each thing that can be wrong with it."""

from dataclasses import replace

import numpy as np
import pytest

from rl_assets.agents.reference import REFERENCE_AGENTS
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.agents.skill import LEAST_DAYS, audit_skill, reference_pnl
from rl_assets.errors import ConfigurationError
from rl_assets.market.audit import audit_snapshot
from rl_assets.market.config import WorldConfig
from rl_assets.market.snapshot import LATENT_UNIT, PRICE_UNIT, Post
from rl_assets_tests.market.wild import world

DEFAULT = WorldConfig()
WIDE = WorldConfig(ticks=30, markets=2, perps=2)


def failed(snapshot, truth) -> set[str]:
    checks = audit_snapshot(snapshot, truth)
    assert all(check.detail for check in checks)
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("config", [DEFAULT, WIDE, WorldConfig(markets=0, perps=1), WorldConfig(perps=0, ticks=2)])
def test_what_the_generator_makes_passes_every_check(config):
    for seed in range(8):
        snapshot, truth = world(config, seed)
        assert failed(snapshot, truth) == set()
        assert len(audit_snapshot(snapshot, truth)) == 5


def test_a_changed_number_is_found():
    snapshot, truth = world(DEFAULT)
    crowd = snapshot.crowd.copy()
    crowd[3, 1] += 1
    assert failed(replace(snapshot, crowd=crowd), truth) == {"regenerates"}


def test_another_worlds_truth_is_found():
    snapshot, _ = world(DEFAULT)
    assert failed(snapshot, world(DEFAULT, 1)[1]) == {"regenerates", "truth_bound"}


def test_a_changed_coin_is_found():
    snapshot, truth = world(DEFAULT)
    assert failed(snapshot, replace(truth, outcomes=~truth.outcomes)) == {"regenerates", "truth_bound"}


def test_arrays_of_another_shape_are_found():
    snapshot, truth = world(DEFAULT)
    assert "shapes" in failed(replace(snapshot, crowd=snapshot.crowd[:-1]), truth)
    assert "shapes" in failed(snapshot, replace(truth, latent=truth.latent[:-1]))
    assert "shapes" in failed(snapshot, replace(truth, outcomes=truth.outcomes[:1]))


@pytest.mark.parametrize("lead", [0, 2])
def test_a_public_path_that_tells_a_sealed_one_is_found(lead):
    snapshot, truth = world(WIDE)
    ahead = np.concatenate([truth.fair[lead:], np.repeat(truth.fair[-1:], lead, axis=0)])
    assert "no_truth" in failed(replace(snapshot, perp=ahead.astype(np.int32)), truth)
    latent = np.rint(truth.latent * (LATENT_UNIT / PRICE_UNIT)).astype(np.int32)
    told = np.clip(np.concatenate([latent[lead:], np.repeat(latent[-1:], lead, axis=0)]), 100, 9_900)
    assert "no_truth" in failed(replace(snapshot, crowd=told), truth)


def test_a_raw_draw_of_the_generator_is_found():
    snapshot, truth = world(DEFAULT)
    draw = np.random.default_rng(0).random(snapshot.funding.shape)
    assert "quantised" in failed(replace(snapshot, funding=draw), truth)


def test_a_post_of_a_stranger_is_found():
    snapshot, truth = world(DEFAULT)
    posts = (Post(0, 0, "god", True), *(p for p in snapshot.posts if (p.tick, p.instrument) > (0, 0)))
    assert "quantised" in failed(replace(snapshot, posts=posts), truth)


def test_skill_shows_on_a_few_dozen_snapshots():
    worlds = [world(DEFAULT, seed) for seed in range(64)]
    report = audit_skill(worlds)
    assert report.passed, report.detail
    assert report.detail.startswith("skill shows on 64 snapshots")
    rows = {row["agent"]: row for row in report.rows}
    assert tuple(rows) == REFERENCE_AGENTS
    assert rows["oracle"]["mean"] > rows["news_follower"]["mean"] > rows["random"]["mean"]
    assert rows["hold"] == {"agent": "hold", "mean": 0.0, "low": 0.0, "high": 0.0, "skill": 0.0}
    assert rows["oracle"]["skill"] == 1.0
    assert all(row["low"] <= row["mean"] <= row["high"] for row in report.rows)


def test_too_few_market_days_are_no_evidence():
    report = audit_skill([world(DEFAULT, seed) for seed in range(4 * LEAST_DAYS - 4)])
    assert not report.passed
    assert "too few to tell skill from luck" in report.detail
    single = audit_skill([world(DEFAULT, 0)])
    assert single.rows[0]["low"] is None


def test_a_world_in_which_news_tell_nothing_shows_no_skill():
    """Without posts the news follower holds, so that it cannot be told from random play."""
    silent = WorldConfig(post_rate=0.0)
    report = audit_skill([world(silent, seed) for seed in range(64)])
    assert not report.passed
    assert "news_follower over random" in report.detail


def test_the_audit_plays_as_recorded_episodes_are_played():
    worlds = [world(DEFAULT, seed) for seed in range(4)] + [world(WIDE, seed) for seed in range(2)]
    for name in ("random", "news_follower", "oracle"):
        found = reference_pnl(name, worlds, seed=5)
        for start, stop in ((0, 4), (4, 6)):
            episodes = play(
                [Assignment(ReferenceAgent(name), "agent")],
                worlds[start:stop],
                seed=5,
                new_ids=lambda n: [""] * n,
            )
            recorded = np.array([e.expected_pnl for e in episodes], float)
            np.testing.assert_allclose(found[start:stop], recorded, atol=1e-6)


def test_nothing_and_nobody_cannot_be_audited():
    with pytest.raises(ValueError, match="at least one world"):
        audit_skill([])
    with pytest.raises(ConfigurationError, match="not a reference agent"):
        reference_pnl("guru", [world(DEFAULT)])
