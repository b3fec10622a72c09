"""The exchange: what orders do to pools, positions and money, for many episodes at once.

Arrays have one row per episode. Only additions, products, quotients and square roots are used, each rounded the same
way by every IEEE machine, so that an episode replays bit for bit. Money is in dollars.

Prediction markets are constant-product pools that mint pairs (a dollar buys one YES and one NO share): a purchase of d
dollars of YES from reserves (yes, no) gives d + yes - yes*no/(no + d) shares; the price of YES is no/(yes + no).
Between ticks background flow moves the pool along its curve toward the crowd's belief.

Perpetuals are margined positions: an order's size is margin, taken from cash; units are size*leverage / fill price,
profit is units*(price - entry), and a position whose margin plus profit falls to the maintenance share of its notional
is closed. Its loss never exceeds its margin, so no account owes anything.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from rl_assets.market.config import WorldConfig
from rl_assets.market.snapshot import FUNDING_UNIT, Snapshot, Truth

LOWEST_PRICE, HIGHEST_PRICE = 0.01, 0.99
SMALLEST_ORDER, LARGEST_ORDER = 1.0, 1e9
"""Dollars."""
LARGEST_IMPACT = 0.5
"""Share of the index price by which the fill of a perpetual may be off it; larger orders are refused."""
SWAY_KEPT = 0.7
"""Share of what an agent's posts have done to the crowd's odds that is left a tick later."""
LIQUIDATED = "liquidated"
"""How the error of a tick ends on which positions were closed by force."""


class Do(IntEnum):
    """What an order asks for. HOLD needs no instrument; those that trade need a size, except CLOSE.

    JOIN enters a channel of the configuration, whose number stands for the instrument, and POST_UP and POST_DOWN speak
    to the crowd of a prediction market; both are refused in worlds without them.
    """

    HOLD = 0
    BUY_YES = 1
    BUY_NO = 2
    SELL_YES = 3
    SELL_NO = 4
    LONG = 5
    SHORT = 6
    CLOSE = 7
    INVALID = 8
    JOIN = 9
    POST_UP = 10
    POST_DOWN = 11


_DOES = np.arange(len(Do))
_ON_PREDICTION = np.isin(_DOES, (Do.BUY_YES, Do.BUY_NO, Do.SELL_YES, Do.SELL_NO, Do.CLOSE, Do.POST_UP, Do.POST_DOWN))
_ON_PERPETUAL = np.isin(_DOES, (Do.LONG, Do.SHORT, Do.CLOSE))
_SIZED = np.isin(_DOES, (Do.BUY_YES, Do.BUY_NO, Do.SELL_YES, Do.SELL_NO, Do.LONG, Do.SHORT))
_POSTS = np.isin(_DOES, (Do.POST_UP, Do.POST_DOWN))
_SELLS = np.isin(_DOES, (Do.SELL_YES, Do.SELL_NO, Do.CLOSE))


@dataclass(frozen=True)
class Orders:
    """One order per episode. do: int8 (episodes,) of Do. instrument: int16 (episodes,). size: float64 dollars."""

    do: np.ndarray
    instrument: np.ndarray
    size: np.ndarray

    @classmethod
    def hold(cls, episodes: int) -> Orders:
        return cls(np.zeros(episodes, np.int8), np.zeros(episodes, np.int16), np.zeros(episodes))


@dataclass(frozen=True)
class Fills:
    """What a tick did, one row per episode.

    valid: bool. error: object, None or why the order was refused. liquidated: bool. reward: change of equity in
    dollars. traded: bool, an order was filled.
    """

    valid: np.ndarray
    error: np.ndarray
    liquidated: np.ndarray
    reward: np.ndarray
    traded: np.ndarray


class Engine:
    """Plays one snapshot per episode; all snapshots share one WorldConfig.

    The same snapshot may appear in many rows: `unique` holds each once and `world` (episodes,) tells which a row plays.
    cash, equity, fees, max_drawdown (episodes,) and margin (episodes, perps) are dollars; yes, no (episodes, markets)
    shares; units, entry (episodes, perps); trades, breaches (episodes,) counts; joined bool (episodes, channels).
    """

    def __init__(self, snapshots: list[Snapshot]) -> None:
        if not snapshots:
            raise ValueError("an engine needs at least one snapshot")
        config = snapshots[0].config
        if any(s.config != config for s in snapshots):
            raise ValueError("all snapshots of one engine must share a WorldConfig")
        self.config: WorldConfig = config
        self.snapshots = snapshots
        unique = {id(s): s for s in snapshots}
        row = {key: place for place, key in enumerate(unique)}
        self.unique = list(unique.values())
        self.world = np.array([row[id(s)] for s in snapshots])
        self._crowd = np.stack([s.crowd_prices() for s in unique.values()])
        self._index = np.stack([s.perp_prices() for s in unique.values()])
        self._funding = np.stack([s.funding * FUNDING_UNIT for s in unique.values()])
        n, m, p = len(snapshots), config.markets, config.perps
        self.n = n
        self.tick = 0
        self.cash = np.full(n, float(config.start_cash))
        self.yes, self.no = np.zeros((n, m)), np.zeros((n, m))
        self.units, self.entry, self.margin = np.zeros((n, p)), np.zeros((n, p)), np.zeros((n, p))
        self.fees = np.zeros(n)
        self.joined = np.zeros((n, len(config.channels)), bool)
        self._channel_price = np.array(config.channel_prices)
        self._sway, self._voice = np.ones((n, m)), np.full((n, m), float(config.post_influence))
        self.trades = np.zeros(n, np.int64)
        self.breaches = np.zeros(n, np.int64)
        self._k = float(config.liquidity) ** 2
        self._pool_yes, self._pool_no = self._reserves(self._crowd[self.world, 0])
        self.earlier_prices = self.prices
        self.equity = self._mark()
        self.peak = self.equity.copy()
        self.max_drawdown = np.zeros(n)

    @property
    def prices(self) -> np.ndarray:
        """float64 (episodes, markets): the pool's price of YES."""
        return self._pool_no / (self._pool_yes + self._pool_no)

    @property
    def perp_prices(self) -> np.ndarray:
        """float64 (episodes, perps): index price in dollars."""
        return self._index[self.world, self.tick]

    @property
    def first_perp_prices(self) -> np.ndarray:
        return self._index[self.world, 0]

    @property
    def earlier_perp_prices(self) -> np.ndarray:
        """float64 (episodes, perps): index price of the tick before, or of this one at the start."""
        return self._index[self.world, max(self.tick - 1, 0)]

    @property
    def done(self) -> bool:
        return self.tick >= self.config.ticks

    def step(self, orders: Orders) -> Fills:
        """Fill one order per episode, then move the world one tick. Raises ValueError after the last tick."""
        if self.done:
            raise ValueError("the episode is over")
        error = np.full(self.n, None, dtype=object)
        traded = np.zeros(self.n, bool)
        before = self.equity
        self.earlier_prices = self.prices
        self._fill(orders, error, traded)
        invalid = error != None  # noqa: E711 - elementwise
        charge = np.where(invalid, np.minimum(self.config.breach_fee, self.cash), 0.0)
        self.cash -= charge
        self.fees += charge
        self.breaches += invalid
        self.trades += traded
        self.tick += 1
        self._drift()
        liquidated = self._fund_and_liquidate()
        self.breaches += liquidated
        self.equity = self._mark()
        self.peak = np.maximum(self.peak, self.equity)
        self.max_drawdown = np.maximum(self.max_drawdown, self.peak - self.equity)
        return Fills(~invalid, error, liquidated, self.equity - before, traded)

    def quote(self, orders: Orders) -> tuple[Engine, np.ndarray]:
        """A copy of this engine as these orders would leave it before the world moves on, and why each would be refused
        (object, None where it would be filled)."""
        after = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(after, name, value.copy())
        error = np.full(self.n, None, dtype=object)
        after._fill(orders, error, np.zeros(self.n, bool))
        return after, error

    def settle(self, truths: list[Truth]) -> tuple[np.ndarray, np.ndarray]:
        """Realised and expected profit in dollars, each float64 (episodes,).

        Realised: prediction shares pay their outcome and perpetuals close at the index. Expected: shares are worth the
        final latent probability and perpetuals the final fair price.
        """
        outcome = np.stack([t.outcomes for t in truths]).astype(float)
        realised = self._value(outcome, self.perp_prices)
        return realised - self.config.start_cash, self.hindsight(truths) - self.config.start_cash

    def hindsight(self, truths: list[Truth]) -> np.ndarray:
        """Dollars (episodes,): cash and what is held now, valued at the final latent values.

        Prices do not move it, so its change over a tick is what that tick's order, funding and liquidations added.
        """
        latent = np.stack([t.latents()[-1] for t in truths])
        fair = np.stack([t.fairs()[-1] for t in truths])
        return self._value(latent, fair)

    def _value(self, probability: np.ndarray, perp: np.ndarray) -> np.ndarray:
        total = self.cash.copy()
        for m in range(self.config.markets):
            total += self.yes[:, m] * probability[:, m] + self.no[:, m] * (1.0 - probability[:, m])
        for p in range(self.config.perps):
            total += np.maximum(self.margin[:, p] + self.units[:, p] * (perp[:, p] - self.entry[:, p]), 0.0)
        return total

    def _mark(self) -> np.ndarray:
        return self._value(self.prices, self.perp_prices)

    def _reserves(self, price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        odds = price / (1.0 - price)
        yes = np.sqrt(self._k / odds)
        return yes, self._k / yes

    def _fill(self, orders: Orders, error: np.ndarray, traded: np.ndarray) -> None:
        do, instrument, size = orders.do, orders.instrument.astype(np.int64), orders.size
        if not do.any():
            return
        markets = self.config.markets
        joins, posts = do == Do.JOIN, _POSTS[do]
        names = np.where(joins, self.joined.shape[1], markets + self.config.perps)
        known = (instrument >= 0) & (instrument < names)
        is_order = (do != Do.HOLD) & ~joins
        prediction = is_order & known & (instrument < markets)
        perpetual = is_order & known & (instrument >= markets)
        sized, sells = _SIZED[do], _SELLS[do]
        open_ = np.ones(self.n, bool)
        for rows, reason in (
            (do == Do.INVALID, "not an action of the schema"),
            (is_order & ~known, "no such instrument"),
            (joins & ~known, "nothing of that name to join"),
            (prediction & ~_ON_PREDICTION[do], "not possible on a prediction market"),
            (perpetual & ~_ON_PERPETUAL[do], "not possible on a perpetual"),
            (posts & (self.config.post_influence == 0.0), "nobody reads posts in this world"),
            (sized & (size > LARGEST_ORDER), f"size above ${LARGEST_ORDER:.0f}"),
            (sized & ~(size >= SMALLEST_ORDER), f"size below ${SMALLEST_ORDER:.0f}"),
        ):
            error[rows & open_] = reason
            open_ &= ~rows
        prediction &= open_
        for kind, name in ((Do.BUY_YES, "yes"), (Do.BUY_NO, "no")):
            rows = np.flatnonzero(prediction & (do == kind))
            if len(rows):
                short = self.cash[rows] < size[rows]
                error[rows[short]] = "not enough cash"
                self._buy(rows[~short], instrument, size, name)
                traded[rows[~short]] = True
        for kind, shares, name in ((Do.SELL_YES, self.yes, "yes"), (Do.SELL_NO, self.no, "no")):
            rows = np.flatnonzero(prediction & ((do == kind) | (do == Do.CLOSE)))
            if len(rows):
                held = shares[rows, instrument[rows]]
                rows, held = rows[held > 0], held[held > 0]
                traded[rows] = True
                self._sell(rows, instrument, size, do, held, name)
        error[prediction & sells & ~traded] = "nothing to sell"
        self._trade_perps(np.flatnonzero(perpetual & open_), orders, error, traded)
        if posts.any():
            self._speak(np.flatnonzero(prediction & posts), instrument, do)
        if joins.any():
            self._join(np.flatnonzero(joins & open_), instrument, error)

    def _speak(self, rows: np.ndarray, instrument: np.ndarray, do: np.ndarray) -> None:
        """Sway the crowd's odds. Who speaks of a market again is believed half as much."""
        m = instrument[rows]
        by = 1.0 + self._voice[rows, m]
        self._sway[rows, m] *= np.where(do[rows] == Do.POST_UP, by, 1.0 / by)
        self._voice[rows, m] *= 0.5

    def _join(self, rows: np.ndarray, instrument: np.ndarray, error: np.ndarray) -> None:
        channel = instrument[rows]
        price, again = self._channel_price[channel], self.joined[rows, channel]
        poor = ~again & (self.cash[rows] < price)
        error[rows[again]], error[rows[poor]] = "joined already", "not enough cash"
        rows, channel, price = (part[~again & ~poor] for part in (rows, channel, price))
        self.joined[rows, channel] = True
        self.cash[rows] -= price
        self.fees[rows] += price

    def _buy(self, rows: np.ndarray, instrument: np.ndarray, size: np.ndarray, side: str) -> None:
        m, spent = instrument[rows], size[rows]
        fee = _cents(spent * self.config.fee)
        paid = spent - fee
        own, other = (self._pool_yes, self._pool_no) if side == "yes" else (self._pool_no, self._pool_yes)
        rest = own[rows, m] * other[rows, m] / (other[rows, m] + paid)
        shares = paid + own[rows, m] - rest
        own[rows, m], other[rows, m] = rest, other[rows, m] + paid
        (self.yes if side == "yes" else self.no)[rows, m] += shares
        self.cash[rows] -= spent
        self.fees[rows] += fee

    def _sell(
        self, rows: np.ndarray, instrument: np.ndarray, size: np.ndarray, do: np.ndarray, held: np.ndarray, side: str
    ) -> None:
        m = instrument[rows]
        own, other = (self._pool_yes, self._pool_no) if side == "yes" else (self._pool_no, self._pool_yes)
        price = other[rows, m] / (own[rows, m] + other[rows, m])
        shares = np.where(do[rows] == Do.CLOSE, held, np.minimum(held, size[rows] / price))
        total = own[rows, m] + other[rows, m] + shares
        proceeds = (total - np.sqrt(total * total - 4.0 * shares * other[rows, m])) / 2.0
        own[rows, m] += shares - proceeds
        other[rows, m] -= proceeds
        fee = _cents(proceeds * self.config.fee)
        (self.yes if side == "yes" else self.no)[rows, m] -= shares
        self.cash[rows] += proceeds - fee
        self.fees[rows] += fee

    def _trade_perps(self, rows: np.ndarray, orders: Orders, error: np.ndarray, traded: np.ndarray) -> None:
        """Orders net: one against a position closes it first, and what is left opens the other side."""
        if not len(rows):
            return
        p = orders.instrument[rows].astype(np.int64) - self.config.markets
        do, price = orders.do[rows], self.perp_prices[rows, p]
        held = self.units[rows, p]
        side = np.where(do == Do.CLOSE, -np.sign(held), np.where(do == Do.LONG, 1.0, -1.0))
        nothing = (do == Do.CLOSE) & (held == 0)
        error[rows[nothing]] = "no position to close"
        notional = np.where(do == Do.CLOSE, np.abs(held) * price, orders.size[rows] * self.config.leverage)
        impact = 0.01 * notional / self.config.perp_depth
        deep = (do != Do.CLOSE) & (impact > LARGEST_IMPACT)
        error[rows[deep]] = "size beyond the depth of the perpetual"
        fill = price * (1.0 + side * np.minimum(impact, LARGEST_IMPACT))
        wanted = np.where(do == Do.CLOSE, np.abs(held), notional / fill)
        closing = np.where(held * side < 0, np.minimum(np.abs(held), wanted), 0.0)
        opening = wanted - closing
        share = np.where(held != 0, closing / np.where(held == 0, 1.0, np.abs(held)), 0.0)
        released = self.margin[rows, p] * share
        profit = np.sign(held) * closing * (fill - self.entry[rows, p])
        freed = released + profit
        back = np.maximum(freed, 0.0)
        margin = opening * fill / self.config.leverage
        fee = _cents(wanted * fill * self.config.taker_fee)
        poor = ~nothing & ~deep & (self.cash[rows] + back < margin + fee)
        error[rows[poor]] = "not enough cash for margin and fee"
        go = ~nothing & ~deep & ~poor
        rows, p = rows[go], p[go]
        held, side, opening, closing = held[go], side[go], opening[go], closing[go]
        kept = held + side * closing
        entry = self.entry[rows, p]
        units = kept + side * opening
        size_kept = np.abs(kept)
        whole = size_kept + opening
        new_entry = np.where(whole > 0, (size_kept * entry + opening * fill[go]) / np.where(whole > 0, whole, 1.0), 0.0)
        self.units[rows, p] = units
        self.entry[rows, p] = new_entry
        short = np.where(size_kept > 0, np.minimum(freed[go], 0.0), 0.0)
        self.margin[rows, p] += margin[go] - released[go] + short
        self.cash[rows] += back[go] - margin[go] - fee[go]
        self.fees[rows] += fee[go]
        traded[rows] = True

    def _drift(self) -> None:
        """Background flow closes a share of the gap between the pool's price and the crowd's belief."""
        price, belief = self.prices, self._crowd[self.world, self.tick]
        if self.config.post_influence:
            odds = belief / (1.0 - belief) * self._sway
            belief = odds / (1.0 + odds)
            self._sway = 1.0 + (self._sway - 1.0) * SWAY_KEPT
        moved = price + self.config.crowd_pull * (belief - price)
        self._pool_yes, self._pool_no = self._reserves(np.clip(moved, LOWEST_PRICE, HIGHEST_PRICE))

    def _fund_and_liquidate(self) -> np.ndarray:
        liquidated = np.zeros(self.n, bool)
        price = self.perp_prices
        for p in range(self.config.perps):
            notional = self.units[:, p] * price[:, p]
            self.margin[:, p] -= notional * self._funding[self.world, self.tick - 1, p]
            left = self.margin[:, p] + self.units[:, p] * (price[:, p] - self.entry[:, p])
            gone = (self.units[:, p] != 0) & (left <= np.abs(notional) * self.config.maintenance)
            self.cash += np.where(gone, np.maximum(left, 0.0), 0.0)
            for positions in (self.units, self.entry, self.margin):
                positions[gone, p] = 0.0
            liquidated |= gone
        return liquidated


def money(amount: float) -> float:
    """Dollars rounded to a millionth, so that a record survives text and Parquet unchanged."""
    return float(np.rint(amount * 1e6) / 1e6) + 0.0


def _cents(amount: np.ndarray) -> np.ndarray:
    return np.rint(amount * 100.0) / 100.0
