"""Metrics of episodes against numbers worked out by hand, and what they must not be fooled by."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.errors import MalformedInput
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Engine
from rl_assets.market.metrics import (
    METRICS,
    calibration_table,
    cluster_interval,
    drawdown,
    measure,
    per_episode,
    ratio_interval,
    skills,
)
from rl_assets.market.trades import Trades, trades_of
from rl_assets.reports.summary import by_policy
from rl_assets_tests.market.wild import Scripted, by_id, episodes_of, one, with_prices, world

DEFAULT = WorldConfig()
BUY = '{"market":"A","do":"buy_yes","size":100}'
BUY_NO = '{"market":"A","do":"buy_no","size":100}'


def numbers(lines: list[str], seed: int = 0, config: WorldConfig = DEFAULT) -> dict[str, float]:
    episodes = episodes_of([Scripted("it", lines)], [seed], config)
    worlds = by_id([seed], config)
    return {name: float(v[0]) for name, v in per_episode(episodes, worlds, trades_of(episodes, worlds)).items()}


def test_a_purchase_is_priced_at_what_its_shares_cost_and_valued_at_the_latent():
    snapshot, truth = world(DEFAULT)
    engine = Engine([snapshot])
    engine.step(one((Do.BUY_YES, 0, 100.0)))
    paid = 100.0 / engine.yes[0, 0]
    latent, came = truth.latents()[-1, 0], float(truth.outcomes[0])
    found = numbers([BUY])
    assert found["brier"] == pytest.approx((paid - came) ** 2)
    assert found["brier_latent"] == pytest.approx((paid - latent) ** 2)
    assert found["edge"] == pytest.approx(latent - paid)
    assert found["hit_rate"] == float(latent > paid)
    assert found["turnover"] == 0.1
    assert found["fees"] == 1.0
    assert found["trades"] == 1.0
    assert found["latency_ms"] == 3.0
    assert found["expected_pnl"] == pytest.approx(engine.yes[0, 0] * latent - 100.0, abs=1e-6)
    assert found["realised_pnl"] == pytest.approx(engine.yes[0, 0] * came - 100.0, abs=1e-6)
    assert found["return_on_capital"] == pytest.approx(found["expected_pnl"] / 1000.0)


def test_the_other_side_is_seen_from_its_own_side():
    _, truth = world(DEFAULT)
    yes, no = numbers([BUY]), numbers([BUY_NO])
    assert yes["edge"] + no["edge"] < 0.0
    assert no["hit_rate"] + yes["hit_rate"] <= 1.0
    trades = trades_of(episodes_of([Scripted("it", [BUY_NO])], [0]), by_id([0]))
    assert trades.worth[0] == 1.0 - truth.latents()[-1, 0]
    assert trades.came[0] == float(not truth.outcomes[0])


def test_repeating_a_bet_is_one_hit_and_not_twelve():
    assert numbers([BUY] * 9)["hit_rate"] in (0.0, 1.0)
    mixed = numbers([BUY, BUY, BUY_NO])
    assert mixed["hit_rate"] in (0.0, 0.5)


def test_volume_counts_every_filled_dollar_with_leverage_and_no_refused_one():
    lines = [
        '{"market":"P","do":"long","size":100}',
        '{"market":"P","do":"close"}',
        BUY,
        '{"market":"A","do":"sell_yes","size":50}',
        '{"market":"A","do":"close"}',
        '{"market":"A","do":"buy_yes","size":5000}',
        "nonsense",
    ]
    episodes, worlds = episodes_of([Scripted("it", lines)], [0]), by_id([0])
    trades = trades_of(episodes, worlds)
    assert trades.tick.tolist() == [0, 1, 2, 3, 4]
    assert trades.volume[[0, 2, 3]].tolist() == [1000.0, 100.0, 50.0]
    assert trades.volume[1] == pytest.approx(1000.0, rel=0.05)
    assert 30.0 < trades.volume[4] < 70.0
    assert np.isnan(trades.paid).tolist() == [False, True, False, True, True]
    found = per_episode(episodes, worlds, trades)
    assert found["invalid_actions"][0] == 2.0
    assert found["turnover"][0] == pytest.approx(trades.volume.sum() / 1000.0)


def test_who_never_trades_has_no_hit_rate_but_a_profit_of_zero():
    found = numbers([])
    assert np.isnan([found[name] for name in ("hit_rate", "brier", "edge")]).all()
    assert found["expected_pnl"] == found["turnover"] == found["max_drawdown"] == 0.0
    measured = measure(by_policy(episodes_of([Scripted("it", [])], range(4))), by_id(range(4)))["it"]
    assert measured.values["hit_rate"] is None
    assert measured.calibration == []


def test_drawdown_is_the_largest_fall_of_the_equity_curve():
    assert drawdown(np.array([1000.0, 1200.0, 900.0, 1100.0, 850.0, 1300.0])) == (350.0, 350.0 / 1200.0)
    assert drawdown(np.array([1000.0, 1001.0])) == (0.0, 0.0)
    episodes = episodes_of([ReferenceAgent("random")], range(8))
    worlds = by_id(range(8))
    found = per_episode(episodes, worlds, trades_of(episodes, worlds))
    np.testing.assert_allclose(found["max_drawdown"], [e.max_drawdown or 0.0 for e in episodes], atol=1e-5)


def test_skill_lies_between_hold_and_oracle():
    names = ("hold", "random", "news_follower", "oracle")
    measured = measure(by_policy(episodes_of([ReferenceAgent(name) for name in names], range(32))), by_id(range(32)))
    skill = {name: measured[name].values["skill"] for name in names}
    assert skill["hold"] is not None
    assert skill["hold"].mean == 0.0
    assert skill["oracle"] is not None
    assert (skill["oracle"].low, skill["oracle"].mean, skill["oracle"].high) == (1.0, 1.0, 1.0)
    follower = skill["news_follower"]
    assert follower is not None
    assert 0.0 < follower.low < follower.mean < follower.high < 1.0
    assert all(list(m.values) == list(METRICS) for m in measured.values())
    for rows in (m.calibration for name, m in measured.items() if name != "hold"):
        assert all(row["from"] <= row["paid"] < row["to"] for row in rows if row["to"] < 1.0)
        assert sum(row["trades"] for row in rows) > 100


def test_a_side_that_cost_a_dollar_or_more_is_in_the_last_bin():
    paid = np.array([0.0, 0.2, 0.8, 1.0, 1.04])
    ones, zeros = np.ones(len(paid), int), np.zeros(len(paid), int)
    trades = Trades(zeros, zeros, zeros, ones * Do.BUY_YES, ones * 100.0, paid, ones * 0.5, ones * 1.0)
    table = calibration_table(trades, trades.is_bet)
    assert [(row["from"], row["to"], row["trades"]) for row in table] == [(0.0, 0.2, 1), (0.2, 0.4, 1), (0.8, 1.0, 3)]
    assert table[-1]["paid"] == pytest.approx((0.8 + 1.0 + 1.04) / 3)


def test_without_hold_or_oracle_there_is_no_skill():
    measured = measure(by_policy(episodes_of([ReferenceAgent("random")], range(4))), by_id(range(4)))
    assert measured["random"].values["skill"] is None


def test_skill_is_0_for_holding_1_for_the_oracle_and_negative_for_who_loses_more():
    episodes = by_policy(episodes_of([ReferenceAgent(name) for name in ("hold", "random", "oracle")], range(4)))
    worth = {"hold": 0.0, "random": -4.0, "oracle": 8.0}
    given = {name: [replace(e, expected_pnl=worth[name]) for e in mine] for name, mine in episodes.items()}
    assert {name: skill.mean for name, skill in skills(given).items()} == {"hold": 0.0, "random": -0.5, "oracle": 1.0}
    poor = {**given, "oracle": [replace(e, expected_pnl=0.0) for e in given["oracle"]]}
    assert skills(poor) == {}
    with pytest.raises(MalformedInput, match="expected_pnl of episode"):
        skills({**given, "random": [replace(given["random"][0], expected_pnl=float("nan"))]})


def test_mixed_sizes_of_worlds_are_measured_together():
    wide = WorldConfig(ticks=20, markets=1, perps=2)
    agent = [ReferenceAgent("random")]
    both = episodes_of(agent, range(3)) + episodes_of(agent, range(3), wide)
    worlds = by_id(range(3)) | by_id(range(3), wide)
    together = per_episode(both, worlds, trades_of(both, worlds))
    for part, place in ((both[:3], slice(0, 3)), (both[3:], slice(3, 6))):
        for name, values in per_episode(part, worlds, trades_of(part, worlds)).items():
            np.testing.assert_array_equal(together[name][place], values, name)


def test_what_cannot_be_measured_is_refused_with_a_sentence():
    episode = episodes_of([ReferenceAgent("random")], [0])[0]
    with pytest.raises(MalformedInput, match="load it first"):
        measure(by_policy([episode]), {})
    with pytest.raises(MalformedInput, match="load it first"):
        measure(by_policy([replace(episode, snapshot_id=None)]), by_id([0]))
    with pytest.raises(MalformedInput, match="11 of 12 steps"):
        measure(by_policy([replace(episode, steps=episode.steps[1:])]), by_id([0]))
    for wrong in (None, float("nan"), float("inf")):
        with pytest.raises(MalformedInput, match="expected_pnl of episode"):
            measure(by_policy([replace(episode, expected_pnl=wrong)]), by_id([0]))


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), per_day=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_an_interval_holds_its_mean_and_is_the_same_each_time(values, per_day):
    days = [place // per_day for place in range(len(values))]
    interval = cluster_interval(np.array(values), days)
    assert interval == cluster_interval(np.array(values), days) or interval.clusters == 1
    assert interval.mean == pytest.approx(np.mean(values))
    if interval.clusters > 1:
        assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        day_effect = rng.standard_normal(24).repeat(4)
        interval = cluster_interval(day_effect + rng.standard_normal(96), (np.arange(96) // 4).tolist(), seed=trial)
        covered += interval.low <= 0.0 <= interval.high
    assert 86 <= covered <= 100


def test_intervals_need_numbers():
    with pytest.raises(ValueError, match="as many of each"):
        cluster_interval(np.array([]), [])
    with pytest.raises(ValueError, match="as many of each"):
        cluster_interval(np.array([1.0]), [1, 2])
    with pytest.raises(ValueError, match="positive denominator"):
        ratio_interval(np.ones(2), np.zeros(2), [1, 2])


def test_a_liquidation_counts_in_a_tick_whose_order_was_refused():
    config = WorldConfig(markets=0, perps=1, ticks=3)
    snapshot, truth = world(config)
    falling = with_prices(snapshot, [10_000, 10_000, 8_000, 8_000])
    agent = Scripted("stubborn", ['{"market":"P","do":"long","size":500}', "nonsense"])
    (episode,) = play([Assignment(agent, "agent")], [(falling, truth)], seed=0, new_ids=lambda n: [""] * n)
    assert episode.steps[1].error == "no JSON object in the response; liquidated"
    assert episode.breaches == 2
    worlds = {falling.id: (falling, truth)}
    assert per_episode([episode], worlds, trades_of([episode], worlds))["liquidations"].tolist() == [1.0]
