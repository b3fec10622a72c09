"""Operations that look: at the markets, the feed, one's own account and the clock. None of them changes anything."""

from __future__ import annotations

import math
from typing import Any

from rl_assets.a2a.params import GetFeed, NoParams, Status
from rl_assets.a2a.session import Session
from rl_assets.market.engine import money
from rl_assets.market.snapshot import FUNDING_UNIT, at_tick


def clock(session: Session) -> dict[str, Any]:
    """Where the episode stands, and what the agent sees now, as every policy reads it."""
    room = session.room
    known: dict[str, Any] = {
        "tick": min(room.tick + 1, room.config.ticks),
        "ticks": room.config.ticks,
        "open": room.full,
        "acted": session.acted,
        "order": session.order,
        "waitingFor": room.waiting_for,
        "finished": room.finished,
    }
    return known | ({"result": room.result(session)} if room.finished else {"observation": room.observation(session)})


def get_predictions(session: Session, params: Status) -> dict[str, Any]:
    if params.status == "resolved" or session.room.finished:
        return {"predictions": []}
    config, engine, row = session.room.config, session.engine, session.row
    predictions = []
    for place, name in enumerate(config.instruments[: config.markets]):
        yes = float(engine.prices[row, place])
        predictions.append(
            {
                "id": name,
                "question": f"Does market {name} resolve YES?",
                "yesPrice": money(yes),
                "noPrice": money(1.0 - yes),
                "earlierYesPrice": money(engine.earlier_prices[row, place]),
                "yesShares": money(config.liquidity * math.sqrt((1.0 - yes) / yes)),
                "noShares": money(config.liquidity * math.sqrt(yes / (1.0 - yes))),
                "liquidity": config.liquidity,
                "fee": config.fee,
                "createdAt": 0,
                "resolveAt": config.ticks * config.tick_seconds,
            }
        )
    return {"predictions": predictions}


def get_perpetuals(session: Session, params: NoParams) -> dict[str, Any]:
    config, engine, row = session.room.config, session.engine, session.row
    paid = session.room.snapshot.funding[engine.tick - 1] * FUNDING_UNIT if engine.tick else None
    perpetuals = []
    for place, ticker in enumerate(config.instruments[config.markets :]):
        perpetuals.append(
            {
                "ticker": ticker,
                "price": money(engine.perp_prices[row, place]),
                "earlierPrice": money(engine.earlier_perp_prices[row, place]),
                "firstPrice": money(engine.first_perp_prices[row, place]),
                "fundingRate": None if paid is None else money(paid[place]),
                "leverage": config.leverage,
                "takerFee": config.taker_fee,
            }
        )
    return {"perpetuals": perpetuals}


def get_feed(session: Session, params: GetFeed) -> dict[str, Any]:
    """Posts up to this tick, the newest first."""
    room, names = session.room, session.room.config.instruments
    said = [(number, p) for number, p in enumerate(room.snapshot.posts) if p.tick <= room.tick][::-1]
    return {
        "posts": [
            {
                "id": f"post-{number + 1}",
                "authorId": post.source,
                "authorName": f"@{post.source}",
                "content": f"{'up' if post.up else 'down'} {names[post.instrument]}",
                "marketId": names[post.instrument],
                "direction": "up" if post.up else "down",
                "tick": post.tick + 1,
                "createdAt": post.tick * room.config.tick_seconds,
            }
            for number, post in said[params.offset : params.offset + params.limit]
        ],
        "total": len(said),
    }


def get_chats(session: Session, params: NoParams) -> dict[str, Any]:
    """What can be joined, and what is said now where the agent has joined."""
    room, row = session.room, session.row
    config, names = room.config, room.config.instruments
    now = at_tick(room.snapshot.whispers, room.tick)
    return {
        "chats": [
            {
                "id": name,
                "name": f"#{name}",
                "price": price,
                "joined": bool(joined),
                "messages": [
                    {
                        "content": f"{'up' if post.up else 'down'} {names[post.instrument]}",
                        "marketId": names[post.instrument],
                        "direction": "up" if post.up else "down",
                        "tick": post.tick + 1,
                    }
                    for post in now
                    if joined and post.source == name
                ],
            }
            for name, price, joined in zip(
                config.channels, config.channel_prices, session.engine.joined[row], strict=True
            )
        ]
    }


def get_balance(session: Session, params: NoParams) -> dict[str, Any]:
    return {"balance": session.cash}


def get_portfolio(session: Session, params: NoParams) -> dict[str, Any]:
    positions = get_positions(session, params)
    return {
        "balance": session.cash,
        "equity": session.equity,
        "pnl": money(session.equity - session.room.config.start_cash),
        "positions": positions["predictionPositions"] + positions["perpPositions"],
    }


def get_positions(session: Session, params: NoParams) -> dict[str, Any]:
    config, engine, row = session.room.config, session.engine, session.row
    predictions, perpetuals = [], []
    for place, name in enumerate(config.instruments[: config.markets]):
        for outcome in ("YES", "NO"):
            shares = session.shares(place, outcome)
            if shares > 0:
                price = float(engine.prices[row, place])
                price = price if outcome == "YES" else 1.0 - price
                cost = session.costs.get(f"{name}-{outcome.lower()}", 0.0)
                predictions.append(
                    {
                        "positionId": f"{name}-{outcome.lower()}",
                        "marketId": name,
                        "outcome": outcome,
                        "shares": money(shares),
                        "entryPrice": money(cost / shares),
                        "price": money(price),
                        "value": money(shares * price),
                        "unrealizedPnl": money(shares * price - cost),
                    }
                )
    for place, ticker in enumerate(config.instruments[config.markets :]):
        units = float(engine.units[row, place])
        if units:
            price, entry = float(engine.perp_prices[row, place]), float(engine.entry[row, place])
            perpetuals.append(
                {
                    "positionId": ticker,
                    "ticker": ticker,
                    "side": "LONG" if units > 0 else "SHORT",
                    "units": money(abs(units)),
                    "margin": money(engine.margin[row, place]),
                    "leverage": config.leverage,
                    "entryPrice": money(entry),
                    "price": money(price),
                    "unrealizedPnl": money(units * (price - entry)),
                }
            )
    return {"predictionPositions": predictions, "perpPositions": perpetuals}


def get_dashboard(session: Session, params: NoParams) -> dict[str, Any]:
    positions = get_positions(session, params)
    return {
        "agent": session.agent,
        "balance": session.cash,
        "equity": session.equity,
        "totalPnl": money(session.equity - session.room.config.start_cash),
        "activePositions": sum(len(held) for held in positions.values()),
        "clock": clock(session),
    }
