"""A live agent's turn at an A2A market: take its place in the market day, look, decide, act, and tell all of it.

This runs in the agent's own process (`live_process`). The token of a market day is read and written here alone, in a
file that only this account can read; what is told holds neither it nor a key.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from a2a.client.errors import A2AClientHTTPError
from pydantic import BaseModel, ValidationError

from rl_assets.a2a.client import Remote, RemoteError, RemoteRefusal, connect
from rl_assets.a2a.player import as_operation
from rl_assets.agents.deciders import decider_of
from rl_assets.agents.remote import as_text
from rl_assets.episodes import digest
from rl_assets.errors import RlAssetsError
from rl_assets.market.actions import to_orders
from rl_assets.market.engine import Do, Orders
from rl_assets.market.snapshot import WorldConfig
from rl_assets.turns import JOIN_KEY, Decision, Job

Tell = Callable[[str, Any], None]
"""Passes on one thing that happened: `access`, `reply` or `decision`, with its value as JSON."""
MOVE_SECONDS = 10.0
"""How long a turn waits for the others of a shared clock, to join and to act. Where they do not act in time, the step's
reward is that of the order alone."""
TRADES = {Do.BUY_YES, Do.BUY_NO, Do.SELL_YES, Do.SELL_NO, Do.LONG, Do.SHORT, Do.CLOSE}
_SECRETS = ("token", "session", "key")


class MarketDay(BaseModel):
    """An agent's place in a market. id: how this project calls it. rules, instruments, market: as joining told them."""

    id: str
    url: str
    token: str
    rules: str
    instruments: list[str]
    market: dict[str, Any]

    @property
    def config(self) -> WorldConfig:
        """Raises RemoteError where the market does not describe a world of this version."""
        try:
            config = WorldConfig(**self.market)
            if self.instruments != list(config.instruments):
                raise ValueError("the instruments do not fit the market")
        except (TypeError, ValueError, RlAssetsError) as error:
            raise RemoteError(
                f"the market's answer to join cannot be read ({error}); is it of this version?"
            ) from error
        return config


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


async def _resumed(market: Witness, day: MarketDay) -> dict[str, Any] | None:
    """The clock of a day that goes on, or None where it is over or the market has forgotten it."""
    market.send_header("Authorization", f"Bearer {day.token}")
    try:
        clock = _clock(await market.call("getClock"))
    except RemoteError as error:
        cause = error.__cause__
        if isinstance(cause, A2AClientHTTPError) and cause.status_code == 401:
            return None
        raise
    return None if _told(clock, "finished") else clock


async def _joined(market: Witness, job: Job) -> tuple[MarketDay, dict[str, Any]]:
    key = os.environ.get(JOIN_KEY)
    told = await market.call("join", {"agent": job.name, "fastForward": True} | ({"key": key} if key else {}))
    try:
        day = MarketDay(
            id=uuid.uuid4().hex,
            url=job.market_url,
            token=told["token"],
            rules=as_text(told["rules"]),
            instruments=told["instruments"],
            market=told["market"],
        )
        clock = told["clock"]
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        said = type(error).__name__  # its text may repeat the token
        raise RemoteError(f"the market's answer to join cannot be read ({said}); is it of this version?") from None
    market.send_header("Authorization", f"Bearer {day.token}")
    return day, clock


