"""Playing a remote market: an agent sees what the server tells, and what it decides is sent as operations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rl_assets.a2a.client import Remote, RemoteRefusal
from rl_assets.a2a.market_client import Clock, field, join, moved, number, opened, read_clock, unreadable
from rl_assets.a2a.params import MOST_POSTS
from rl_assets.agents.reference import DRAWS, Seat, rule
from rl_assets.agents.remote import NoAnswer
from rl_assets.errors import RlAssetsError
from rl_assets.market.actions import to_orders
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Orders
from rl_assets.market.snapshot import Post
from rl_assets.market.sources import RELIABILITY
from rl_assets.market.streams import uniform_draws
from rl_assets.text import printable

TIMEOUT_SECONDS = 120.0
"""How long a model may take to answer."""


@dataclass(frozen=True)
class Heard:
    posts: Sequence[Post]


@dataclass(frozen=True)
class RemoteMarket:
    """One tick as the operations tell it, in the shapes of an engine with one row."""

    config: WorldConfig
    tick: int
    cash: np.ndarray
    prices: np.ndarray
    earlier_prices: np.ndarray
    perp_prices: np.ndarray
    earlier_perp_prices: np.ndarray
    unique: Sequence[Heard]
    world: np.ndarray


Decide = Callable[[Remote, Clock], Awaitable[Orders]]
"""Gives one order for a tick, in engine shape with one row."""


class Decider(Protocol):
    """Whoever plays: told the rules once, then asked for one order per tick, for as long as the block runs."""

    def begun(self, config: WorldConfig, rules: str) -> AbstractAsyncContextManager[Decide]: ...


class RuleDecider:
    """A reference agent. seed: entropy of its draws."""

    def __init__(self, name: str, seed: tuple[int, ...]) -> None:
        self._rule = rule(name)
        self._seed = seed

    @asynccontextmanager
    async def begun(self, config: WorldConfig, rules: str) -> AsyncIterator[Decide]:
        draws = uniform_draws([self._seed], config.ticks * DRAWS).reshape(1, -1, DRAWS)

        async def decide(remote: Remote, clock: Clock) -> Orders:
            market = await look(remote, config, clock.tick - 1)
            return self._rule(Seat(market, np.arange(1), draws[:, market.tick], None))

        yield decide


class ModelDecider:
    """A model behind an OpenAI-compatible endpoint, which reads the observation that every policy reads."""

    def __init__(self, base_url: str, model: str, api_key: str | None, temperature: float) -> None:
        from rl_assets.agents.endpoint import EndpointAgent

        self._model = model
        self._agent = EndpointAgent.at_market(
            base_url, model, api_key=api_key, temperature=temperature, timeout=TIMEOUT_SECONDS
        )

    @asynccontextmanager
    async def begun(self, config: WorldConfig, rules: str) -> AsyncIterator[Decide]:
        async with self._agent.connected() as begin:
            conversation = begin(rules, 0)

            async def decide(remote: Remote, clock: Clock) -> Orders:
                try:
                    reply = await conversation.reply(clock.observation)
                except NoAnswer as error:
                    reason = printable(str(error), 200)
                    raise RlAssetsError(
                        f"{self._model} does not answer ({reason}); check --base-url and --model"
                    ) from error
                orders, _, _ = to_orders([reply.text], config)
                return orders

            yield decide


@dataclass(frozen=True)
class Played:
    """How a remote episode went. result: what the server said at the end. refused: decisions that could not be sent or
    that the server refused, each a tick held instead, by reason."""

    ticks: int
    result: dict[str, Any]
    refused: dict[str, int]


async def play(
    remote: Remote, decider: Decider, name: str, key: str | None, on_progress: Callable[[int, int], None]
) -> Played:
    """Join under a name and play to the end. Raises RemoteError, or RemoteRefusal if joining is refused."""
    joined = await join(remote, name, key)
    config, clock = joined.config, await opened(remote, joined.clock)
    refused: Counter[str] = Counter()
    async with decider.begun(config, joined.rules) as decide:
        while not clock.finished:
            on_progress(clock.tick - 1, config.ticks)
            acted = await act(remote, await decide(remote, clock), config, clock)
            clock = acted.clock
            refused.update([acted.refusal] if acted.refusal is not None else [])
    on_progress(config.ticks, config.ticks)
    return Played(config.ticks, clock.result, dict(refused))


@dataclass(frozen=True)
class Acted:
    """What came of an order. clock: after it. answer: the market's, empty where nothing was ordered. refusal: why the
    tick was held instead."""

    clock: Clock
    answer: dict[str, Any]
    refusal: str | None


async def act(remote: Remote, orders: Orders, config: WorldConfig, clock: Clock, seconds: float = math.inf) -> Acted:
    """Place the first row's order and wait, for so many seconds, until the market has moved. Raises RemoteError."""
    answer, refusal, after = {}, None, clock
    try:
        operation, params = await as_operation(remote, orders, config)
        if operation != "advance":
            answer = await remote.call(operation, params)
            after = read_clock(answer)
    except RemoteRefusal as error:
        refusal = str(error)
    if not after.finished and after.tick == clock.tick:
        after = await moved(remote, clock.tick, seconds)
    return Acted(after, answer, refusal)


