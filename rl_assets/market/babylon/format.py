"""Babylon's snapshot file, version 1.0.0: its shape, as types. What its parts must agree on belongs in `consistency`.

Times are whole milliseconds, prices and volumes dollars.
`yesPrice` is yes/(yes + no), the inverse of the live game's price for the same reserves.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

VERSION = "1.0.0"
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
