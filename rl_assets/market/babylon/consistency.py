"""What the parts of a snapshot file must agree on, beyond the shape of each, which is in `format`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rl_assets.market.babylon.format import FUNDING_MS, BabylonFile, GameState, PriceChange, Tick, Trade

TOLERANCE = 1e-9
"""Relative difference that rounding may leave between a stated number and the ones that it follows from."""


def faults(file: BabylonFile) -> Iterator[str]:
    """What the parts of a file disagree on, each with its path."""
    first = file.initialState
    yield from _repeated([m.id for m in first.predictionMarkets], "initialState.predictionMarkets", "id")
    yield from _repeated([a.id for a in first.agents], "initialState.agents", "id")
    if not first.predictionMarkets and not first.perpetualMarkets:
        yield "initialState: there is neither a prediction market nor a perpetual"
    wanted = int(file.duration // file.tickInterval)
    if len(file.ticks) != wanted:
        yield f"ticks: there are {len(file.ticks)}, a duration of {file.duration:g} s asks for {wanted}"
    for number, tick in enumerate(file.ticks):
        at = file.createdAt + (number + 1) * file.tickInterval * 1000
        for path, value, right in (
            ("number", tick.number, number),
            ("timestamp", tick.timestamp, at),
            ("state.tick", tick.state.tick, number + 1),
            ("state.timestamp", tick.state.timestamp, at),
        ):
            if value != right:
                yield f"ticks[{number}].{path} is {value}, not {right}"
    for path, value, right in (
        ("initialState.tick", first.tick, 0),
        ("initialState.timestamp", first.timestamp, file.createdAt),
    ):
        if value != right:
            yield f"{path} is {value}, not {right}"
    for path, state in file.states:
        yield from _state_faults(file, path, state)
    before = first
    for number, tick in enumerate(file.ticks):
        yield from _event_faults(file, f"ticks[{number}].events", tick, before)
        before = tick.state
    yield from _truth_faults(file)


def _state_faults(file: BabylonFile, path: str, state: GameState) -> Iterator[str]:
    first = file.initialState
    last = file.ticks[-1].timestamp
    for name, fixed in (
        ("predictionMarkets", ("id", "question", "createdAt", "resolveAt")),
        ("perpetualMarkets", ("ticker",)),
        ("agents", ("id", "name")),
    ):
        now, then = getattr(state, name), getattr(first, name)
        if len(now) != len(then):
            yield f"{path}.{name}: there are {len(now)}, {len(then)} in initialState"
            return
        for place, (ours, theirs) in enumerate(zip(now, then, strict=True)):
            for field in fixed:
                if getattr(ours, field) != getattr(theirs, field):
                    yield f"{path}.{name}[{place}].{field} is not what initialState says"
    for place, market in enumerate(state.predictionMarkets):
        at = f"{path}.predictionMarkets[{place}]"
        total = market.yesShares + market.noShares
        for field, right in (
            ("liquidity", total),
            ("yesPrice", market.yesShares / total),
            ("noPrice", market.noShares / total),
        ):
            if abs(getattr(market, field) - right) > TOLERANCE * right:
                yield f"{at}.{field} is {getattr(market, field)}, its shares make it {right}"
        if market.resolved:
            yield f"{at}.resolved is true, but markets resolve after the last tick"
        if not market.createdAt <= file.createdAt or market.resolveAt < last:
            yield f"{at}: it is not open from the first tick to the last"
    for place, (perp, begun) in enumerate(zip(state.perpetualMarkets, first.perpetualMarkets, strict=True)):
        at = f"{path}.perpetualMarkets[{place}].nextFundingTime"
        late = perp.nextFundingTime - begun.nextFundingTime
        if begun.nextFundingTime <= file.createdAt:
            yield f"{at}: the first funding is not after createdAt"
        if late < 0 or late % FUNDING_MS:
            yield f"{at} is not a whole number of 8 hours after the first"


def _event_faults(file: BabylonFile, path: str, tick: Tick, before: GameState) -> Iterator[str]:
    markets = {m.id for m in before.predictionMarkets}
    agents = {a.id: a.name for a in before.agents}
    changes = []
    for place, event in enumerate(tick.events):
        at = f"{path}[{place}]"
        if not file.createdAt <= event.timestamp <= tick.timestamp:
            yield f"{at}.timestamp is outside the time from createdAt to this tick"
        data = event.data
        if isinstance(data, PriceChange):
            changes.append((at, data))
        elif isinstance(data, Trade):
            if data.marketId not in markets:
                yield f"{at}.data.marketId: there is no market {data.marketId}"
            if data.agentId not in agents:
                yield f"{at}.data.agentId: there is no agent {data.agentId}"
        elif data.authorId not in agents:
            yield f"{at}.data.authorId: there is no agent {data.authorId}"
        elif agents[data.authorId] != data.authorName:
            yield f"{at}.data.authorName is not the name of {data.authorId}"
    moves = zip(before.perpetualMarkets, tick.state.perpetualMarkets, strict=True)
    for change, perps in zip_longest(changes, moves):
        if change is None or perps is None:
            yield f"{path}: {len(changes)} price:updated for {len(before.perpetualMarkets)} perpetuals"
            return
        (at, data), (old, new) = change, perps
        for field, right in (("ticker", old.ticker), ("oldPrice", old.price), ("newPrice", new.price)):
            if getattr(data, field) != right:
                yield f"{at}.data.{field} is {getattr(data, field)}, the states say {right}"


def _truth_faults(file: BabylonFile) -> Iterator[str]:
    truth, first = file.groundTruth, file.initialState
    markets = [m.id for m in first.predictionMarkets]
    tickers = [p.ticker for p in first.perpetualMarkets]
    for path, found, wanted in (
        ("marketOutcomes", set(truth.marketOutcomes), set(markets)),
        ("priceHistory", set(truth.priceHistory), set(tickers)),
    ):
        for name in sorted(wanted - found):
            yield f"groundTruth.{path}: {name} is missing"
        for name in sorted(found - wanted):
            yield f"groundTruth.{path}: there is no {name} in initialState"
    for place, ticker in enumerate(tickers):
        path, history = f"groundTruth.priceHistory.{ticker}", truth.priceHistory.get(ticker, [])
        if len(history) != len(file.ticks):
            yield f"{path}: there are {len(history)} prices for {len(file.ticks)} ticks"
            continue
        for number, (entry, tick) in enumerate(zip(history, file.ticks, strict=True)):
            if entry.tick != number:
                yield f"{path}[{number}].tick is {entry.tick}, not {number}"
            if entry.timestamp not in (0, tick.timestamp):
                yield f"{path}[{number}].timestamp is neither 0 nor that of its tick"
            if entry.price != tick.state.perpetualMarkets[place].price:
                yield f"{path}[{number}].price is not the price in ticks[{number}].state.perpetualMarkets[{place}]"
    for name, entries in (("optimalActions", truth.optimalActions), ("socialOpportunities", truth.socialOpportunities)):
        for place, entry in enumerate(entries):
            if entry.tick >= max(len(file.ticks), 2):
                yield f"groundTruth.{name}[{place}].tick is {entry.tick}, after the last"
    for place, action in enumerate(truth.optimalActions):
        if action.target not in (tickers if action.type.endswith("perp") else markets):
            yield f"groundTruth.optimalActions[{place}].target: there is no {action.target}"


def _repeated(names: Sequence[str], path: str, field: str) -> Iterator[str]:
    seen: set[str] = set()
    for place, name in enumerate(names):
        if name in seen:
            yield f"{path}[{place}].{field}: {name} is there twice"
        seen.add(name)
