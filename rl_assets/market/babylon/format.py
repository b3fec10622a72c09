"""Babylon's snapshot file, version 1.0.0: its shape as types, and what its parts must agree on.

What becomes of a file that holds belongs in `importer`. Times are whole milliseconds, prices and volumes dollars.
`yesPrice` is yes/(yes + no), the inverse of the live game's price for the same reserves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from rl_assets.errors import MalformedInput

VERSION = "1.0.0"
TOLERANCE = 1e-9
"""Relative difference that rounding may leave between a stated number and the ones that it follows from."""
FUNDING_MS = 8 * 3600 * 1000

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=5000)]
Millis = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Positive = Annotated[float, Field(ge=1e-9, le=1e12)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class Part(BaseModel):
    """Nothing is converted, nothing unknown is let through, and no number is NaN or infinite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class PredictionMarket(Part):
    id: Name
    question: Text
    yesShares: Positive
    noShares: Positive
    yesPrice: Probability
    noPrice: Probability
    totalVolume: Amount
    liquidity: Positive
    resolved: bool
    createdAt: Millis
    resolveAt: Millis


class PerpetualMarket(Part):
    ticker: Name
    price: Positive
    priceChange24h: Number
    volume24h: Amount
    openInterest: Amount
    fundingRate: Annotated[float, Field(ge=-1, le=1)]
    nextFundingTime: Millis


class SimulatedAgent(Part):
    id: Name
    name: Text
    reputation: Number
    totalPnl: Number


class GameState(Part):
    tick: Count
    timestamp: Millis
    predictionMarkets: list[PredictionMarket]
    perpetualMarkets: list[PerpetualMarket]
    agents: list[SimulatedAgent]


class PriceChange(Part):
    ticker: Name
    oldPrice: Positive
    newPrice: Positive


class Trade(Part):
    marketId: Name
    agentId: Name
    outcome: Literal["YES", "NO"]
    amount: Positive


class NewPost(Part):
    authorId: Name
    authorName: Text
    content: Text


class PriceUpdated(Part):
    type: Literal["price:updated"]
    timestamp: Millis
    data: PriceChange


class MarketTrade(Part):
    type: Literal["market:trade"]
    timestamp: Millis
    data: Trade


class PostCreated(Part):
    type: Literal["post:created"]
    timestamp: Millis
    data: NewPost


Event = Annotated[PriceUpdated | MarketTrade | PostCreated, Field(discriminator="type")]


class Tick(Part):
    number: Count
    timestamp: Millis
    events: list[Event]
    state: GameState


class HistoricPrice(Part):
    tick: Count
    timestamp: Millis
    price: Positive


class OptimalAction(Part):
    tick: Count
    type: Literal["buy_prediction", "sell_prediction", "open_perp", "close_perp"]
    target: Name
    expectedValue: Number
    reason: Text


class SocialOpportunity(Part):
    tick: Count
    type: Literal["insider_signal", "group_invite"]
    value: Amount
    description: Text


class GroundTruth(Part):
    marketOutcomes: dict[Name, bool]
    priceHistory: dict[Name, list[HistoricPrice]]
    optimalActions: list[OptimalAction]
    socialOpportunities: list[SocialOpportunity]


class BabylonFile(Part):
    id: Name
    version: Literal["1.0.0"]
    createdAt: Annotated[int, Field(gt=0, le=2**52)]
    duration: Positive
    tickInterval: Annotated[int, Field(ge=1, le=86_400)]
    initialState: GameState
    ticks: Annotated[list[Tick], Field(min_length=1, max_length=100_000)]
    groundTruth: GroundTruth

    @property
    def states(self) -> Iterator[tuple[str, GameState]]:
        """Every state with its path in the file, in order of time."""
        return chain(
            [("initialState", self.initialState)],
            ((f"ticks[{number}].state", tick.state) for number, tick in enumerate(self.ticks)),
        )


def parse_babylon(text: bytes, where: str) -> BabylonFile:
    """A file from its bytes. Raises MalformedInput that names the file, the path within it and the fault."""
    try:
        raw = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{where} is not JSON: {_plain(error)}; export the snapshot again") from error
    try:
        file = BabylonFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fault = f"{_path(first['loc'])}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    else:
        fault = next(_faults(file), None)
        if fault is None:
            return file
    raise MalformedInput(f"{where} is not a Babylon snapshot {VERSION}: {_plain(fault)}; export it again")


def _faults(file: BabylonFile) -> Iterator[str]:
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


def _path(location: Sequence[int | str]) -> str:
    """`ticks[3].state.tick` from pydantic's location, without the names of event types that it puts into it."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif ":" not in part:
            text += f".{part}"
    return text.removeprefix(".") or "the file"


def _plain(words: object) -> str:
    """Words on one line, without what a file could do to a terminal, and not longer than a line or two."""
    text = "".join(c if c.isprintable() else "?" for c in str(words))
    return text if len(text) <= 240 else f"{text[:240]}..."


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice in one object")
    return made