async def _decide(job: Job, market: Witness, day: MarketDay, clock: dict[str, Any], tell: Tell, path: Path) -> None:
    config, deadline = day.config, time.monotonic() + MOVE_SECONDS
    while not _told(clock, "open") and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        clock = _clock(await market.call("getClock"))
    if not _told(clock, "open"):
        raise RlAssetsError("the market opens when all its agents have joined; register as many as it has places")
    if _told(clock, "acted"):
        clock = await _moved(market, clock)
    if _told(clock, "finished") or _told(clock, "acted"):
        raise RlAssetsError(
            "the market has not moved since this agent's last order: others of its clock have not acted"
        )
    decider = decider_of(job)
    past = job.past
    continues = past is not None and past.day == day.id and past.policy == str(decider.policy)
    said = past.said if past is not None and continues else ()
    before = await market.call("getPortfolio")
    account = _account(before)
    clock["observation"] = as_text(str(_told(clock, "observation")))
    seed = int(digest([job.agent_id, day.id])[:8], 16) >> 1
    reply = await decider.decide(market, config, clock, day.rules, said, seed)
    tell("reply", {"model": str(decider.policy), "userPrompt": clock["observation"], "response": reply.text})
    orders, (action,), (unreadable,) = to_orders([reply.text], config)
    market.purpose = "carry out the decision"
    after, answer, error = await _act(market, orders, config, clock, unreadable)
    market.purpose = "see what came of the decision"
    finished = _told(after, "finished")
    settled = _told(after, "result") if finished else await market.call("getPortfolio")
    fee = answer.get("fee", 0.0)
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
            tick=_told(clock, "tick") - 1,
            observation=clock["observation"],
            response=reply.text,
            token_ids=reply.token_ids,
            logprobs=reply.logprobs,
            prompt_tokens=reply.prompt_tokens,
            latency_ms=reply.latency_ms,
            action=action,
            valid=error is None,
            error=error,
            equity_before=account["equity"],
            equity=_told(settled, "equity"),
            traded=error is None and int(orders.do[0]) in TRADES,
            fee=fee if isinstance(fee, (int, float)) else 0.0,
            environment={
                "agentBalance": account["balance"],
                "agentPnL": account["pnl"],
                "openPositions": len(account["positions"]),
                "activeMarkets": config.markets + config.perps,
            },
            result={name: value for name, value in answer.items() if name != "clock"}
            | ({"day": settled} if finished else {}),
        ).model_dump(),
    )
    if finished:
        path.unlink(missing_ok=True)


async def _act(
    market: Remote, orders: Orders, config: WorldConfig, clock: dict[str, Any], unreadable: str | None
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Place the order and let the market move: the clock after it, what the market answered, and why it was refused."""
    tick, answer, error = _told(clock, "tick"), {}, None
    try:
        operation, params = await as_operation(market, orders, config)
        if operation != "advance":
            answer = await market.call(operation, params)
    except RemoteRefusal as refusal:
        error = unreadable or str(refusal)
    after = _clock(answer) if answer else _clock(await market.call("advance", {"tick": tick, "wait": 0.0}))
    if not _told(after, "finished") and _told(after, "tick") == tick:
        after = await _moved(market, after)
    return after, answer, error


async def _moved(market: Remote, clock: dict[str, Any]) -> dict[str, Any]:
    """The clock once the others have acted too, or as it is when the wait is over."""
    tick, deadline = _told(clock, "tick"), time.monotonic() + MOVE_SECONDS
    while not _told(clock, "finished") and _told(clock, "tick") == tick and (left := deadline - time.monotonic()) > 0:
        clock = _clock(await market.call("advance", {"tick": tick, "wait": min(left, 3.0)}))
    return clock


def _account(portfolio: Any) -> dict[str, Any]:
    try:
        numbers = {name: float(portfolio[name]) for name in ("balance", "equity", "pnl")}
        positions = list(portfolio["positions"])
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteError(f"the agent's account cannot be read ({error!r}); is the market of this version?") from error
    if not np.isfinite(list(numbers.values())).all():
        raise RemoteError("the agent's account holds what is no number of dollars; is the market of this version?")
    return {**numbers, "positions": positions}


def _clock(answer: Any) -> dict[str, Any]:
    clock = answer.get("clock") if isinstance(answer, dict) else None
    if not isinstance(clock, dict):
        raise RemoteError("the market's answer lacks its clock; is it of this version?")
    return clock


def _told(clock: dict[str, Any], name: str) -> Any:
    if name not in clock:
        raise RemoteError(f"the market's clock lacks {name!r}; is it of this version?")
    return clock[name]


def _without(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in _SECRETS}


def _timed(began: float) -> dict[str, int]:
    return {"timestamp": int(began * 1000), "latencyMs": round(1000 * (time.time() - began))}
