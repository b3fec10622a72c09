"""Snapshot files as Babylon's generator writes them, made from its description: one linear congruence for all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PERPS = (("BTC", 65_000), ("ETH", 3_200), ("SOL", 140), ("AVAX", 35), ("MATIC", 0.9))
QUESTIONS = tuple(f"Will it rain on day {day}?" for day in range(10))
CREATED = 1_700_000_000_000


def generated(
    seed: int = 12345,
    ticks: int = 6,
    markets: int = 3,
    perps: int = 2,
    agents: int = 2,
    interval: int = 60,
    created: int = CREATED,
    questions: Sequence[str] = QUESTIONS,
) -> dict[str, Any]:
    draws = _draws(seed)
    u = draws.__next__
    end = created + ticks * interval * 1000
    prediction = []
    for place in range(markets):
        if u() < 0.5:
            yes, no = 100 + u() * 300, 300 + u() * 700
        else:
            yes, no = 300 + u() * 700, 100 + u() * 300
        prediction.append(
            {
                "id": f"market-{place}",
                "question": questions[place % len(questions)],
                "yesShares": yes,
                "noShares": no,
                "yesPrice": yes / (yes + no),
                "noPrice": no / (yes + no),
                "totalVolume": 0,
                "liquidity": yes + no,
                "resolved": False,
                "createdAt": created,
                "resolveAt": end,
            }
        )
    perpetual = [
        {
            "ticker": PERPS[place % 5][0],
            "price": PERPS[place % 5][1],
            "priceChange24h": (u() - 0.5) * 10,
            "volume24h": 1_000_000 + u() * 2_000_000,
            "openInterest": 500_000 + u() * 1_000_000,
            "fundingRate": (u() - 0.5) * 0.002,
            "nextFundingTime": created + 8 * 3600 * 1000,
        }
        for place in range(perps)
    ]
    people = [
        {"id": f"agent-{i}", "name": f"Agent {i}", "reputation": 50 + u() * 50, "totalPnl": (u() - 0.5) * 1000}
        for i in range(agents)
    ]
    outcomes = {market["id"]: u() > 0.5 for market in prediction}
    history = {}
    for perp in perpetual:
        price, path = perp["price"], []
        for tick in range(ticks):
            price *= 1 + (u() - 0.48) * 0.02
            path.append({"tick": tick, "timestamp": 0, "price": price})
        history[perp["ticker"]] = path
    truth = {
        "marketOutcomes": outcomes,
        "priceHistory": history,
        "optimalActions": [
            {
                "tick": 1,
                "type": "buy_prediction",
                "target": name,
                "expectedValue": 100,
                "reason": f"Market {name} will resolve {'YES' if outcome else 'NO'}",
            }
            for name, outcome in outcomes.items()
        ],
        "socialOpportunities": [_opportunity(tick, u(), u(), u()) for tick in range(0, ticks, max(ticks // 5, 1))],
    }
    state = {
        "tick": 0,
        "timestamp": created,
        "predictionMarkets": prediction,
        "perpetualMarkets": perpetual,
        "agents": people,
    }
    first, played = _copy(state), []
    for number in range(ticks):
        events = []
        for perp in state["perpetualMarkets"]:
            new = history[perp["ticker"]][number]["price"]
            events.append(("price:updated", {"ticker": perp["ticker"], "oldPrice": perp["price"], "newPrice": new}))
            perp["price"] = new
        if u() > 0.5 and people and prediction:
            agent, market = people[int(u() * agents)], prediction[int(u() * markets)]
            side = "YES" if u() > 0.5 else "NO"
            trade = {"marketId": market["id"], "agentId": agent["id"], "outcome": side, "amount": 10 + u() * 90}
            events.append(("market:trade", trade))
        if u() > 0.7 and people and prediction:
            agent, market = people[int(u() * agents)], prediction[int(u() * markets)]
            mood = "bullish" if u() > 0.5 else "bearish"
            content = f"Market sentiment seems {mood} on {market['question']}"
            events.append(("post:created", {"authorId": agent["id"], "authorName": agent["name"], "content": content}))
        at = created + (number + 1) * interval * 1000
        state |= {"tick": number + 1, "timestamp": at}
        played.append(
            {
                "number": number,
                "timestamp": at,
                "events": [{"type": kind, "timestamp": created, "data": data} for kind, data in events],
                "state": _copy(state),
            }
        )
    return {
        "id": str(created),
        "version": "1.0.0",
        "createdAt": created,
        "duration": ticks * interval,
        "tickInterval": interval,
        "initialState": first,
        "ticks": played,
        "groundTruth": truth,
    }


def with_prices(file: dict[str, Any], ticker: str, prices: Sequence[float]) -> dict[str, Any]:
    """The file with another path of a perpetual, one price per tick, wherever the file tells it."""
    file = _copy(file)
    file["groundTruth"]["priceHistory"][ticker] = [
        {"tick": tick, "timestamp": 0, "price": price} for tick, price in enumerate(prices)
    ]
    before = next(perp["price"] for perp in file["initialState"]["perpetualMarkets"] if perp["ticker"] == ticker)
    for tick, price in zip(file["ticks"], prices, strict=True):
        for perp in tick["state"]["perpetualMarkets"]:
            if perp["ticker"] == ticker:
                perp["price"] = price
        for event in tick["events"]:
            if event["data"].get("ticker") == ticker:
                event["data"] |= {"oldPrice": before, "newPrice": price}
        before = price
    return file


def with_shares(file: dict[str, Any], market: int, shares: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The file with other reserves of a market, (yes, no) per state, and the prices that follow from them."""
    file = _copy(file)
    states = [file["initialState"], *(tick["state"] for tick in file["ticks"])]
    for state, (yes, no) in zip(states, shares, strict=True):
        total = yes + no
        state["predictionMarkets"][market] |= {
            "yesShares": yes,
            "noShares": no,
            "yesPrice": yes / total,
            "noPrice": no / total,
            "liquidity": total,
        }
    return file


def written(directory: Path, content: Any, name: str = "snapshot.json") -> Path:
    path = directory / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _opportunity(tick: int, kind: float, value: float, words: float) -> dict[str, Any]:
    return {
        "tick": tick,
        "type": "insider_signal" if kind > 0.5 else "group_invite",
        "value": 50 + value * 150,
        "description": "Insider information about market outcome"
        if words > 0.5
        else f"Invitation to high-value trading group {tick}",
    }


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _draws(state: int) -> Iterator[float]:
    while True:
        state = (1_664_525 * state + 1_013_904_223) % 2**32
        yield state / 2**32
