"""What the exchange must never do, whatever an agent orders."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.agents.reference import REFERENCE_AGENTS, Seat, rule
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import HIGHEST_PRICE, LOWEST_PRICE, Do, Engine, Orders
from rl_assets.market.generate import generate
from rl_assets.market.streams import uniform_draws
from rl_assets_tests.market.wild import RISKY, STILL, one, orders, played, side_by_side, with_prices, world

DEFAULT = WorldConfig()
STATE = ("cash", "equity", "fees", "yes", "no", "units", "entry", "margin", "max_drawdown", "trades", "breaches")


@given(script=orders(STILL, (Do.HOLD, Do.BUY_YES, Do.BUY_NO, Do.SELL_YES, Do.SELL_NO, Do.CLOSE, Do.INVALID)))
@settings(max_examples=30, deadline=None)
def test_every_dollar_of_a_prediction_market_backs_one_share_of_each_side(script):
    engine = Engine([world(STILL)[0]])
    seeded_yes, seeded_no = engine._pool_yes.copy(), engine._pool_no.copy()
    paid_in = np.zeros(STILL.markets)
    for do, instrument, size in script:
        cash, fees = engine.cash[0], engine.fees[0]
        engine.step(one((do, min(instrument, STILL.markets - 1), size)))
        if instrument >= 0 and do != Do.INVALID:
            paid_in[min(instrument, STILL.markets - 1)] += (cash - engine.cash[0]) - (engine.fees[0] - fees)
        minted_yes = (engine._pool_yes + engine.yes - seeded_yes)[0]
        minted_no = (engine._pool_no + engine.no - seeded_no)[0]
        np.testing.assert_allclose(minted_yes, minted_no, atol=1e-6)
    assert engine.cash[0] + engine.fees[0] + paid_in.sum() == pytest.approx(STILL.start_cash, abs=1e-6)
    np.testing.assert_allclose(minted_yes, paid_in, atol=1e-6)


@given(script=orders(STILL), outcome=st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_resolution_pays_out_exactly_what_was_paid_in(script, outcome):
    engine, _ = played(STILL, script)
    fresh = Engine([world(STILL)[0]])
    won = np.array(outcome)
    shares = np.where(won, engine.yes[0] + engine._pool_yes[0], engine.no[0] + engine._pool_no[0])
    seeded = np.where(won, fresh._pool_yes[0], fresh._pool_no[0])
    minted = engine._pool_yes[0] + engine.yes[0] - fresh._pool_yes[0]
    np.testing.assert_allclose(shares - seeded, minted, atol=1e-6)


@pytest.mark.parametrize("config", [DEFAULT, STILL, RISKY], ids=["default", "still", "risky"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_nobody_owes_anything_and_prices_stay_prices(config, data):
    script = data.draw(orders(config))
    engine = Engine([world(config, data.draw(st.integers(0, 5)))[0]])
    spent_on_fees = 0.0
    for order in script:
        engine.step(one(order))
        assert engine.cash[0] >= 0.0
        assert engine.equity[0] >= 0.0
        assert (engine.yes >= 0.0).all()
        assert (engine.no >= 0.0).all()
        assert ((engine.prices >= LOWEST_PRICE - 1e-9) & (engine.prices <= HIGHEST_PRICE + 1e-9)).all()
        assert engine.fees[0] >= spent_on_fees
        assert all(np.isfinite(getattr(engine, name)).all() for name in STATE)
        spent_on_fees = engine.fees[0]
        left = engine.margin + engine.units * (engine.perp_prices - engine.entry)
        assert (left[engine.units != 0.0] > 0.0).all()
        assert (engine.margin[engine.units == 0.0] == 0.0).all()


@given(script=orders(DEFAULT))
@settings(max_examples=30, deadline=None)
def test_rewards_add_up_to_the_change_of_equity(script):
    engine, fills = played(DEFAULT, script)
    total = sum(float(f.reward[0]) for f in fills)
    assert total == pytest.approx(engine.equity[0] - DEFAULT.start_cash, abs=1e-6)


@given(script=orders(DEFAULT))
@settings(max_examples=30, deadline=None)
def test_a_refused_order_costs_the_fee_and_changes_nothing_else(script):
    engine = Engine([world(DEFAULT)[0]])
    for order in script:
        before = {name: getattr(engine, name).copy() for name in ("cash", "yes", "no", "units", "entry")}
        fills = engine.step(one(order))
        if fills.error[0] is None or fills.liquidated[0]:
            continue
        assert not fills.valid[0]
        assert not fills.traded[0]
        assert engine.cash[0] == before["cash"][0] - min(DEFAULT.breach_fee, before["cash"][0])
        for name in ("yes", "no", "units", "entry"):
            np.testing.assert_array_equal(getattr(engine, name), before[name])


@given(scripts=st.lists(orders(DEFAULT), min_size=1, max_size=5), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_depend_on_the_rows_beside_it(scripts, data):
    seeds = [data.draw(st.integers(0, 3)) for _ in scripts]
    together = Engine([world(DEFAULT, seed)[0] for seed in seeds])
    alone = [Engine([world(DEFAULT, seed)[0]]) for seed in seeds]
    for tick in range(DEFAULT.ticks):
        rows = [script[tick] for script in scripts]
        fills = together.step(side_by_side(rows))
        for row, engine in enumerate(alone):
            own = engine.step(one(rows[row]))
            assert own.reward[0] == fills.reward[row]
            assert own.error[0] == fills.error[row]
            for name in STATE:
                np.testing.assert_array_equal(getattr(engine, name)[0], getattr(together, name)[row], name)


@given(size=st.floats(1.0, 900.0), side=st.sampled_from([(Do.BUY_YES, Do.SELL_YES), (Do.BUY_NO, Do.SELL_NO)]))
@settings(max_examples=30, deadline=None)
def test_buying_moves_the_price_against_the_buyer_and_selling_back_never_gains(size, side):
    buy, sell = side
    engine = Engine([world(STILL)[0]])
    before = engine.prices[0, 0]
    engine.step(one((buy, 0, size)))
    assert (engine.prices[0, 0] - before) * (1.0 if buy == Do.BUY_YES else -1.0) > 0.0
    held = engine.yes[0, 0] + engine.no[0, 0]
    assert held * (before if buy == Do.BUY_YES else 1.0 - before) < size
    engine.step(one((sell, 0, 1e9)))
    assert engine.yes[0, 0] + engine.no[0, 0] == 0.0
    assert engine.cash[0] <= STILL.start_cash - engine.fees[0] + 1e-6
    assert engine.prices[0, 0] == pytest.approx(before, abs=1e-9)


def test_a_perpetual_closed_at_the_same_price_costs_impact_and_fees():
    config = WorldConfig(markets=0, perps=1)
    snapshot = with_prices(world(config)[0], [10_000] * (config.ticks + 1))
    engine = Engine([snapshot])
    engine.step(one((Do.LONG, 0, 100.0)))
    fill = 100.0 * (1.0 + 0.01 * 1000.0 / config.perp_depth)
    assert engine.entry[0, 0] == fill
    assert engine.units[0, 0] == 1000.0 / fill
    assert engine.margin[0, 0] == pytest.approx(100.0)
    engine.step(one((Do.CLOSE, 0, 0.0)))
    lost = 2 * 0.01 * 1000.0 / config.perp_depth * (1000.0 / fill) * 100.0
    assert engine.cash[0] == pytest.approx(config.start_cash - lost - engine.fees[0], rel=1e-5)
    assert engine.fees[0] == 1.0


@pytest.mark.parametrize(("side", "sign"), [(Do.LONG, 1), (Do.SHORT, -1)])
def test_profit_of_a_perpetual_is_units_times_the_move(side, sign):
    config = WorldConfig(markets=0, perps=1, ticks=4, taker_fee=0.0, perp_depth=1e12)
    path = [10_000, 10_000 + sign * 300, 10_000 + sign * 300, 10_000, 10_000]
    engine = Engine([with_prices(world(config)[0], path)])
    engine.step(one((side, 0, 100.0)))
    assert engine.equity[0] == pytest.approx(config.start_cash + 30.0, abs=1e-3)
    engine.step(one((Do.CLOSE, 0, 0.0)))
    assert engine.cash[0] == pytest.approx(config.start_cash + 30.0, abs=1e-3)


def test_a_position_that_falls_through_its_margin_is_closed_and_leaves_no_debt():
    config = WorldConfig(markets=0, perps=1, ticks=3)
    engine = Engine([with_prices(world(config)[0], [10_000, 8_000, 8_000, 8_000])])
    fills = engine.step(one((Do.LONG, 0, 500.0)))
    assert fills.liquidated[0]
    assert engine.units[0, 0] == 0.0
    assert engine.cash[0] == config.start_cash - 500.0 - engine.fees[0]
    assert engine.breaches[0] == 1


def test_a_part_that_is_closed_under_water_takes_its_loss_from_what_is_left():
    """Closing a little at a fill far from the index must not forgive the loss beyond that little's margin."""
    config = WorldConfig(markets=0, perps=1, ticks=4, leverage=10, maintenance=0.0, perp_depth=200.0, taker_fee=0.0)
    snapshot = with_prices(world(config)[0], [10_000, 9_800, 9_800, 9_800, 9_800])
    engine = Engine([snapshot])
    engine.step(one((Do.LONG, 0, 100.0)))
    units, entry = engine.units[0, 0], engine.entry[0, 0]
    before = engine.cash[0] + engine.margin[0, 0]
    engine.step(one((Do.SHORT, 0, 75.0)))
    assert engine.units[0, 0] > 0.0
    fill = 98.0 * (1.0 - 0.01 * 750.0 / config.perp_depth)
    closed = 750.0 / fill
    assert closed < units
    assert engine.cash[0] + engine.margin[0, 0] == pytest.approx(before + closed * (fill - entry))


