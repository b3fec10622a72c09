"""What joining channels and speaking to the crowd earned: episodes beside themselves without those actions.

What single trades paid and were worth belongs in `trades`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rl_assets.episodes import Episode
from rl_assets.market.actions import to_orders
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Orders, money
from rl_assets.market.exchange import engine_for
from rl_assets.market.snapshot import Worlds

SOCIAL = (Do.JOIN, Do.POST_UP, Do.POST_DOWN)


def social_value(episodes: Sequence[Episode], expected: np.ndarray, worlds: Worlds) -> np.ndarray:
    """float64 (episodes,): dollars of expected PnL that an episode's `join`, `post_up` and `post_down` earned.

    The recorded expected PnL less that of the same responses with those actions turned into hold, refused ones too.
    What the agent read in a channel moved its other responses, which stay as they are: so a channel shows what it cost,
    and a post what the swayed prices brought. Exactly 0 for an episode without such an action, which is not played.

    expected: float64 (episodes,), dollars as recorded. worlds: snapshot and truth by snapshot id, those of all episodes
    and with one tick per step, which `trades_of` checks.
    """
    value = np.zeros(len(episodes))
    alike: dict[WorldConfig, list[int]] = {}
    for place, episode in enumerate(episodes):
        config = worlds[str(episode.snapshot_id)][0].config
        if config.channels or config.post_influence:
            alike.setdefault(config, []).append(place)
    for config, places in alike.items():
        ticks = [
            to_orders([episodes[place].steps[tick].response for place in places], config)[0]
            for tick in range(config.ticks)
        ]
        chosen = np.flatnonzero(np.any([np.isin(orders.do, SOCIAL) for orders in ticks], axis=0))
        if len(chosen):
            rows = np.array(places)[chosen]
            alone = _without([episodes[row] for row in rows], [_of(orders, chosen) for orders in ticks], worlds)
            value[rows] = [money(difference) for difference in expected[rows] - alone]
    return value


def _of(orders: Orders, rows: np.ndarray) -> Orders:
    return Orders(orders.do[rows], orders.instrument[rows], orders.size[rows])


def _without(episodes: list[Episode], ticks: list[Orders], worlds: Worlds) -> np.ndarray:
    """float64 (episodes,): expected PnL in dollars, rounded as records are, of these orders without the social ones."""
    chosen = [worlds[str(episode.snapshot_id)] for episode in episodes]
    engine = engine_for([snapshot for snapshot, _ in chosen])
    for orders in ticks:
        engine.step(replace(orders, do=np.where(np.isin(orders.do, SOCIAL), np.int8(Do.HOLD), orders.do)))
    _, expected = engine.settle([truth for _, truth in chosen])
    return np.array([money(amount) for amount in expected])
