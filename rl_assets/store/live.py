"""Live agents in Postgres: who is registered, the points that they have and spend, and what became of each tick.

Points are Babylon's own balance, "agentPointsBalance" of its "User"; `rl_assets.points` is the ledger of what is given
and taken here. A tick is begun and paid in one transaction and ended in another, with its step:

    begin    row in `live_ticks` (playing) + row in `points` + the balance       committed before anything is played
    play     in the agent's own process                                          under the agent's advisory lock
    end      the step in `trajectories` and `llm_call_logs` + the row (played), or the row (failed) with the reason

Whoever dies in between leaves a row `playing` without a lock. The next who comes by makes it `lost`: its order may have
reached the market, so it is neither played nor paid for again. Ticks end up played, failed or lost, and cost once.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from rl_assets.errors import DatabaseError, MalformedInput
from rl_assets.store.agents import provision_agents
from rl_assets.store.locks import Lock, session_lock
from rl_assets.store.record import naive
from rl_assets.text import storable
from rl_assets.turns import Kind

PREFIX = "live-"
"""Of the names that agents are provisioned under which Babylon does not know."""
LOST = "its coordinator ended in the middle of it; its order may have been placed, so it is not played again"
MOST_POINTS = 1_000_000_000
MOST_REASON = 1000
"""Characters of a reason, which may repeat what a stranger's server said."""


@dataclass(frozen=True, slots=True)
class LiveAgent:
    """A registered agent. points: its balance. last_tick, last_state, last_reason: of its newest tick."""

    agent_id: str
    name: str
    kind: Kind
    policy: dict[str, Any]
    scenario: str
    cost: int
    seconds: int
    memory_mb: int
    active: bool
    points: int
    last_tick: datetime | None
    last_state: str | None
    last_reason: str | None

    @property
    def rests(self) -> str | None:
        """Why the agent has no points for a tick and what to do, or None where it has them."""
        if self.points >= self.cost:
            return None
        return f"it has {self.points} points and a tick costs {self.cost}: `rl-assets live points {self.name} 100`"


@dataclass(frozen=True, slots=True)
class Begun:
    """A tick that was begun and paid. points: the balance after it."""

    points: int


@dataclass(frozen=True, slots=True)
class Known:
    """A tick that was begun before. state: played, failed or lost. reason: of the last two."""

    state: str
    reason: str | None


class Not(Enum):
    """Why a tick was not begun: too few points, or too late for its window."""

    PAID = "paid"
    IN_TIME = "in time"


def register(
    conn: psycopg.Connection,
    name: str,
    kind: Kind,
    policy: dict[str, Any],
    *,
    scenario: str,
    cost: int,
    seconds: int,
    memory_mb: int,
) -> str:
    """Register an agent, or change how a registered one plays; returns its id. It is active afterwards.

    An agent of Babylon is found by its user name; another is provisioned. Raises DatabaseError where a person has the
    name.
    """
    with conn.transaction():
        user = conn.execute('SELECT "id", "isAgent" FROM "User" WHERE "username" = %s', [name]).fetchone()
        if user is not None and not user[1]:
            raise DatabaseError(f"user {name} is a person, not an agent; register another name")
        agent_id = user[0] if user is not None else provision_agents(conn, [PREFIX + name])[PREFIX + name]
        conn.execute(
            """INSERT INTO rl_assets.live_agents (agent_id, name, kind, policy, scenario, cost, seconds, memory_mb)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
               ON CONFLICT (agent_id) DO UPDATE
               SET kind = excluded.kind, policy = excluded.policy, scenario = excluded.scenario, cost = excluded.cost,
                   seconds = excluded.seconds, memory_mb = excluded.memory_mb, active = true, updated_at = now()""",
            [agent_id, name, kind, Jsonb(policy), scenario, cost, seconds, memory_mb],
        )
    return agent_id


def stop(conn: psycopg.Connection, name: str) -> None:
    """Let an agent play no more, until it is registered again. Raises MalformedInput for a name that is not."""
    changed = conn.execute(
        "UPDATE rl_assets.live_agents SET active = false, updated_at = now() WHERE name = %s", [name]
    )
    if not changed.rowcount:
        raise _unknown(name)


def give_points(conn: psycopg.Connection, name: str, points: int, reason: str) -> int:
    """Give an agent points, or take some where `points` is negative; returns its balance.

    Raises MalformedInput where none of that name is registered, or it would have fewer than none.
    """
    with conn.transaction():
        found = conn.execute("SELECT agent_id FROM rl_assets.live_agents WHERE name = %s", [name]).fetchone()
        if found is None:
            raise _unknown(name)
        row = conn.execute(
            """UPDATE "User" SET "agentPointsBalance" = "agentPointsBalance" + %(points)s, "updatedAt" = %(now)s
               WHERE "id" = %(id)s AND "agentPointsBalance"::bigint + %(points)s BETWEEN 0 AND %(most)s
               RETURNING "agentPointsBalance" """,
            {"points": points, "now": naive(datetime.now(UTC)), "id": found[0], "most": MOST_POINTS},
        ).fetchone()
        if row is None:
            raise MalformedInput(f"{name} would have fewer than 0 or over {MOST_POINTS} points; give another number")
        conn.execute(
            "INSERT INTO rl_assets.points (agent_id, points, balance, reason) VALUES (%s, %s, %s, %s)",
            [found[0], points, row[0], reason],
        )
    return int(row[0])


