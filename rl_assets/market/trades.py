"""The trades of recorded episodes, with what each paid and what it turned out to be worth.

Found by playing the recorded responses again, since a record tells what was said and earned but not at which price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput
from rl_assets.market.actions import to_orders
from rl_assets.market.engine import Do
from rl_assets.market.exchange import engine_for
from rl_assets.market.snapshot import Worlds

OPENING = (Do.BUY_YES, Do.BUY_NO, Do.LONG, Do.SHORT)


@dataclass(frozen=True)
class Trades:
    """All filled orders of some episodes, one row per order.

    episode, tick, instrument, do: int64. volume: float64 dollars (of notional on a perpetual). paid: what a share of
    the bought side cost, fee included, or a perpetual's index price at the order. worth: the final latent probability
    of that side, or the final fair price. came: whether the side came true (1.0 or 0.0). The last three are NaN where
    they do not apply: on orders that only sell or close, and `came` on perpetuals.
    """

    episode: np.ndarray
    tick: np.ndarray
    instrument: np.ndarray
    do: np.ndarray
    volume: np.ndarray
    paid: np.ndarray
    worth: np.ndarray
    came: np.ndarray

    @property
    def is_bet(self) -> np.ndarray:
        """bool: purchases on prediction markets."""
        return np.isin(self.do, (Do.BUY_YES, Do.BUY_NO))


def trades_of(episodes: Sequence[Episode], worlds: Worlds) -> Trades:
    """Play the responses again, all episodes of one configuration side by side.

    worlds: snapshot and truth by snapshot id. Raises MalformedInput where an episode's world is missing or its number
    of steps is not the world's number of ticks.
    """
    configs = []
    for episode in episodes:
        if episode.snapshot_id is None or episode.snapshot_id not in worlds:
            raise MalformedInput(f"the snapshot {episode.snapshot_id} of an episode is not given; load it first")
        snapshot, _ = worlds[episode.snapshot_id]
        steps, ticks = len(episode.steps), snapshot.n_ticks
        if steps != ticks:
            raise MalformedInput(f"episode {episode.trajectory_id} has {steps} of {ticks} steps; leave it out")
        configs.append(snapshot.config)
    rows: list[np.ndarray] = []
    for config in dict.fromkeys(configs):
        rows += _played([place for place, own in enumerate(configs) if own == config], episodes, worlds)
    table = np.concatenate(rows) if rows else np.zeros((0, 8))
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    return Trades(*table[:, :4].astype(np.int64).T, *table[:, 4:].T)


def _played(places: list[int], episodes: Sequence[Episode], worlds: Worlds) -> list[np.ndarray]:
    chosen = [worlds[str(episodes[place].snapshot_id)] for place in places]
    engine, truths = engine_for([snapshot for snapshot, _ in chosen]), [truth for _, truth in chosen]
    config, every = engine.config, np.arange(engine.n)
    worth = np.concatenate(
        [np.stack([t.latents()[-1] for t in truths]), np.stack([t.fairs()[-1] for t in truths])], axis=1
    )
    came = np.concatenate(
        [np.stack([t.outcomes for t in truths]), np.full((engine.n, config.perps), np.nan)], axis=1, dtype=np.float64
    )
    found = []
    while not engine.done:
        tick = engine.tick
        responses = [episodes[place].steps[tick].response for place in places]
        orders, _, _ = to_orders(responses, config)
        price, index = engine.prices, engine.perp_prices
        yes, no, units = engine.yes.copy(), engine.no.copy(), engine.units.copy()
        traded = engine.step(orders).traded
        rows = every[traded]
        if not len(rows):
            continue
        do, place = orders.do[rows].astype(np.int64), orders.instrument[rows].astype(np.int64)
        bet = place < config.markets
        m, p = np.where(bet, place, 0), np.where(bet, 0, place - config.markets)
        on_no = do == Do.BUY_NO
        volume, paid = orders.size[rows].copy(), np.full(len(rows), np.nan)
        if config.markets:
            bought = np.where(on_no, engine.no[rows, m] - no[rows, m], engine.yes[rows, m] - yes[rows, m])
            buys = bet & np.isin(do, (Do.BUY_YES, Do.BUY_NO))
            paid = np.where(buys, np.divide(volume, bought, out=paid.copy(), where=buys), paid)
            held_yes, held_no = yes[rows, m] * price[rows, m], no[rows, m] * (1.0 - price[rows, m])
            volume = np.where(bet & (do == Do.SELL_YES), np.minimum(volume, held_yes), volume)
            volume = np.where(bet & (do == Do.SELL_NO), np.minimum(volume, held_no), volume)
            volume = np.where(bet & (do == Do.CLOSE), held_yes + held_no, volume)
        if config.perps:
            volume = np.where(~bet & (do == Do.CLOSE), np.abs(units[rows, p]) * index[rows, p], volume)
            volume = np.where(~bet & (do != Do.CLOSE), volume * config.leverage, volume)
            paid = np.where(~bet & (do != Do.CLOSE), index[rows, p], paid)
        opened = np.isin(do, OPENING)
        side_worth = np.where(on_no, 1.0 - worth[rows, place], worth[rows, place])
        side_came = np.where(on_no, 1.0 - came[rows, place], came[rows, place])
        found.append(
            np.column_stack(
                [
                    np.array(places)[rows],
                    np.full(len(rows), tick),
                    place,
                    do,
                    volume,
                    paid,
                    np.where(opened, side_worth, np.nan),
                    np.where(opened, side_came, np.nan),
                ]
            )
        )
    return found
