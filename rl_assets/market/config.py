"""The size, the prices and the difficulty of a world. How its numbers come about belongs in `generate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from rl_assets.errors import ConfigurationError
from rl_assets.market.sources import CHATS, PAID_SOURCES

MARKET_NAMES = "ABCDEFGHIJKL"
PERP_NAMES = "PQRSTUVW"


@dataclass(frozen=True)
class WorldConfig:
    """The size and the prices of a world.

    ticks: decisions per episode. tick_seconds: seconds per tick. markets, perps: how many of each. start_cash: dollars.
    liquidity: dollars in each reserve of a prediction pool at a price of one half. fee: fraction of what is traded on a
    prediction market. crowd_lag: ticks by which the crowd sees the latent late. crowd_pull: share of the gap to the
    crowd's belief that background flow closes per tick. post_rate: probability of a post per instrument and tick.
    horizon: ticks ahead that a post speaks of. perp_price: dollars. leverage: notional per dollar of margin. taker_fee:
    fraction of notional. perp_depth: dollars of notional that move the fill by one percent. maintenance: fraction of
    notional under which a position is liquidated. breach_fee: dollars taken for an invalid action.

    What follows is off by default. common: share of the variance of moves that all instruments have in common.
    news_rate: probability per perpetual and tick of a jump that the wire foretells, news_lead ticks before the index
    moves. chats, paid_sources: how many of each an agent can join to read what is said there; a paid one costs
    source_price dollars. post_influence: share by which an agent's first post on a market raises the odds that the
    crowd believes in.
    """

    ticks: int = 12
    tick_seconds: int = 300
    markets: int = 3
    perps: int = 1
    start_cash: float = 1000.0
    liquidity: float = 1500.0
    fee: float = 0.01
    crowd_lag: int = 4
    crowd_pull: float = 0.5
    post_rate: float = 0.5
    horizon: int = 12
    perp_price: float = 100.0
    leverage: int = 10
    taker_fee: float = 0.0005
    perp_depth: float = 50_000.0
    maintenance: float = 0.02
    breach_fee: float = 5.0
    common: float = 0.0
    news_rate: float = 0.0
    news_lead: int = 2
    chats: int = 0
    paid_sources: int = 0
    source_price: float = 20.0
    post_influence: float = 0.0

    def __post_init__(self) -> None:
        limits = {
            "ticks": (2, 100_000),
            "tick_seconds": (1, 86_400),
            "markets": (0, len(MARKET_NAMES)),
            "perps": (0, len(PERP_NAMES)),
            "start_cash": (1.0, 1e9),
            "liquidity": (1.0, 1e9),
            "fee": (0.0, 0.2),
            "crowd_lag": (0, 1_000),
            "crowd_pull": (0.0, 1.0),
            "post_rate": (0.0, 1.0),
            "horizon": (1, 1_000),
            "perp_price": (1.0, 1e6),
            "leverage": (1, 100),
            "taker_fee": (0.0, 0.05),
            "perp_depth": (1.0, 1e12),
            "maintenance": (0.0, 0.5),
            "breach_fee": (0.0, 1e6),
            "common": (0.0, 0.95),
            "news_rate": (0.0, 1.0),
            "news_lead": (1, 1_000),
            "chats": (0, len(CHATS)),
            "paid_sources": (0, len(PAID_SOURCES)),
            "source_price": (0.0, 1e6),
            "post_influence": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigurationError(f"world setting {name}={value!r} is outside {low}..{high}; choose one inside")
            if isinstance(low, int) and not isinstance(value, int):
                raise ConfigurationError(f"world setting {name}={value!r} must be a whole number")
        if self.markets + self.perps == 0:
            raise ConfigurationError("a world needs at least one market or perpetual; set markets or perps above 0")

    @property
    def instruments(self) -> tuple[str, ...]:
        """Names of all instruments: prediction markets first, then perpetuals."""
        return tuple(MARKET_NAMES[: self.markets]) + tuple(PERP_NAMES[: self.perps])

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of all that can be joined: chats first, then paid sources."""
        return tuple(c.name for c in (*CHATS[: self.chats], *PAID_SOURCES[: self.paid_sources]))

    @property
    def channel_prices(self) -> tuple[float, ...]:
        """Dollars for joining each channel."""
        return (0.0,) * self.chats + (float(self.source_price),) * self.paid_sources

    def to_json(self) -> dict[str, Any]:
        """All settings; of those that are off by default only what is set, so that plain worlds keep their hashes."""
        return {name: value for name, value in asdict(self).items() if name not in LATER or value != LATER[name]}


_NAMES = [f.name for f in fields(WorldConfig)]
LATER: dict[str, Any] = {f.name: f.default for f in fields(WorldConfig)[_NAMES.index("common") :]}
"""Settings that are off by default, and their defaults."""


DIFFICULTIES: dict[str, WorldConfig] = {
    "easy": WorldConfig(post_rate=0.8, fee=0.005, crowd_lag=6, horizon=6, breach_fee=2.0),
    "standard": WorldConfig(),
    "hard": WorldConfig(
        ticks=24,
        markets=4,
        perps=2,
        post_rate=0.4,
        common=0.5,
        news_rate=0.08,
        chats=2,
        paid_sources=2,
        post_influence=0.08,
    ),
}
"""Worlds by name: few fees and much news; the usual one; many instruments that move together, news before jumps, and
knowledge that has to be joined or paid for."""