def live_agents(conn: psycopg.Connection, *, active: bool = False) -> list[LiveAgent]:
    """Every registered agent in order of name, or only those that are active."""
    with conn.cursor(row_factory=class_row(LiveAgent)) as cursor:
        return cursor.execute(
            """SELECT a.agent_id, a.name, a.kind, a.policy, a.scenario, a.cost, a.seconds, a.memory_mb, a.active,
                      u."agentPointsBalance" AS points, t.tick AS last_tick, t.state AS last_state,
                      t.reason AS last_reason
               FROM rl_assets.live_agents AS a JOIN "User" AS u ON u."id" = a.agent_id
               LEFT JOIN LATERAL (SELECT tick, state, reason FROM rl_assets.live_ticks WHERE agent_id = a.agent_id
                                  ORDER BY tick DESC LIMIT 1) AS t ON true
               WHERE a.active OR NOT %s ORDER BY a.name""",
            [active],
        ).fetchall()


def alone(conn: psycopg.Connection, agent_id: str) -> AbstractContextManager[bool]:
    """Hold an agent, for as long as the block runs or the connection lives; False where somebody else does."""
    return session_lock(conn, Lock.AGENT, agent_id, wait=False)


def begin_tick(
    conn: psycopg.Connection, agent: LiveAgent, tick: datetime, window_id: str, *, in_time: bool = True
) -> Begun | Known | Not:
    """Begin a tick that is in time and take its points, in one transaction. Call it while the agent is held (`alone`):
    what an earlier holder has left unfinished is lost from now on."""
    with conn.transaction():
        conn.execute(
            """UPDATE rl_assets.live_ticks SET state = 'lost', reason = %s, ended_at = clock_timestamp()
               WHERE agent_id = %s AND state = 'playing'""",
            [LOST, agent.agent_id],
        )
        known = conn.execute(
            "SELECT state, reason FROM rl_assets.live_ticks WHERE agent_id = %s AND tick = %s", [agent.agent_id, tick]
        ).fetchone()
        if known is not None:
            return Known(*known)
        if not in_time:
            return Not.IN_TIME
        now = naive(datetime.now(UTC))
        paid = conn.execute(
            """UPDATE "User" SET "agentPointsBalance" = "agentPointsBalance" - %(cost)s, "agentLastTickAt" = %(now)s,
                 "updatedAt" = %(now)s
               WHERE "id" = %(id)s AND "agentPointsBalance" >= %(cost)s RETURNING "agentPointsBalance" """,
            {"cost": agent.cost, "now": now, "id": agent.agent_id},
        ).fetchone()
        if paid is None:
            return Not.PAID
        conn.execute(
            "INSERT INTO rl_assets.live_ticks (agent_id, tick, window_id, state) VALUES (%s, %s, %s, 'playing')",
            [agent.agent_id, tick, window_id],
        )
        conn.execute(
            "INSERT INTO rl_assets.points (agent_id, tick, points, balance, reason) VALUES (%s, %s, %s, %s, 'tick')",
            [agent.agent_id, tick, -agent.cost, paid[0]],
        )
        return Begun(int(paid[0]))


def end_tick(
    conn: psycopg.Connection,
    agent_id: str,
    tick: datetime,
    *,
    trajectory_id: str | None = None,
    day: str | None = None,
    reason: str | None = None,
    witnessed: list[dict[str, Any]] | None = None,
) -> None:
    """End a tick: played, with the trajectory that holds its step, or failed, with the reason and what was witnessed.

    Raises DatabaseError where the tick is not being played: it was lost meanwhile. Call it in the transaction that
    records the step, which is then not recorded either.
    """
    changed = conn.execute(
        """UPDATE rl_assets.live_ticks SET state = %s, trajectory_id = %s, day = %s, reason = %s, witnessed = %s,
             ended_at = clock_timestamp()
           WHERE agent_id = %s AND tick = %s AND state = 'playing'""",
        [
            "failed" if trajectory_id is None else "played",
            trajectory_id,
            day,
            None if reason is None else storable(reason)[:MOST_REASON],
            json.dumps(witnessed) if witnessed else None,
            agent_id,
            tick,
        ],
    )
    if not changed.rowcount:
        raise DatabaseError(f"the tick {tick:%Y-%m-%dT%H:%M} of agent {agent_id} was lost while it was played")


def last_played(conn: psycopg.Connection, agent_id: str, window_id: str) -> tuple[str, str] | None:
    """Trajectory and market day of an agent's newest recorded step, where that is of this window."""
    return conn.execute(
        """SELECT trajectory_id, day FROM rl_assets.live_ticks
           WHERE agent_id = %s AND state = 'played' AND window_id = %s ORDER BY tick DESC LIMIT 1""",
        [agent_id, window_id],
    ).fetchone()


def _unknown(name: str) -> MalformedInput:
    return MalformedInput(f"no live agent is called {name[:80]!r}; see `rl-assets live list`")
