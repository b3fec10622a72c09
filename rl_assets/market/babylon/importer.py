"""From Babylon's snapshot file to a snapshot and its sealed truth, which part here for good."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rl_assets.episodes import digest
from rl_assets.errors import MalformedInput
from rl_assets.market.babylon.format import BabylonFile, GameState
from rl_assets.market.babylon.parse import parse_babylon
from rl_assets.market.babylon.snapshot import (
    FORMAT,
    TRUTH_FORMAT,
    BabylonSnapshot,
    BabylonTruth,
    snapshot_from,
    truth_from,
)

MARKET_COLUMNS = ("yesShares", "noShares", "totalVolume")
PERP_COLUMNS = ("price", "priceChange24h", "volume24h", "openInterest", "fundingRate")
AGENT_COLUMNS = ("reputation", "totalPnl")


def import_babylon(path: Path) -> tuple[BabylonSnapshot, BabylonTruth]:
    """Read, check and split a file of version 1.0.0. Raises MalformedInput that names file, path within and fault.

    The id is the hash of the content without the file's wall clock. Derived numbers (yesPrice, noPrice, liquidity) have
    been checked and are not kept.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MalformedInput(f"{path} cannot be read: {error.strerror}; name a Babylon snapshot file") from error
    file = parse_babylon(text, str(path))
    sealed = _sealed(file)
    return snapshot_from(_public(file, digest(sealed))), truth_from(sealed)


def _public(file: BabylonFile, truth_digest: str) -> dict[str, Any]:
    first, states = file.initialState, [state for _, state in file.states]
    since = file.createdAt

    def columns(names: Iterable[str], parts: Callable[[GameState], Sequence[Any]]) -> dict[str, list[list[float]]]:
        return {name: _folded([[getattr(part, name) for part in parts(state)] for state in states]) for name in names}

    return {
        "format": FORMAT,
        "version": file.version,
        "duration": file.duration,
        "tickInterval": file.tickInterval,
        "markets": [
            {"id": m.id, "question": m.question, "createdAt": m.createdAt - since, "resolveAt": m.resolveAt - since}
            for m in first.predictionMarkets
        ],
        "perps": [perp.ticker for perp in first.perpetualMarkets],
        "agents": [{"id": agent.id, "name": agent.name} for agent in first.agents],
        "columns": {
            **columns(MARKET_COLUMNS, lambda state: state.predictionMarkets),
            **columns(PERP_COLUMNS, lambda state: state.perpetualMarkets),
            **columns(AGENT_COLUMNS, lambda state: state.agents),
            "nextFundingTime": _folded([[p.nextFundingTime - since for p in s.perpetualMarkets] for s in states]),
        },
        "events": [
            [{**event.model_dump(), "timestamp": event.timestamp - since} for event in tick.events]
            for tick in file.ticks
        ],
        "truth_digest": truth_digest,
    }


def _sealed(file: BabylonFile) -> dict[str, Any]:
    """The ground truth by place instead of by name. prices has a row per state; priceHistory was checked against it."""
    truth = file.groundTruth
    return {
        "format": TRUTH_FORMAT,
        "version": file.version,
        "outcomes": [truth.marketOutcomes[market.id] for market in file.initialState.predictionMarkets],
        "prices": [[perp.price for perp in state.perpetualMarkets] for _, state in file.states],
        "optimalActions": [action.model_dump() for action in truth.optimalActions],
        "socialOpportunities": [opportunity.model_dump() for opportunity in truth.socialOpportunities],
    }


def _folded(rows: list[list[float]]) -> list[list[float]]:
    """One row for all where they never change, which is nearly everything in a file."""
    return rows[:1] if all(row == rows[0] for row in rows) else rows
