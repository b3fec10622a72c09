"""How a market day comes about: latent paths, the crowd that follows them late, and the sources that speak of them.

Each instrument and purpose draws from its own named stream, so that adding an instrument changes no other's numbers.
No raw draw is public: everything an agent sees is rounded to the units of `snapshot`.
"""

from __future__ import annotations

import numpy as np

from rl_assets.errors import ConfigurationError
from rl_assets.market.config import WorldConfig
from rl_assets.market.depth import blended, merged, news, whispers
from rl_assets.market.snapshot import (
    FUNDING_UNIT,
    LATENT_UNIT,
    PERP_UNIT,
    PRICE_UNIT,
    SNAPSHOTS_PER_DAY,
    SPLITS,
    Post,
    Snapshot,
    Truth,
)
from rl_assets.market.sources import SOURCES
from rl_assets.market.streams import stream

USUAL_TICK_SECONDS = 300
"""Seconds over which a path moves as far as the constants below say; other ticks move it by their share."""
LONG_SECONDS = 28_800
"""Beyond this length of a world trends turn and paths are thrown back at bounds, so that a week drifts nowhere."""
OTHER_INSTRUMENTS = 500
"""Added to a perpetual's number where markets are counted too, so that adding a market does not change it."""
_LATE = np.array([source.late for source in SOURCES])
_RELIABILITY = np.array([source.reliability for source in SOURCES])


def generate(split: str, seed: int, config: WorldConfig | None = None) -> tuple[Snapshot, Truth]:
    """The snapshot and the sealed truth of a seed. The same arguments give the same bytes on every machine.

    Raises ConfigurationError where the seed is not one of the split's.
    """
    config = config or WorldConfig()
    if split not in SPLITS or seed not in SPLITS[split]:
        ranges = ", ".join(f"{name} {r.start}..{r.stop - 1}" for name, r in SPLITS.items())
        raise ConfigurationError(f"seed {seed} is not in split {split!r}; the splits' seeds are {ranges}")
    day = seed // SNAPSHOTS_PER_DAY
    tempo = float(np.exp(0.25 * stream("day", day, 0).standard_normal()))
    prediction = [_prediction_market(seed, index, tempo, config) for index in range(config.markets)]
    perpetual = [_perpetual(seed, index, tempo, config) for index in range(config.perps)]
    truth = Truth(
        split=split,
        seed=seed,
        latent=_columns([m["latent"] for m in prediction], config.ticks + 1),
        fair=_columns([p["fair"] for p in perpetual], config.ticks + 1),
        outcomes=np.array([m["outcome"] for m in prediction], dtype=bool),
    )
    posts = [post for instrument in (*prediction, *perpetual) for post in instrument["posts"]]
    whispered = [post for instrument in (*prediction, *perpetual) for post in instrument["whispers"]]
    snapshot = Snapshot(
        split=split,
        seed=seed,
        day=day,
        config=config,
        crowd=_columns([m["crowd"] for m in prediction], config.ticks + 1),
        perp=_columns([p["index"] for p in perpetual], config.ticks + 1),
        funding=_columns([p["funding"] for p in perpetual], config.ticks),
        posts=tuple(sorted(posts, key=lambda post: (post.tick, post.instrument))),
        truth_digest=truth.digest,
        whispers=tuple(sorted(whispered, key=lambda post: (post.tick, post.instrument, post.source))),
    )
    return snapshot, truth


def _prediction_market(seed: int, index: int, tempo: float, config: WorldConfig) -> dict:
    rng = stream("latent", seed, index)
    pace = config.tick_seconds / USUAL_TICK_SECONDS
    active = _regimes(rng, config.ticks, pace)
    moves = (
        blended(rng.standard_normal(config.ticks), seed, config) * np.where(active, 0.45, 0.15) * tempo * np.sqrt(pace)
    )
    path = 0.9 * rng.standard_normal() + np.concatenate([[0.0], np.cumsum(moves)])
    log_odds = _folded(path, 3.5) if _is_long(config) else np.clip(path, -3.5, 3.5)
    latent = np.rint(sigmoid(log_odds) / LATENT_UNIT).astype(np.int64)
    seen = _late(log_odds, config.crowd_lag) + 0.12 * stream("crowd", seed, index).standard_normal(config.ticks + 1)
    crowd = np.clip(np.rint(sigmoid(seen) / PRICE_UNIT), 200, 9_800).astype(np.int64)
    outcome = bool(stream("outcome", seed, index).random() < latent[-1] * LATENT_UNIT)
    value, price = latent * LATENT_UNIT, crowd * PRICE_UNIT
    posts = _posts(stream("posts", seed, index), index, value, price, config)
    whispered = whispers(seed, index, index, value, price, config)
    return {"latent": latent, "crowd": crowd, "outcome": outcome, "posts": posts, "whispers": whispered}


