"""An exchange that plays imported snapshots by the live game's arithmetic, with the interface of our own engine.

The file's world is what everybody meets: it moves on as it did, and each episode's own trades come on top of it.

Prediction markets open at the prices that the file states. The game prices reserves the other way round, so that the
pool's reserve of YES is the file's noShares and the reverse. Where the file moves them, the pool moves in proportion.

Perpetuals fill at the file's price, moved against the trader by the game's price impact: to let a trade move the price
for itself would pay whoever moves it. The game keeps one position per order; here orders of one side add up, which
leaves their profit as it is, and one against a position closes it first.
"""

from __future__ import annotations

import numpy as np

from rl_assets.market.babylon import arithmetic
from rl_assets.market.babylon.format import FUNDING_MS
from rl_assets.market.babylon.snapshot import BabylonSnapshot
from rl_assets.market.engine import Do, Engine, Orders
from rl_assets.market.snapshot import Snapshot


class BabylonEngine(Engine):
    """Plays imported snapshots. Raises ValueError for others, or where their sizes differ."""

    def __init__(self, snapshots: list[Snapshot]) -> None:
        super().__init__(snapshots)
        worlds = [s for s in self.unique if isinstance(s, BabylonSnapshot)]
        if len(worlds) < len(self.unique):
            raise ValueError("a live engine plays imported snapshots alone")
        self._file_yes = np.stack([s.column("noShares") for s in worlds])
        self._file_no = np.stack([s.column("yesShares") for s in worlds])
        self._interest = np.stack([s.column("openInterest") for s in worlds])
        self._rate = np.stack([s.column("fundingRate") for s in worlds]) * arithmetic.FUNDINGS_PER_YEAR
        self._fundings = np.stack([_fundings(s) for s in worlds])
        self._pool_yes, self._pool_no = self._file_yes[self.world, 0], self._file_no[self.world, 0]
        self.earlier_prices = self.prices

    def _buy(self, rows: np.ndarray, instrument: np.ndarray, size: np.ndarray, side: str) -> None:
        m, spent = instrument[rows], size[rows]
        trade = arithmetic.buy(self._pool_yes[rows, m], self._pool_no[rows, m], spent, side == "yes", self.config.fee)
        self._pool_yes[rows, m], self._pool_no[rows, m] = trade.yes, trade.no
        (self.yes if side == "yes" else self.no)[rows, m] += trade.shares
        self.cash[rows] -= spent
        self.fees[rows] += trade.fee

    def _sell(
        self, rows: np.ndarray, instrument: np.ndarray, size: np.ndarray, do: np.ndarray, held: np.ndarray, side: str
    ) -> None:
        m = instrument[rows]
        own, other = (self._pool_yes, self._pool_no) if side == "yes" else (self._pool_no, self._pool_yes)
        price = arithmetic.yes_price(own[rows, m], other[rows, m])
        shares = np.where(do[rows] == Do.CLOSE, held, np.minimum(held, size[rows] / price))
        trade = arithmetic.sell(self._pool_yes[rows, m], self._pool_no[rows, m], shares, side == "yes", self.config.fee)
        self._pool_yes[rows, m], self._pool_no[rows, m] = trade.yes, trade.no
        (self.yes if side == "yes" else self.no)[rows, m] -= shares
        self.cash[rows] += trade.amount - trade.fee
        self.fees[rows] += trade.fee

    def _trade_perps(self, rows: np.ndarray, orders: Orders, error: np.ndarray, traded: np.ndarray) -> None:
        """Sizes are dollars at entry, as the game counts them: units times entry price."""
        if not len(rows):
            return
        p = orders.instrument[rows].astype(np.int64) - self.config.markets
        do, held, entry, margin = orders.do[rows], self.units[rows, p], self.entry[rows, p], self.margin[rows, p]
        size = np.abs(held) * entry
        side = np.where(do == Do.CLOSE, -np.sign(held), np.where(do == Do.LONG, 1.0, -1.0))
        asked = np.where(do == Do.CLOSE, size, orders.size[rows] * self.config.leverage)
        closed = np.where(held * side < 0, np.minimum(asked, size), 0.0)
        opened = asked - closed
        fill = self.perp_prices[rows, p] * (1.0 + arithmetic.price_impact(side, asked))
        share = np.divide(closed, size, out=np.zeros_like(size), where=size > 0)
        profit = arithmetic.perp_profit(np.where(held == 0, fill, entry), fill, closed, np.sign(held))
        closing_fee, opening_fee = arithmetic.charged_fee(closed), arithmetic.charged_fee(opened)
        back = arithmetic.perp_settlement(margin * share, profit, closing_fee)
        short = margin * share + profit - closing_fee - back
        owed, unpaid = np.where(share < 1.0, short, 0.0), np.where(share < 1.0, 0.0, np.maximum(short, -closing_fee))
        needed = opened / self.config.leverage + opening_fee
        after = size - closed + opened
        interest = self._interest[self.world[rows], self.tick, p]
        for refused, reason in (
            ((do == Do.CLOSE) & (held == 0), "no position to close"),
            ((do != Do.CLOSE) & (asked < arithmetic.SMALLEST_PERP), "position below the game's minimum"),
            ((interest > 0) & (opened > 0) & (after > arithmetic.LARGEST_PERP * interest), "position above the limit"),
            (self.cash[rows] + back < needed, "not enough cash for margin and fee"),
        ):
            fresh = refused & (error[rows] == None)  # noqa: E711 - elementwise
            error[rows[fresh]] = reason
        go = error[rows] == None  # noqa: E711 - elementwise
        units = held * (1.0 - share) + side * opened / fill
        new_entry = np.divide(after, np.abs(units), out=np.zeros_like(units), where=units != 0)
        rows, p = rows[go], p[go]
        self.units[rows, p] = units[go]
        self.entry[rows, p] = new_entry[go]
        self.margin[rows, p] = (margin * (1.0 - share) + opened / self.config.leverage + owed)[go]
        self.cash[rows] += (back - needed)[go]
        self.fees[rows] += (closing_fee + unpaid + opening_fee)[go]
        traded[rows] = True

    def _drift(self) -> None:
        """The file's own change of reserves, from the tick before to this one."""
        now, before = (self.world, self.tick), (self.world, self.tick - 1)
        self._pool_yes = self._pool_yes * (self._file_yes[now] / self._file_yes[before])
        self._pool_no = self._pool_no * (self._file_no[now] / self._file_no[before])

    def _fund_and_liquidate(self) -> np.ndarray:
        side, held = np.sign(self.units), self.units != 0
        payment = arithmetic.funding_payment(np.abs(self.units) * self.entry, self._rate[self.world, self.tick - 1])
        self.margin -= side * payment * self._fundings[self.world, self.tick]
        limit = arithmetic.liquidation_price(self.entry, side, self.config.leverage)
        gone = held & arithmetic.is_liquidated(self.perp_prices, limit, side)
        for positions in (self.units, self.entry, self.margin):
            positions[gone] = 0.0
        return gone.any(axis=1)


def _fundings(snapshot: BabylonSnapshot) -> np.ndarray:
    """float64 (ticks + 1, perps): fundings that fall due between the tick before and this one."""
    now = np.arange(snapshot.n_ticks + 1)[:, None] * (snapshot.config.tick_seconds * 1000)
    due = np.maximum(np.floor((now - snapshot.column("nextFundingTime")[0]) / FUNDING_MS) + 1.0, 0.0)
    return np.diff(due, axis=0, prepend=due[:1])
