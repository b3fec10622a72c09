"""The arithmetic of Babylon's live game: pools, perpetuals and fees, as the game computes them, faults included.

Amounts are float64 arrays or scalars that broadcast; money is in dollars. Nothing here keeps state: accounts belong in
`engine`. Source: recorded calls of the game's own functions, which the tests repeat.

The pool is a constant product without minting: $d of YES moves reserves (yes, no) to (yes*no/(no + d), no + d) and
gives the YES shares that left. The average price is therefore (no + d)/yes, not a probability: from equal reserves a
share costs more than the $1 that it can pay, and a won bet loses money. A pool that mints pairs is in `market.engine`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FEE = 0.001
"""Fraction taken of every trade: of a purchase's stake, a sale's proceeds, a perpetual's size at open and at close."""
SMALLEST_FEE = 0.01
"""Dollars under which a fee is not charged."""
LIQUIDATION_LOSS = 0.9
"""Share of the margin after whose loss a position is liquidated; all of the margin is then gone."""
FUNDINGS_PER_YEAR = 1095.75
"""Funding is due every 8 hours, in years of 365.25 days."""
SMALLEST_PERP = 10.0
"""Dollars of notional."""
LARGEST_PERP = 0.1
"""Share of open interest that one position may have; open interest of 0 sets no bound."""
IMPACT_VOLUME, LARGEST_IMPACT = 10_000.0, 0.05
"""Dollars of one-sided volume that would double a price, and the most that a price moves."""


@dataclass(frozen=True)
class PoolTrade:
    """What a trade did to a pool, each float64 in the shape of the arguments.

    shares: bought (positive) or sold (negative). amount: dollars that entered or left the pool. fee: dollars beside it.
    average_price: dollars per share. yes, no: reserves after. impact: percent by which the side's price moved.
    """

    shares: Floats
    amount: Floats
    fee: Floats
    average_price: Floats
    yes: Floats
    no: Floats
    impact: Floats

    @property
    def yes_price(self) -> Floats:
        return yes_price(self.yes, self.no)


def yes_price(yes: ArrayLike, no: ArrayLike) -> Floats:
    """Price of YES, no/(yes + no): the scarcer side is dearer. Snapshot files state the inverse, yes/(yes + no)."""
    return np.asarray(no, float) / (np.asarray(yes, float) + np.asarray(no, float))


def buy(yes: ArrayLike, no: ArrayLike, stake: ArrayLike, on_yes: ArrayLike, fee: float = 0.0) -> PoolTrade:
    """Shares for a stake in dollars, `fee` of which is taken first. Raises ValueError for a stake or reserve <= 0."""
    stake = _positive(stake, "the stake")
    taken = stake * fee
    paid = stake - taken
    own, other = _sides(yes, no, on_yes)
    new_other = other + paid
    new_own = own * other / new_other
    shares = own - new_own
    return _traded(shares, paid, taken, paid / shares, (own, other), (new_own, new_other), on_yes)


def sell(yes: ArrayLike, no: ArrayLike, shares: ArrayLike, on_yes: ArrayLike, fee: float = 0.0) -> PoolTrade:
    """Dollars for shares; `fee` of them is due from the proceeds. Raises ValueError for shares or a reserve <= 0."""
    shares = _positive(shares, "the number of shares")
    own, other = _sides(yes, no, on_yes)
    new_own = own + shares
    new_other = own * other / new_own
    proceeds = other - new_other
    return _traded(-shares, proceeds, proceeds * fee, proceeds / shares, (own, other), (new_own, new_other), on_yes)


def charged_fee(amount: ArrayLike) -> Floats:
    """Dollars charged on an amount: FEE of it in whole cents, nothing under SMALLEST_FEE."""
    fee = np.asarray(amount, float) * FEE
    return np.where(fee < SMALLEST_FEE, 0.0, np.rint(fee * 100.0) / 100.0)


def perp_profit(entry: ArrayLike, price: ArrayLike, size: ArrayLike, side: ArrayLike) -> Floats:
    """Dollars won by a position of a size (dollars at entry) on a side: 1.0 is long, -1.0 short."""
    entry = np.asarray(entry, float)
    return np.asarray(side, float) * ((np.asarray(price, float) - entry) / entry) * np.asarray(size, float)


def perp_settlement(margin: ArrayLike, profit: ArrayLike, fee: ArrayLike) -> Floats:
    """Dollars paid back when a position closes: never less than nothing."""
    return np.maximum(np.asarray(margin, float) + np.asarray(profit, float) - np.asarray(fee, float), 0.0)


def liquidation_price(entry: ArrayLike, side: ArrayLike, leverage: ArrayLike) -> Floats:
    """Dollars at which a position has lost LIQUIDATION_LOSS of its margin."""
    lost = LIQUIDATION_LOSS / np.asarray(leverage, float)
    return np.asarray(entry, float) * (1.0 - np.asarray(side, float) * lost)


def is_liquidated(price: ArrayLike, liquidation: ArrayLike, side: ArrayLike) -> NDArray[np.bool_]:
    """Whether a price has reached the liquidation price: from above for a long, from below for a short."""
    price, liquidation = np.asarray(price, float), np.asarray(liquidation, float)
    return np.where(np.asarray(side, float) > 0, price <= liquidation, price >= liquidation)


def funding_payment(size: ArrayLike, annual_rate: ArrayLike) -> Floats:
    """Dollars that a long of a size pays at one funding, and a short receives; the other way where negative."""
    return np.asarray(size, float) * np.asarray(annual_rate, float) / FUNDINGS_PER_YEAR


def price_impact(sentiment: ArrayLike, volume: ArrayLike) -> Floats:
    """Fraction by which trades move a perpetual. sentiment: net share of volume that buys, -1 to 1; volume: dollars."""
    return np.asarray(sentiment, float) * np.minimum(np.asarray(volume, float) / IMPACT_VOLUME, LARGEST_IMPACT)


def _sides(yes: ArrayLike, no: ArrayLike, on_yes: ArrayLike) -> tuple[Floats, Floats]:
    yes, no = _positive(yes, "the reserve of YES"), _positive(no, "the reserve of NO")
    return np.where(on_yes, yes, no), np.where(on_yes, no, yes)


def _traded(
    shares: Floats,
    amount: Floats,
    fee: Floats,
    average_price: Floats,
    before: tuple[Floats, Floats],
    after: tuple[Floats, Floats],
    on_yes: ArrayLike,
) -> PoolTrade:
    old, new = yes_price(*before), yes_price(*after)
    yes, no = np.where(on_yes, *after), np.where(on_yes, *after[::-1])
    return PoolTrade(shares, amount, fee, average_price, yes, no, np.abs((new - old) / old) * 100.0)


def _positive(value: ArrayLike, name: str) -> Floats:
    array = np.asarray(value, float)
    if not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be above 0 and finite")
    return array
