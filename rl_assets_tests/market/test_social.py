"""What joins and posts are told to have earned, against episodes in which it can be said by hand."""

from dataclasses import replace

import numpy as np
import pytest

from rl_assets.agents.prompt import HOLD_TEXT
from rl_assets.agents.runner import ReferenceAgent
from rl_assets.market import social
from rl_assets.market.config import DIFFICULTIES, WorldConfig
from rl_assets.market.metrics import measure, per_episode
from rl_assets.market.trades import trades_of
from rl_assets.reports.summary import by_policy
from rl_assets_tests.market.wild import Scripted, by_id, episodes_of

HARD = DIFFICULTIES["hard"]
SEEDS = range(8)
BUY, CLOSE = '{"market":"A","do":"buy_yes","size":100}', '{"market":"A","do":"close"}'
UP, DOWN = '{"market":"A","do":"post_up"}', '{"market":"A","do":"post_down"}'
JOIN_DEN, JOIN_GEM = '{"chat":"den","do":"join"}', '{"chat":"gem","do":"join"}'


def earned(lines: list[str], config: WorldConfig = HARD) -> np.ndarray:
    """Social value of the lines on each of SEEDS."""
    episodes, worlds = episodes_of([Scripted("it", lines)], SEEDS, config), by_id(SEEDS, config)
    return per_episode(episodes, worlds, trades_of(episodes, worlds))["social_value"]


def pnl(lines: list[str]) -> np.ndarray:
    return np.array([episode.expected_pnl for episode in episodes_of([Scripted("it", lines)], SEEDS, HARD)])


def test_talking_up_what_one_sells_earns_what_it_adds_to_the_price_and_talking_it_down_costs():
    pump = [BUY, UP, UP, CLOSE]
    assert (earned(pump) > 0.0).all()
    np.testing.assert_allclose(earned(pump), pnl(pump) - pnl([BUY, HOLD_TEXT, HOLD_TEXT, CLOSE]), atol=1e-6)
    assert (earned([BUY, DOWN, DOWN, CLOSE]) < 0.0).all()


def test_a_channel_that_is_paid_for_costs_its_price_and_a_refused_join_its_fee():
    np.testing.assert_array_equal(earned([JOIN_GEM, BUY, CLOSE]), -HARD.source_price)
    np.testing.assert_array_equal(earned([JOIN_DEN, BUY, JOIN_DEN]), -HARD.breach_fee)


def test_nothing_is_earned_by_a_free_join_or_a_post_about_what_nobody_trades():
    assert earned([JOIN_DEN, BUY, '{"market":"B","do":"post_up"}', CLOSE]).tolist() == [0.0] * len(SEEDS)


@pytest.mark.parametrize("config", [WorldConfig(), HARD], ids=["default", "hard"])
def test_who_does_nothing_social_has_exactly_zero_and_is_not_played_again(config, monkeypatch):
    episodes, worlds = episodes_of([ReferenceAgent("news_follower")], SEEDS, config), by_id(SEEDS, config)
    monkeypatch.delattr(social, "engine_for")
    expected = np.array([episode.expected_pnl for episode in episodes])
    assert social.social_value(episodes, expected, worlds).tolist() == [0.0] * len(SEEDS)


def test_on_default_worlds_joins_and_posts_are_no_actions():
    assert earned([JOIN_GEM, UP, BUY, CLOSE], WorldConfig()).tolist() == [0.0] * len(SEEDS)


def test_episodes_of_several_worlds_are_each_measured_as_if_alone_and_again_the_same():
    small = replace(HARD, ticks=10, markets=2)
    lines = [BUY, UP, CLOSE, JOIN_GEM]
    mixed = [
        *episodes_of([Scripted("it", lines)], SEEDS, small),
        *episodes_of([ReferenceAgent("random")], SEEDS),
        *episodes_of([Scripted("it", [BUY, CLOSE])], SEEDS, HARD),
        *episodes_of([Scripted("it", lines)], SEEDS, HARD),
    ]
    worlds = by_id(SEEDS, small) | by_id(SEEDS) | by_id(SEEDS, HARD)
    found = per_episode(mixed, worlds, trades_of(mixed, worlds))["social_value"]
    nothing = np.zeros(len(SEEDS))
    np.testing.assert_array_equal(found, np.concatenate([earned(lines, small), nothing, nothing, earned(lines)]))


def test_it_has_an_interval_over_market_days():
    episodes = episodes_of([Scripted("it", [JOIN_GEM, BUY])], SEEDS, HARD)
    interval = measure(by_policy(episodes), by_id(SEEDS, HARD))["it"].values["social_value"]
    assert interval is not None
    assert (interval.low, interval.mean, interval.high, interval.clusters) == (-20.0, -20.0, -20.0, 2)
