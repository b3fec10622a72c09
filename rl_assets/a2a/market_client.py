"""Joining a market elsewhere and following its clock, for `rl-assets play` and for live turns alike.

What a market answers is checked where it is read: an answer of another shape is a RemoteError that names its field.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, TypeVar

from rl_assets.a2a.client import Remote, RemoteError
from rl_assets.errors import RlAssetsError
from rl_assets.market.config import WorldConfig
from rl_assets.text import printable, whole

POLL_SECONDS = 0.5
"""Between two looks at whether a market has opened."""
WAIT_SECONDS = 20.0
"""How long one call waits for the other agents of a clock."""
MOST = 1e15
"""Dollars or shares of anything."""

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """Where an episode stands. tick: from 1. open: all have joined. acted: this agent has decided in this tick.
    observation: what it sees, empty when finished. result: how it ended, empty before."""

    tick: int
    open: bool
    acted: bool
    finished: bool
    observation: str
    result: dict[str, Any]


@dataclass(frozen=True)
class Joined:
    """An agent's place in a market. market: the settings of the world as they were told."""

    token: str
    rules: str
    market: dict[str, Any]
    config: WorldConfig
    clock: Clock


async def join(remote: Remote, name: str, key: str | None) -> Joined:
    """Take a place; calls carry its token from now on. Raises RemoteError, or RemoteRefusal if joining is refused."""
    told = await remote.call("join", {"agent": name, "fastForward": True} | ({"key": key} if key else {}))
    of = "answer to join"
    market = field(told, "market", dict, of)
    joined = Joined(
        token=field(told, "token", str, of),
        rules=whole(field(told, "rules", str, of)),
        market=market,
        config=read_config(market),
        clock=read_clock(told, of),
    )
    if field(told, "instruments", list, of) != list(joined.config.instruments):
        raise unreadable(of, "the instruments do not fit the market")
    remote.send_header("Authorization", f"Bearer {joined.token}")
    return joined


def read_config(market: dict[str, Any]) -> WorldConfig:
    """The world that joining told of. Raises RemoteError where it is none of this version."""
    try:
        return WorldConfig(**market)
    except (TypeError, ValueError, RlAssetsError) as error:
        raise unreadable("answer to join", printable(str(error), 200)) from error


def read_clock(answer: Any, of: str = "answer") -> Clock:
    """The clock within an answer. Raises RemoteError."""
    told = field(answer, "clock", dict, of)
    finished = field(told, "finished", bool, "clock")
    return Clock(
        tick=field(told, "tick", int, "clock"),
        open=field(told, "open", bool, "clock"),
        acted=field(told, "acted", bool, "clock"),
        finished=finished,
        observation="" if finished else whole(field(told, "observation", str, "clock")),
        result=field(told, "result", dict, "clock") if finished else {},
    )


async def clock_of(remote: Remote) -> Clock:
    """The clock as it is now. Raises RemoteError or RemoteRefusal."""
    return read_clock(await remote.call("getClock"))


async def opened(remote: Remote, clock: Clock, seconds: float = math.inf) -> Clock:
    """The clock once all agents have joined, or as it is when so many seconds are over."""
    deadline = time.monotonic() + seconds
    while not clock.open and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        clock = await clock_of(remote)
    return clock


async def moved(remote: Remote, tick: int, seconds: float = math.inf) -> Clock:
    """End the tick, and tell the clock once the others have too, or as it is when so many seconds are over."""
    deadline = time.monotonic() + seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        clock = read_clock(await remote.call("advance", {"tick": tick, "wait": min(left, WAIT_SECONDS)}))
        if clock.finished or clock.tick != tick or not left:
            return clock


def field(told: Any, name: str, kind: type[T] | tuple[type[T], ...], of: str = "answer") -> T:
    """One field of what a market told. of: what that is. Raises RemoteError where it is missing or of another kind."""
    value = told.get(name) if isinstance(told, dict) else None
    if not isinstance(value, kind):
        raise unreadable(of, f"{name!r} is missing or of another kind")
    return value


def number(told: Any, name: str, of: str = "answer") -> float:
    """A field in dollars or shares. Raises RemoteError where it is missing or not within what there can be."""
    value = field(told, name, (int, float), of)
    if not abs(value) <= MOST:
        raise unreadable(of, f"{name!r} is no number that can be")
    return float(value)


def unreadable(of: str, why: str) -> RemoteError:
    """That something which a market told is not what it must be."""
    return RemoteError(f"the market's {of} cannot be read ({why}); is it of this version?")