async def look(remote: Remote, config: WorldConfig, tick: int) -> RemoteMarket:
    """The market of this tick, from what the operations answer. Raises RemoteError where that cannot be read."""
    if not 0 <= tick < config.ticks:
        raise unreadable("clock", "'tick' is none of the market's")
    predictions = field(await remote.call("getPredictions"), "predictions", list)
    perpetuals = field(await remote.call("getPerpetuals"), "perpetuals", list)
    feed = field(await remote.call("getFeed", {"limit": MOST_POSTS}), "posts", list)
    balance = number(await remote.call("getBalance"), "balance")
    names = config.instruments
    try:
        markets = {market["id"]: market for market in predictions}
        perps = {perp["ticker"]: perp for perp in perpetuals}
        posts = [
            Post(tick, names.index(post["marketId"]), str(post["authorId"]), post["direction"] == "up")
            for post in reversed(feed)
            if post["tick"] == tick + 1 and post["authorId"] in RELIABILITY
        ]
        return RemoteMarket(
            config=config,
            tick=tick,
            cash=np.array([balance]),
            prices=_row(markets[name]["yesPrice"] for name in names[: config.markets]),
            earlier_prices=_row(markets[name]["earlierYesPrice"] for name in names[: config.markets]),
            perp_prices=_row(perps[name]["price"] for name in names[config.markets :]),
            earlier_perp_prices=_row(perps[name]["earlierPrice"] for name in names[config.markets :]),
            unique=[Heard(posts)],
            world=np.zeros(1, int),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unreadable("state", printable(repr(error), 200)) from error


async def as_operation(remote: Remote, orders: Orders, config: WorldConfig) -> tuple[str, dict[str, Any]]:
    """The operation that carries out the first row's order. Raises RemoteRefusal where there is none for it."""
    do, size = Do(int(orders.do[0])), float(orders.size[0])
    if do == Do.HOLD:
        return "advance", {}
    if do == Do.INVALID:
        raise RemoteRefusal("not an action of the schema")
    place = int(orders.instrument[0])
    if do == Do.JOIN:
        return "joinGroup", {"groupId": config.channels[place]}
    name = config.instruments[place]
    if do in (Do.POST_UP, Do.POST_DOWN):
        return "createPost", {"content": "up" if do == Do.POST_UP else "down", "marketId": name}
    if do in (Do.BUY_YES, Do.BUY_NO):
        return "buyShares", {"marketId": name, "outcome": "YES" if do == Do.BUY_YES else "NO", "amount": size}
    if do in (Do.LONG, Do.SHORT):
        return "openPosition", {"ticker": name, "side": do.name, "amount": size}
    if place >= config.markets:
        return "closePosition", {"positionId": name}
    largest = await _largest(remote, name, {Do.SELL_YES: ("YES",), Do.SELL_NO: ("NO",), Do.CLOSE: ("YES", "NO")}[do])
    identity = field(largest, "positionId", str, "position")
    if do == Do.CLOSE:
        return "closePosition", {"positionId": identity}
    price = number(largest, "price", "position")
    if price <= 0:
        raise unreadable("position", "'price' is not positive")
    return "sellShares", {"positionId": identity, "shares": min(number(largest, "shares", "position"), size / price)}


async def _largest(remote: Remote, market: str, outcomes: Sequence[str]) -> Any:
    """The position of most value among these sides of a market. Raises RemoteRefusal where there is none."""
    held = field(await remote.call("getPositions"), "predictionPositions", list)
    sides = [(field(p, "marketId", str, "position"), field(p, "outcome", str, "position")) for p in held]
    mine = [position for position, (name, side) in zip(held, sides, strict=True) if name == market and side in outcomes]
    if not mine:
        raise RemoteRefusal("nothing to sell")
    return max(mine, key=lambda position: number(position, "value", "position"))


def _row(values: Iterable[Any]) -> np.ndarray:
    row = np.array([[float(value) for value in values]])
    if not np.isfinite(row).all() or (row <= 0).any():
        raise ValueError("a price is not a positive number")
    return row
