"""What an agent may ask of the market: the operations of Babylon's benchmark interface, and the clock.

Names and fields are the old ones where the thing exists in this world: a prediction market's id is its letter, a
perpetual's ticker likewise, a position's id `A-yes`, `A-no` or `P`. Money is in dollars, prices are probabilities or
dollars, ticks count from 1 as in the observations. What this world does not have is refused in words, never made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rl_assets.a2a import orders, views
from rl_assets.a2a.command import Command
from rl_assets.a2a.params import (
    Advance,
    BuyShares,
    ClosePosition,
    CreatePost,
    GetFeed,
    JoinGroup,
    NoParams,
    OpenPosition,
    Params,
    SellShares,
    Status,
    parse,
)
from rl_assets.a2a.session import Refused, Session
from rl_assets.text import printable


def get_clock(session: Session, params: NoParams) -> dict[str, Any]:
    return {}


def advance(session: Session, params: Advance) -> dict[str, Any]:
    """Hold, or confirm the order that was placed. Whoever serves this may then wait for the other agents."""
    now = session.room.tick + 1
    if params.tick is not None and params.tick > now:
        raise Refused(f"this is tick {now}, and a later one cannot be decided yet")
    if not session.room.finished and params.tick in (None, now):
        session.act()
    return {}


@dataclass(frozen=True)
class Operation:
    """orders: it places this tick's order. tells_clock: whoever serves it adds `clock`, when all has moved."""

    name: str
    params: type[Params]
    run: Callable[[Session, Any], dict[str, Any]]
    orders: bool = False
    tells_clock: bool = False


JOIN = "join"
"""The one operation without a session; it gives one. Whoever serves this module carries it out."""
ADVANCE = "advance"
OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("getPredictions", Status, views.get_predictions),
        Operation("buyShares", BuyShares, orders.buy_shares, orders=True, tells_clock=True),
        Operation("sellShares", SellShares, orders.sell_shares, orders=True, tells_clock=True),
        Operation("getPerpetuals", NoParams, views.get_perpetuals),
        Operation("openPosition", OpenPosition, orders.open_position, orders=True, tells_clock=True),
        Operation("closePosition", ClosePosition, orders.close_position, orders=True, tells_clock=True),
        Operation("getFeed", GetFeed, views.get_feed),
        Operation("createPost", CreatePost, orders.create_post, orders=True, tells_clock=True),
        Operation("getChats", NoParams, views.get_chats),
        Operation("joinGroup", JoinGroup, orders.join_group, orders=True, tells_clock=True),
        Operation("getBalance", NoParams, views.get_balance),
        Operation("getPortfolio", NoParams, views.get_portfolio),
        Operation("getPositions", NoParams, views.get_positions),
        Operation("getDashboard", NoParams, views.get_dashboard),
        Operation("getClock", NoParams, get_clock, tells_clock=True),
        Operation(ADVANCE, Advance, advance, tells_clock=True),
    )
}


def find(command: Command) -> Operation:
    """The operation that a command names. Raises Refused."""
    operation = OPERATIONS.get(command.operation)
    if operation is None:
        known = ", ".join([JOIN, *OPERATIONS])
        raise Refused(f"Unsupported operation: {printable(command.operation)}; choose from {known}")
    return operation


def run(session: Session, command: Command) -> dict[str, Any]:
    """Carry out a command. Raises Refused, and then nothing has changed."""
    operation = find(command)
    result = operation.run(session, parse(operation.params, command.params))
    if operation.orders and session.fast_forward:
        session.act()
    return result
