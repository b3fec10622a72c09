"""Operations that place an order, and what each answers: shares or position, price, fee and the change of cash."""

from __future__ import annotations

import math
from typing import Any

from rl_assets.a2a.params import BuyShares, ClosePosition, CreatePost, JoinGroup, OpenPosition, SellShares
from rl_assets.a2a.session import Refused, Session
from rl_assets.market.engine import Do, Engine, money
from rl_assets.text import printable


def buy_shares(session: Session, params: BuyShares) -> dict[str, Any]:
    place = _market(session, params.marketId)
    do = Do.BUY_YES if params.outcome == "YES" else Do.BUY_NO
    before = session.engine
    after = session.place(do, place, params.amount)
    identity = f"{params.marketId}-{params.outcome.lower()}"
    held, now = session.shares(place, params.outcome), session.shares(place, params.outcome, after)
    session.costs[identity] = session.costs.get(identity, 0.0) + params.amount
    return {
        "positionId": identity,
        "shares": money(now - held),
        "avgPrice": money(params.amount / (now - held)),
        **_paid(session, before, after),
    }


def sell_shares(session: Session, params: SellShares) -> dict[str, Any]:
    if params.positionId is not None:
        place, outcome = _prediction_position(session, params.positionId)
    elif params.marketId is not None:
        place = _market(session, params.marketId)
        outcome = params.outcome or _only_side(session, place, params.marketId)
    else:
        raise Refused("say what to sell: positionId, or marketId and outcome")
    return _sell(session, place, outcome, params.shares)


def open_position(session: Session, params: OpenPosition) -> dict[str, Any]:
    config = session.room.config
    place = _instrument(session, params.ticker, config.instruments[config.markets :], "perpetual")
    if (params.amount is None) == (params.size is None):
        raise Refused("say the margin in dollars once: amount, or size, which means the same here")
    if params.leverage not in (None, config.leverage):
        raise Refused(f"every position of this market has {config.leverage}x leverage; leave leverage out")
    margin = params.amount if params.amount is not None else params.size
    before = session.engine
    after = session.place(Do.LONG if params.side == "LONG" else Do.SHORT, place, float(margin or 0.0))
    units = after.units[session.row, place - config.markets]
    return {
        "positionId": params.ticker if units else None,
        "entryPrice": money(after.entry[session.row, place - config.markets]) if units else None,
        **_paid(session, before, after),
    }


def close_position(session: Session, params: ClosePosition) -> dict[str, Any]:
    config = session.room.config
    if params.positionId not in config.instruments[config.markets :]:
        place, outcome = _prediction_position(session, params.positionId)
        return _sell(session, place, outcome, session.shares(place, outcome))
    place = config.instruments.index(params.positionId)
    row, perp = session.row, place - config.markets
    before = session.engine
    after = session.place(Do.CLOSE, place, 0.0)
    units, entry, margin = before.units[row, perp], before.entry[row, perp], before.margin[row, perp]
    paid = _paid(session, before, after)
    gross = after.cash[row] - before.cash[row] + paid["fee"] - margin
    return {"pnl": money(gross - paid["fee"]), "exitPrice": money(entry + gross / units), **paid}


def join_group(session: Session, params: JoinGroup) -> dict[str, Any]:
    """Join a chat or pay for a source, of those that getChats lists."""
    channels = session.room.config.channels
    if not channels:
        raise Refused("this market has no group chats; its sources post to the feed alone")
    if params.groupId not in channels:
        raise Refused(f"{printable(params.groupId)!r} is no group chat here; choose from {', '.join(channels)}")
    before = session.engine
    after = session.place(Do.JOIN, channels.index(params.groupId), 0.0)
    return {"groupId": params.groupId, **_paid(session, before, after)}


def create_post(session: Session, params: CreatePost) -> dict[str, Any]:
    """Speak to the crowd of a market; only the way that the first word says is heard."""
    if not session.room.config.post_influence:
        raise Refused(
            "nobody in this market reads what agents post, so posts are not taken; trade on what the feed says"
        )
    way = params.content.split()[:1]
    if params.marketId is None or way not in (["up"], ["down"]):
        raise Refused("say marketId, and begin content with up or down: the crowd listens to nothing else")
    before = session.engine
    after = session.place(Do.POST_UP if way == ["up"] else Do.POST_DOWN, _market(session, params.marketId), 0.0)
    return {"marketId": params.marketId, "direction": way[0], **_paid(session, before, after)}


def _sell(session: Session, place: int, outcome: str, shares: float) -> dict[str, Any]:
    """Sell shares of one side. The exchange takes sales in dollars at the price before the sale."""
    name = session.room.config.instruments[place]
    identity = f"{name}-{outcome.lower()}"
    before = session.engine
    held = session.shares(place, outcome)
    if held <= 0:
        raise Refused(f"you hold no {outcome} shares of {name}; getPositions lists what you hold")
    if shares > held * (1.0 + 1e-6):
        raise Refused(f"you hold {money(held)} {outcome} shares of {name}, fewer than {shares}")
    price = float(before.prices[session.row, place])
    price = price if outcome == "YES" else 1.0 - price
    everything = shares >= held * (1.0 - 1e-6)
    size = math.ceil(held * price) + 1.0 if everything else shares * price
    after = session.place(Do.SELL_YES if outcome == "YES" else Do.SELL_NO, place, size)
    left = session.shares(place, outcome, after)
    cost = session.costs.get(identity, 0.0)
    session.costs[identity] = cost * left / held
    paid = _paid(session, before, after)
    return {
        "positionId": identity,
        "shares": money(held - left),
        "proceeds": paid["cashChange"],
        "pnl": money(paid["cashChange"] - cost * (held - left) / held),
        "exitPrice": money(paid["cashChange"] / (held - left)),
        **paid,
    }


def _paid(session: Session, before: Engine, after: Engine) -> dict[str, Any]:
    """What an order costs: its fee, and by how much cash changes, both in dollars."""
    row = session.row
    return {
        "fee": money(after.fees[row] - before.fees[row]),
        "cashChange": money(after.cash[row] - before.cash[row]),
    }


def _market(session: Session, name: str) -> int:
    config = session.room.config
    return _instrument(session, name, config.instruments[: config.markets], "prediction market")


def _instrument(session: Session, name: str, names: tuple[str, ...], kind: str) -> int:
    if name not in names:
        raise Refused(f"{printable(name)!r} is no {kind} here; choose from {', '.join(names) or 'none'}")
    return session.room.config.instruments.index(name)


def _prediction_position(session: Session, identity: str) -> tuple[int, str]:
    name, _, outcome = identity.partition("-")
    if outcome not in ("yes", "no"):
        raise Refused(f"{printable(identity)!r} is not a position id such as A-yes or P; getPositions lists yours")
    return _market(session, name), outcome.upper()


def _only_side(session: Session, place: int, name: str) -> str:
    held = [outcome for outcome in ("YES", "NO") if session.shares(place, outcome) > 0]
    if len(held) != 1:
        trouble = "both sides" if held else "no shares"
        raise Refused(f"you hold {trouble} of {name}; say outcome, or see getPositions")
    return held[0]