@pytest.mark.parametrize(("held", "against"), [(Do.LONG, Do.SHORT), (Do.SHORT, Do.LONG)])
def test_an_order_beyond_the_depth_is_refused_and_earns_nothing(held, against):
    """A sale so large that its fill would be below zero once closed a long with a fortune."""
    engine = Engine([world(DEFAULT)[0]])
    engine.step(one((held, 3, 100.0)))
    before = engine.equity[0]
    fills = engine.step(one((against, 3, 600_000.0)))
    assert fills.error[0] == "size beyond the depth of the perpetual"
    assert engine.equity[0] < before + 100.0


@pytest.mark.parametrize("name", REFERENCE_AGENTS)
def test_no_reference_agent_is_ever_refused(name):
    worlds = [world(DEFAULT, seed) for seed in range(8)]
    engine = Engine([w[0] for w in worlds])
    draws = uniform_draws([(0, w[0].seed, 0) for w in worlds], DEFAULT.ticks * 5).reshape(8, DEFAULT.ticks, 5)
    while not engine.done:
        fills = engine.step(rule(name)(Seat(engine, np.arange(8), draws[:, engine.tick], [w[1] for w in worlds])))
        assert fills.valid.all(), fills.error


@pytest.mark.parametrize(
    ("config", "digest"),
    [
        (DEFAULT, "2b427123b8f80ce5"),
        (WorldConfig(ticks=40, markets=2, perps=2, leverage=50, maintenance=0.01), "c4eccdc83bd362a1"),
    ],
    ids=["default", "wide"],
)
def test_the_engine_computes_the_same_bits_everywhere(config, digest):
    """Any order, in a fixed sequence, leaves this very state; another Python, NumPy or machine must agree."""
    engine = Engine([generate("train", seed, config)[0] for seed in range(40)])
    width, sizes = config.markets + config.perps, (np.nan, np.inf, -5.0, 0.5, 1.0, 25.0, 100.0, 333.3, 999.0, 1e6)
    seen = hashlib.sha256()
    while not engine.done:
        number = np.arange(40) * 7919 + engine.tick * 104_729
        fills = engine.step(
            Orders(
                (number % 9).astype(np.int8),
                (number // 9 % (width + 2) - 1).astype(np.int16),
                np.array([sizes[n] for n in number // 61 % len(sizes)]),
            )
        )
        seen.update(fills.reward.tobytes() + fills.valid.tobytes())
    for name in STATE:
        seen.update(getattr(engine, name).tobytes())
    assert seen.hexdigest()[:16] == digest


def test_an_engine_says_what_it_cannot_play():
    with pytest.raises(ValueError, match="at least one snapshot"):
        Engine([])
    with pytest.raises(ValueError, match="share a WorldConfig"):
        Engine([world(DEFAULT)[0], world(STILL)[0]])
    engine, _ = played(DEFAULT, [(Do.HOLD, 0, 0.0)] * DEFAULT.ticks)
    with pytest.raises(ValueError, match="over"):
        engine.step(Orders.hold(1))


def test_an_agent_sees_by_how_much_each_price_has_moved():
    engine = Engine([generate("train", seed)[0] for seed in range(20)])
    changes = []
    while not engine.done:
        before = engine.prices
        engine.step(Orders.hold(engine.n))
        np.testing.assert_array_equal(engine.earlier_prices, before)
        changes.append(engine.prices - engine.earlier_prices)
    assert np.abs(changes).max() > 0.01
