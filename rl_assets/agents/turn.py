"""A live agent's turn at an A2A market: take its place in the market day, look, decide, act, and tell all of it.

This runs in the agent's own process (`live_process`). The token of a market day is read and written here alone, in a
file that only this account can read; what is told holds neither it nor a key.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from a2a.client.errors import A2AClientHTTPError
from pydantic import BaseModel, ValidationError

from rl_assets.a2a.client import Remote, RemoteError, RemoteRefusal, connect
from rl_assets.a2a.market_client import Clock, clock_of, field, join, moved, number, opened, read_config
from rl_assets.a2a.player import act
from rl_assets.agents.deciders import decider_of
from rl_assets.episodes import digest
from rl_assets.errors import RlAssetsError
from rl_assets.market.actions import to_orders
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do
from rl_assets.turns import JOIN_KEY, Decision, Job

Tell = Callable[[str, Any], None]
"""Passes on one thing that happened: `access`, `reply` or `decision`, with its value as JSON."""
MOVE_SECONDS = 10.0
"""How long a turn waits for the others of a shared clock, to join and to act. Where they do not act in time, the step's
reward is that of the order alone."""
TRADES = {Do.BUY_YES, Do.BUY_NO, Do.SELL_YES, Do.SELL_NO, Do.LONG, Do.SHORT, Do.CLOSE}
_SECRETS = ("token", "session", "key")


class MarketDay(BaseModel):
    """An agent's place in a market. id: how this project calls it. rules, market: as joining told them."""

    id: str
    url: str
    token: str
    rules: str
    market: dict[str, Any]

    @property
    def config(self) -> WorldConfig:
        """Raises RemoteError where the market does not describe a world of this version."""
        return read_config(self.market)


class Witness(Remote):
    """A server of which each call and its answer are told, without tokens and keys."""

    def __init__(self, remote: Remote, tell: Tell) -> None:
        super().__init__(remote.card, remote.client, remote.http)
        self._tell = tell
        self.purpose = "look at the market before deciding"

    async def call(self, operation: str, params: dict[str, Any] | None = None) -> Any:
        told: dict[str, Any] = {"providerName": operation, "purpose": self.purpose, "query": _without(params or {})}
        began = time.time()
        try:
            result = await super().call(operation, params)
        except RemoteRefusal as refusal:
            self._tell("access", {**told, **_timed(began), "data": {"error": str(refusal)}})
            raise
        data = _without(result) if isinstance(result, dict) else {"result": result}
        self._tell("access", {**told, **_timed(began), "data": data})
        return result


async def take_turn(job: Job, tell: Tell) -> None:
    """Take one turn and tell the decision. Raises RlAssetsError where there is none; what was told stays told."""
    path = Path(job.day_file)
    day = read_day(path, job.market_url)
    if day is not None:
        async with connect(job.market_url) as remote:
            witness = Witness(remote, tell)
            clock = await _resumed(witness, day)
            if clock is not None:
                await _decide(job, witness, day, clock, tell, path)
                return
    async with connect(job.market_url) as remote:
        if not remote.is_market:
            raise RemoteError(f"{job.market_url} is no market with a clock; serve one with `rl-assets serve`")
        witness = Witness(remote, tell)
        day, clock = await _joined(witness, job)
        write_day(path, day)
        await _decide(job, witness, day, clock, tell, path)


def read_day(path: Path, url: str) -> MarketDay | None:
    """The place that was kept for a market, or None where there is none that can be used."""
    try:
        day = MarketDay.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # one that is broken is worth no more than none: the agent joins again
    return day if day.url == url else None


