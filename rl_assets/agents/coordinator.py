"""The coordinator of live agents: at each tick, every agent with enough points takes a turn at a live market.

Agents play side by side, each in its own process (`isolation`); what a tick costs and what became of it is in the
ledger (`rl_assets.store.live`), so a tick that is asked for again, at once or after a crash, plays and costs nothing
twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from rl_assets.agents.isolation import Play, Turn, isolated
from rl_assets.episodes import digest, window_of
from rl_assets.errors import ConfigurationError, DatabaseError, MalformedInput, RlAssetsError
from rl_assets.store.live import (
    Begun,
    Known,
    LiveAgent,
    Not,
    alone,
    begin_tick,
    end_tick,
    last_played,
    live_agents,
)
from rl_assets.turns import MARKET_URL, Job, Past, Said
from rl_assets.windows import settles_at

AT_ONCE = 8
"""Agents in play at a time: most of a turn is waiting for a model or the market."""
SLACK = timedelta(minutes=1)
"""How far the clock of whoever names a tick may be ahead of ours."""
PLAYED, FAILED, LOST, RESTS, BUSY, REFUSED = "played", "failed", "lost", "rests", "busy", "refused"


@dataclass(frozen=True, slots=True)
class Report:
    """What a tick was for one agent. outcome: played, failed or lost, as it is in the ledger; `rests` for want of
    points, `busy` while somebody else plays the agent, `refused` where it could not be begun. points: that this call
    took. again: the outcome is of an earlier call."""

    name: str
    outcome: str
    reason: str | None = None
    points: int = 0
    balance: int | None = None
    trajectory_id: str | None = None
    again: bool = False


def market_url(given: str = "") -> str:
    """The market that is named here, or else by the environment. Raises ConfigurationError where none is."""
    url = given.strip() or os.environ.get(MARKET_URL, "").strip()
    if not url:
        raise ConfigurationError(
            f"no live market is named; set {MARKET_URL} to the URL of one that `rl-assets serve` runs"
        )
    return url


def tick_of(moment: datetime) -> datetime:
    """The tick that a moment belongs to: its minute, in UTC."""
    return moment.astimezone(UTC).replace(second=0, microsecond=0)


def read_moment(text: str) -> datetime:
    """A minute in UTC as a person writes it, or now. Raises ConfigurationError."""
    if not text:
        return datetime.now(UTC)
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M").replace(tzinfo=UTC)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no tick; write it like 2026-11-25T10:05, in UTC") from None


def why_nothing_to_do(agents: Sequence[LiveAgent]) -> str | None:
    """Why a tick would play nobody and what to do about it, or None where somebody can play."""
    active = [agent for agent in agents if agent.active]
    if not agents:
        return "no live agent is registered; register one with `rl-assets live register`"
    if not active:
        return f"no live agent is active, of {len(agents)} registered; register one again to start it"
    resting = [f"{agent.name}: {agent.rests}" for agent in active if agent.rests]
    if len(resting) == len(active):
        return f"every active live agent rests for want of points ({'; '.join(resting[:3])})"
    return None


def run_tick(
    conn: psycopg.Connection,
    moment: datetime,
    *,
    market_url: str,
    data_dir: Path,
    model_line: str,
    play: Play = isolated,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Report]:
    """Play the tick of a moment: one report per active agent, in order of name.

    Raises ConfigurationError for a tick that has not come, RemoteError where the market cannot be played (nobody has
    paid then), and DatabaseError where the database ends it: what was in play is then lost.
    """
    tick = tick_of(moment)
    if tick > now() + SLACK:
        raise ConfigurationError(f"the tick {tick:%Y-%m-%dT%H:%M} UTC has not come yet; wait for it, or leave it out")
    agents = live_agents(conn, active=True)
    if not agents:
        return []
    asyncio.run(check_market(market_url))
    coordinator = _Coordinator(conn, tick, market_url, data_dir / "live", model_line, play, now)
    try:
        return asyncio.run(coordinator.all(agents))
    except psycopg.Error as error:
        raise DatabaseError(f"the database ended the tick ({error}); see whether it runs, then run it again") from error


async def check_market(url: str) -> None:
    """Raises RemoteError where nothing can be played; asked before anybody pays."""
    from rl_assets.a2a.client import RemoteError, connect

    async with connect(url) as remote:
        if not remote.is_market:
            raise RemoteError(
                f"{url} has no session and clock to play by (a live Babylon server trades nothing over A2A); name a "
                "market that `rl-assets serve` runs"
            )


class _Coordinator:
    def __init__(
        self,
        conn: psycopg.Connection,
        tick: datetime,
        market_url: str,
        directory: Path,
        model_line: str,
        play: Play,
        now: Callable[[], datetime],
    ) -> None:
        self._conn, self._tick, self._window, self._play, self._now = conn, tick, window_of(tick), play, now
        self._market_url, self._directory, self._line = market_url, directory, model_line

    async def all(self, agents: Sequence[LiveAgent]) -> list[Report]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(agent: LiveAgent) -> Report:
            async with places:
                with alone(self._conn, agent.agent_id) as held:
                    if not held:
                        return Report(agent.name, BUSY, "another coordinator plays it now; its next tick goes on")
                    return await self._one(agent)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(agent)) for agent in agents]
        except ExceptionGroup as errors:  # only the database fails a tick; agents that fail are reported
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, agent: LiveAgent) -> Report:
        try:
            job = self._job(agent)
        except RlAssetsError as error:
            return Report(agent.name, REFUSED, str(error), balance=agent.points)
        began = datetime.now(UTC)
        in_time = self._now() + timedelta(seconds=agent.seconds) < settles_at(self._window)
        try:
            begun = begin_tick(self._conn, agent, self._tick, self._window, in_time=in_time)
        except psycopg.errors.UniqueViolation:
            return Report(agent.name, BUSY, "another coordinator has begun this tick; its next tick goes on")
        if isinstance(begun, Known):
            return Report(agent.name, begun.state, begun.reason, balance=agent.points, again=True)
        if begun is Not.PAID:
            return Report(agent.name, RESTS, agent.rests or "its points went elsewhere meanwhile", balance=agent.points)
        if not isinstance(begun, Begun):
            return Report(agent.name, REFUSED, f"the hour {self._window} is over; the next tick goes on")
        report = Report(agent.name, FAILED, points=agent.cost, balance=begun.points)
        turn = await self._play(job)
        try:
            trajectory_id = self._record(agent, job, turn, began, begun.points)
        except MalformedInput as error:
            turn = replace(turn, decision=None, failed=str(error))
            trajectory_id = self._record(agent, job, turn, began, begun.points)
        return replace(
            report, outcome=PLAYED if trajectory_id else FAILED, reason=turn.failed, trajectory_id=trajectory_id
        )

    def _job(self, agent: LiveAgent) -> Job:
        """Raises RlAssetsError where the agent's model is not to be had."""
        checkpoint, step = None, None
        if agent.kind == "model":
            from rl_assets.registry.models import get_latest_rl_model

            model = get_latest_rl_model(self._conn, self._line, agent.agent_id)
            checkpoint, step = str(model.checkpoint_path), model.step
        return Job(
            agent_id=agent.agent_id,
            name=agent.name,
            kind=agent.kind,
            policy=agent.policy,
            checkpoint=checkpoint,
            line=self._line if agent.kind == "model" else None,
            step=step,
            market_url=self._market_url,
            day_file=str(self._directory / f"{digest(agent.agent_id)[:24]}.json"),
            past=self._past(agent),
            seconds=agent.seconds,
            memory_mb=agent.memory_mb,
        )

    def _past(self, agent: LiveAgent) -> Past | None:
        """The agent's conversation in this window, or None where it has not begun or can no longer be read."""
        from rl_assets.store.episodes import read_episodes

        last = last_played(self._conn, agent.agent_id, self._window)
        if last is None:
            return None
        trajectory_id, day = last
        try:
            episode = read_episodes(self._conn, [trajectory_id])[trajectory_id]
        except MalformedInput:
            return None
        if episode.scenario_id != agent.scenario:
            return None
        said = tuple(Said(observation=s.observation, response=s.response, token_ids=s.token_ids) for s in episode.steps)
        return Past(day=day, policy=str(episode.policy), trajectory_id=trajectory_id, said=said)

    def _record(self, agent: LiveAgent, job: Job, turn: Turn, began: datetime, points: int) -> str | None:
        """Record what became of the tick; returns the trajectory of its step, None where it has none."""
        from rl_assets.store.live_record import record_step

        decision = turn.decision
        with self._conn.transaction():
            if decision is None:
                end_tick(
                    self._conn,
                    agent.agent_id,
                    self._tick,
                    reason=turn.failed,
                    witnessed=[*turn.accesses, *turn.replies],
                )
                return None
            trajectory_id = record_step(
                self._conn,
                decision,
                turn.accesses,
                agent_id=agent.agent_id,
                scenario=agent.scenario,
                window_id=self._window,
                points=points,
                began=began,
                continued=job.past.trajectory_id if job.past is not None and decision.continues else None,
            )
            end_tick(self._conn, agent.agent_id, self._tick, trajectory_id=trajectory_id, day=decision.day)
        return trajectory_id
