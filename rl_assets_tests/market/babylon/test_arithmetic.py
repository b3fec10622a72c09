"""The live game's arithmetic: its recorded calls repeated, and what must hold between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.market.babylon import arithmetic

RESERVES = st.floats(1.0, 1e6)
MONEY = st.floats(0.01, 1e5)


@pytest.fixture(scope="module")
def vectors(babylon_data: Path) -> dict:
    return json.loads((babylon_data / "live_amm_perp_vectors.json").read_text())


def close(expected):
    return pytest.approx(expected, rel=1e-13, abs=1e-12)


def side(vector: dict) -> float:
    return 1.0 if vector["side"] == "long" else -1.0


@pytest.mark.parametrize(
    ("name", "call", "amount", "fee"),
    [
        ("buy", arithmetic.buy, "usd", 0.0),
        ("buyWithFees", arithmetic.buy, "usd", arithmetic.FEE),
        ("sell", arithmetic.sell, "shares", 0.0),
        ("sellWithFees", arithmetic.sell, "shares", arithmetic.FEE),
    ],
)
def test_every_recorded_pool_trade_is_repeated(vectors: dict, name: str, call, amount: str, fee: float):
    filled = [vector for vector in vectors[name] if "ok" in vector]
    assert len(filled) == {"buy": 60, "sell": 48}[name.removesuffix("WithFees")]
    for vector in filled:
        trade = call(vector["y"], vector["n"], vector[amount], vector["side"] == "yes", fee)
        recorded = vector["ok"]
        assert {
            "sharesBought": float(trade.shares),
            "avgPrice": float(trade.average_price),
            "newYesPrice": float(trade.yes_price),
            "newNoPrice": 1.0 - float(trade.yes_price),
            "priceImpact": float(trade.impact),
            "totalCost": float(trade.amount),
            "newYesShares": float(trade.yes),
            "newNoShares": float(trade.no),
        } == close({key: recorded[key] for key in list(recorded)[:8]})
        if fee:
            assert float(trade.fee) == close(recorded["fee"])
            net = trade.amount if amount == "usd" else trade.amount - trade.fee
            assert float(net) == close(recorded["netAmount"])
            total = trade.amount + trade.fee if amount == "usd" else net
            said = recorded["totalWithFee" if amount == "usd" else "netProceeds"]
            assert float(total) == close(said)
    for vector in vectors[name]:
        if "error" in vector:
            with pytest.raises(ValueError, match="must be above 0"):
                call(vector["y"], vector["n"], vector[amount], vector["side"] == "yes", fee)


def test_every_recorded_round_trip_is_repeated(vectors: dict):
    for vector in vectors["roundtrip"]:
        on_yes = vector["side"] == "yes"
        bought = arithmetic.buy(vector["y"], vector["n"], vector["usd"], on_yes)
        sold = arithmetic.sell(bought.yes, bought.no, bought.shares, on_yes)
        assert {
            "shares": float(bought.shares),
            "proceeds": float(sold.amount),
            "payoutIfWin_1perShare": float(bought.shares),
            "pnlIfWin": float(bought.shares - bought.amount),
        } == close({key: vector[key] for key in ("shares", "proceeds", "payoutIfWin_1perShare", "pnlIfWin")})


def test_every_recorded_perpetual_is_repeated(vectors: dict):
    for vector in vectors["liq"]:
        price = arithmetic.liquidation_price(vector["entry"], side(vector), vector["lev"])
        assert float(price) == close(vector["liq"])
    for vector in vectors["upnl"]:
        profit = float(arithmetic.perp_profit(vector["entry"], vector["current"], vector["size"], side(vector)))
        assert profit == close(vector["pnl"])
        assert profit / vector["size"] * 100 == close(vector["pnlPercent"])
    for vector in vectors["funding"]:
        payment = float(arithmetic.funding_payment(vector["size"], vector["rate"]))
        assert payment == close(vector["payment8h"])
    for vector in vectors["shouldLiquidate"]:
        assert bool(arithmetic.is_liquidated(vector["current"], vector["liq"], side(vector))) is vector["r"]


def test_the_recorded_fee_is_ours(vectors: dict):
    assert vectors["FEE_CONFIG"]["TRADING_FEE_RATE"] == arithmetic.FEE
    assert vectors["FEE_CONFIG"]["MIN_FEE_AMOUNT"] == arithmetic.SMALLEST_FEE


def test_a_won_bet_from_equal_reserves_loses_money():
    trade = arithmetic.buy(500.0, 500.0, 100.0, True)
    assert float(trade.shares - trade.amount) == pytest.approx(-100 / 6)


@given(yes=RESERVES, no=RESERVES, stake=MONEY, on_yes=st.booleans())
def test_selling_what_was_just_bought_gives_the_stake_back(yes: float, no: float, stake: float, on_yes: bool):
    bought = arithmetic.buy(yes, no, stake, on_yes)
    assert float(bought.yes * bought.no) == pytest.approx(yes * no)
    sold = arithmetic.sell(bought.yes, bought.no, bought.shares, on_yes)
    assert float(sold.amount) == pytest.approx(stake, rel=1e-6)
    assert (float(sold.yes), float(sold.no)) == pytest.approx((yes, no))


@given(rows=st.lists(st.tuples(RESERVES, RESERVES, MONEY, st.booleans()), min_size=1, max_size=20))
def test_trades_side_by_side_are_the_trades_one_by_one(rows: list[tuple[float, float, float, bool]]):
    together = arithmetic.buy(*(np.array(column) for column in zip(*rows, strict=True)), fee=arithmetic.FEE)
    for place, (yes, no, stake, on_yes) in enumerate(rows):
        alone = arithmetic.buy(yes, no, stake, on_yes, arithmetic.FEE)
        for name in ("shares", "amount", "fee", "average_price", "yes", "no", "impact"):
            assert getattr(together, name)[place] == getattr(alone, name)


@given(entry=st.floats(0.01, 1e6), leverage=st.integers(1, 100), side=st.sampled_from([1.0, -1.0]))
def test_at_its_liquidation_price_a_position_has_lost_nine_tenths_of_its_margin(entry, leverage, side):
    price = arithmetic.liquidation_price(entry, side, leverage)
    assert float(arithmetic.perp_profit(entry, price, 1000.0, side)) == pytest.approx(-0.9 * 1000.0 / leverage)


def test_small_fees_are_waived_and_others_are_whole_cents():
    np.testing.assert_array_equal(arithmetic.charged_fee([0.0, 9.9, 10.0, 26.0, 1234.0]), [0.0, 0.0, 0.01, 0.03, 1.23])


def test_the_impact_of_trades_is_bounded_on_both_sides():
    np.testing.assert_allclose(arithmetic.price_impact([1, -1, 0.5, 1], [100, 1e9, 1e9, 0]), [0.01, -0.05, 0.025, 0])


def test_a_closed_position_never_owes():
    np.testing.assert_array_equal(arithmetic.perp_settlement([50, 50], [10, -80], [0.1, 0.1]), [59.9, 0])
