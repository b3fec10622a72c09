"""One turn of a live agent, as its coordinator, its own process and the store pass it on.

A turn is one decision at one tick of the coordinator. Nothing here holds a secret: what a market gave an agent to come
back with stays in a file that only the agent's process reads.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

MARKET_URL = "LIVE_MARKET_URL"
"""Variable that names the market of the live agents; their schedule is on where it is set."""
JOIN_KEY = "RL_ASSETS_A2A_KEY"
"""Variable with what a market wants to be sent by those who join."""
Kind = Literal["model", "reference", "endpoint"]


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Said(_Told):
    """An earlier turn of the same conversation. token_ids: of the response, empty where there are none."""

    observation: str
    response: str
    token_ids: tuple[int, ...] = ()


class Past(_Told):
    """The conversation that a turn may go on with: it does if market day and policy are still the same."""

    day: str
    policy: str
    trajectory_id: str
    said: tuple[Said, ...]


class Job(_Told):
    """What an agent's process is given. policy: how a `reference` or `endpoint` is told from others of its kind.
    checkpoint, line, step: of a `model`. day_file: where the process keeps its place in the market day. seconds of wall
    time and memory_mb (MiB of data): what it may take."""

    agent_id: str
    name: str
    kind: Kind
    policy: dict[str, Any]
    checkpoint: str | None = None
    line: str | None = None
    step: int | None = None
    market_url: str
    day_file: str
    past: Past | None = None
    seconds: int
    memory_mb: int


class Decision(_Told):
    """What an agent decided, and what came of it. continues: it went on with `Past`. tick: of the market day, from 0.
    equity_before and equity: dollars, marked to market, before the order and after the market has moved. fee: dollars.
    environment: Babylon's environmentState. result: the market's own answer to the order."""

    day: str
    continues: bool
    system: str
    policy: str
    step: int | None
    temperature: FiniteFloat | None
    max_tokens: int | None
    tick: int = Field(ge=0)
    observation: str
    response: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[FiniteFloat, ...] = ()
    prompt_tokens: int = 0
    latency_ms: int = 0
    action: dict[str, Any]
    valid: bool
    error: str | None = None
    equity_before: FiniteFloat
    equity: FiniteFloat
    traded: bool
    fee: FiniteFloat = 0.0
    environment: dict[str, Any]
    result: dict[str, Any]
