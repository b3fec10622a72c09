"""What worlds above the usual difficulty have on top: a common factor, news before jumps, and channels to join."""

from __future__ import annotations

import numpy as np

from rl_assets.market.config import WorldConfig
from rl_assets.market.snapshot import Post
from rl_assets.market.sources import RELIABILITY, WIRE
from rl_assets.market.streams import stream

NEWS_JUMP = 0.04
"""Size of a foretold jump, in the logarithm of the price."""
WHISPER_RATE = 0.3
"""Probability that a channel speaks of an instrument at a tick."""


def blended(own: np.ndarray, seed: int, config: WorldConfig) -> np.ndarray:
    """Standard normal moves (ticks,) of an instrument with the world's common factor in them."""
    if config.common == 0.0:
        return own
    shared = stream("common", seed, 0).standard_normal(config.ticks)
    return np.sqrt(1.0 - config.common) * own + np.sqrt(config.common) * shared


def news(seed: int, index: int, place: int, config: WorldConfig) -> tuple[np.ndarray, list[Post]]:
    """Jumps (ticks,) of a perpetual's fair price, and the posts that foretell them.

    A jump at a tick reaches the index `crowd_lag` ticks later; the wire posts `news_lead` ticks before that.
    """
    jumps = np.zeros(config.ticks)
    if config.news_rate == 0.0:
        return jumps, []
    happens, way, luck = stream("news", seed, index).random((config.ticks, 3)).T
    at = np.flatnonzero(happens < config.news_rate)
    up = way[at] < 0.5
    jumps[at] = np.where(up, NEWS_JUMP, -NEWS_JUMP)
    posted = at + 1 + config.crowd_lag - config.news_lead
    told = np.where(luck[at] < WIRE.reliability, up, ~up)
    in_time = (posted >= 0) & (posted < config.ticks)
    return jumps, [
        Post(int(tick), place, WIRE.name, bool(said)) for tick, said in zip(posted[in_time], told[in_time], strict=True)
    ]


def whispers(
    seed: int, index: int, place: int, value: np.ndarray, price: np.ndarray, config: WorldConfig
) -> list[Post]:
    """What the channels say of one instrument: will its value `horizon` ticks ahead be above the crowd's price of now?

    index: a number of the instrument that adding others does not change.
    """
    said = []
    for number, channel in enumerate(config.channels):
        speaks, luck = stream("whispers", seed, 1_000 * number + index).random((config.ticks, 2)).T
        ticks = np.flatnonzero(speaks < WHISPER_RATE)
        ahead = value[np.minimum(ticks + config.horizon, config.ticks)] > price[ticks]
        up = np.where(luck[ticks] < RELIABILITY[channel], ahead, ~ahead)
        said += [Post(tick, place, channel, way) for tick, way in zip(ticks.tolist(), up.tolist(), strict=True)]
    return said


def merged(posts: list[Post], wire: list[Post]) -> list[Post]:
    """Posts on one instrument, of which the wire's take the place of others at their tick."""
    taken = {post.tick for post in wire}
    return [post for post in posts if post.tick not in taken] + wire