def write_day(path: Path, day: MarketDay) -> None:
    """Keep a place, readable by this account alone, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(json.dumps(day.model_dump()))
    beside.replace(path)


async def _resumed(market: Witness, day: MarketDay) -> Clock | None:
    """The clock of a day that goes on, or None where it is over or the market has forgotten it."""
    market.send_header("Authorization", f"Bearer {day.token}")
    try:
        clock = await clock_of(market)
    except RemoteError as error:
        cause = error.__cause__
        if isinstance(cause, A2AClientHTTPError) and cause.status_code == 401:
            return None
        raise
    return None if clock.finished else clock


async def _joined(market: Witness, job: Job) -> tuple[MarketDay, Clock]:
    place = await join(market, job.name, os.environ.get(JOIN_KEY))
    day = MarketDay(id=uuid.uuid4().hex, url=job.market_url, token=place.token, rules=place.rules, market=place.market)
    return day, place.clock


async def _decidable(market: Remote, clock: Clock) -> Clock:
    """The clock of a tick that this agent may decide. Raises RlAssetsError where the others do not let it come."""
    clock = await opened(market, clock, MOVE_SECONDS)
    if not clock.open:
        raise RlAssetsError("the market opens when all its agents have joined; register as many as it has places")
    if clock.acted:
        clock = await moved(market, clock.tick, MOVE_SECONDS)
    if clock.finished or clock.acted:
        raise RlAssetsError(
            "the market has not moved since this agent's last order: others of its clock have not acted"
        )
    return clock


async def _decide(job: Job, market: Witness, day: MarketDay, clock: Clock, tell: Tell, path: Path) -> None:
    config, clock = day.config, await _decidable(market, clock)
    decider = decider_of(job)
    past = job.past
    continues = past is not None and past.day == day.id and past.policy == str(decider.policy)
    said = past.said if past is not None and continues else ()
    before = await market.call("getPortfolio")
    account = _account(before)
    seed = int(digest([job.agent_id, day.id])[:8], 16) >> 1
    reply = await decider.decide(market, config, clock, day.rules, said, seed)
    tell("reply", {"model": str(decider.policy), "userPrompt": clock.observation, "response": reply.text})
    orders, (action,), (invalid,) = to_orders([reply.text], config)
    market.purpose = "carry out the decision"
    acted = await act(market, orders, config, clock, MOVE_SECONDS)
    after, error = acted.clock, None if acted.refusal is None else invalid or acted.refusal
    market.purpose = "see what came of the decision"
    settled = after.result if after.finished else await market.call("getPortfolio")
    fee = acted.answer.get("fee", 0.0)
    tell(
        "decision",
        Decision(
            day=day.id,
            continues=continues,
            system=day.rules,
            policy=decider.policy.name,
            step=decider.policy.step,
            temperature=decider.sampling.temperature if decider.sampling else None,
            max_tokens=decider.sampling.max_tokens if decider.sampling else None,
            tick=clock.tick - 1,
            observation=clock.observation,
            response=reply.text,
            token_ids=reply.token_ids,
            logprobs=reply.logprobs,
            prompt_tokens=reply.prompt_tokens,
            latency_ms=reply.latency_ms,
            action=action,
            valid=error is None,
            error=error,
            equity_before=account["equity"],
            equity=number(settled, "equity", "account"),
            traded=error is None and int(orders.do[0]) in TRADES,
            fee=fee if isinstance(fee, (int, float)) else 0.0,
            environment={
                "agentBalance": account["balance"],
                "agentPnL": account["pnl"],
                "openPositions": len(account["positions"]),
                "activeMarkets": config.markets + config.perps,
            },
            result={name: value for name, value in acted.answer.items() if name != "clock"}
            | ({"day": settled} if after.finished else {}),
        ).model_dump(),
    )
    if after.finished:
        path.unlink(missing_ok=True)


def _account(portfolio: Any) -> dict[str, Any]:
    numbers = {name: number(portfolio, name, "account") for name in ("balance", "equity", "pnl")}
    return {**numbers, "positions": field(portfolio, "positions", list, "account")}


def _without(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in _SECRETS}


def _timed(began: float) -> dict[str, int]:
    return {"timestamp": int(began * 1000), "latencyMs": round(1000 * (time.time() - began))}