def _perpetual(seed: int, index: int, tempo: float, config: WorldConfig) -> dict:
    rng = stream("fair", seed, index)
    pace = config.tick_seconds / USUAL_TICK_SECONDS
    trending = _regimes(rng, config.ticks, pace)
    direction = np.where(rng.random(config.ticks) < 0.5, -1.0, 1.0)
    jumps = np.where(rng.random(config.ticks) < 0.12 * pace, direction * 0.02, 0.0)
    way = direction[_spells(trending)] if _is_long(config) else direction[0]
    moves = np.where(trending, 0.004 * pace * way, 0.0) + jumps
    moves = moves + 0.006 * tempo * np.sqrt(pace) * blended(rng.standard_normal(config.ticks), seed, config)
    jumped, wire = news(seed, index, config.markets + index, config)
    moves = moves + jumped
    path = np.concatenate([[0.0], np.cumsum(moves)])
    log_price = np.log(config.perp_price) + (_folded(path, 1.5) if _is_long(config) else path)
    fair = np.rint(np.exp(log_price) / PERP_UNIT).astype(np.int64)
    noise = 0.002 * stream("index", seed, index).standard_normal(config.ticks + 1)
    index_price = np.rint(np.exp(_late(log_price, config.crowd_lag) + noise) / PERP_UNIT).astype(np.int64)
    gap = np.diff(index_price) / index_price[:-1]
    funding = np.clip(np.rint(gap * 0.02 / FUNDING_UNIT), -500, 500).astype(np.int64)
    place = config.markets + index
    value, price = fair * PERP_UNIT, index_price * PERP_UNIT
    posts = merged(_posts(stream("perp_posts", seed, index), place, value, price, config), wire)
    whispered = whispers(seed, OTHER_INSTRUMENTS + index, place, value, price, config)
    return {"fair": fair, "index": index_price, "funding": funding, "posts": posts, "whispers": whispered}


def _posts(
    rng: np.random.Generator, instrument: int, value: np.ndarray, price: np.ndarray, config: WorldConfig
) -> list[Post]:
    """Posts on one instrument: is its value `horizon` ticks ahead above the crowd's price of now?

    A source answers truly with its reliability; a late one tells where the price has come from.
    """
    speaks, who, luck = rng.random((config.ticks, 3)).T
    ticks = np.flatnonzero(speaks < config.post_rate)
    source = (who[ticks] * len(SOURCES)).astype(int)
    ahead = value[np.minimum(ticks + config.horizon, config.ticks)] > price[ticks]
    behind = price[ticks] > price[np.maximum(ticks - 2, 0)]
    told = np.where(_LATE[source], behind, ahead)
    up = np.where(luck[ticks] < _RELIABILITY[source], told, ~told)
    return [
        Post(tick, instrument, SOURCES[name].name, said)
        for tick, name, said in zip(ticks.tolist(), source.tolist(), up.tolist(), strict=True)
    ]


def _is_long(config: WorldConfig) -> bool:
    return config.ticks * config.tick_seconds > LONG_SECONDS


def _regimes(rng: np.random.Generator, ticks: int, pace: float) -> np.ndarray:
    """bool (ticks,): a two-state chain that keeps its state over a usual tick with probability 0.85."""
    stay = (1.0 + 0.7**pace) / 2.0
    start, switches = rng.random() < 0.5, rng.random(ticks) >= stay
    return (int(start) + np.cumsum(switches)) % 2 == 1


def _spells(regime: np.ndarray) -> np.ndarray:
    """int (ticks,): the tick at which the regime of each tick began."""
    begins = np.concatenate([[True], regime[1:] != regime[:-1]])
    return np.maximum.accumulate(np.where(begins, np.arange(len(regime)), 0))


def _folded(path: np.ndarray, bound: float) -> np.ndarray:
    """The path, thrown back wherever it would leave -bound..bound."""
    along = np.mod(path + bound, 4.0 * bound)
    return np.where(along > 2.0 * bound, 4.0 * bound - along, along) - bound


def _late(path: np.ndarray, lag: int) -> np.ndarray:
    return np.concatenate([np.full(min(lag, len(path)), path[0]), path[: max(len(path) - lag, 0)]])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Probability of log odds."""
    return 1.0 / (1.0 + np.exp(-x))


def _columns(columns: list[np.ndarray], rows: int) -> np.ndarray:
    if not columns:
        return np.zeros((rows, 0), dtype=np.int32)
    return np.stack(columns, axis=1).astype(np.int32)
