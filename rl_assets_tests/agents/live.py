"""Live agents at a market on loopback, for tests of their ticks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from rl_assets.agents.coordinator import Report, run_tick
from rl_assets.agents.isolation import Play, Turn
from rl_assets.agents.turn import take_turn
from rl_assets.errors import RlAssetsError
from rl_assets.store.live import give_points, register
from rl_assets.turns import Job, Kind

HOUR = datetime(2025, 6, 3, 8, tzinfo=UTC)
WINDOW = "2025-06-03T08:00"
LINE = "babylon-agent"


def enrol(
    conn: psycopg.Connection,
    name: str,
    kind: Kind = "reference",
    policy: dict[str, Any] | None = None,
    *,
    points: int = 100,
    scenario: str = "calm",
    seconds: int = 200,
    memory_mb: int = 2048,
) -> str:
    """Register an agent with points; returns its id. Seconds are so many that a busy machine does not matter."""
    agent_id = register(conn, name, kind, policy or {}, scenario=scenario, cost=1, seconds=seconds, memory_mb=memory_mb)
    give_points(conn, name, points, "for a test")
    return agent_id


async def here(job: Job) -> Turn:
    """A turn as its process takes it, without the process."""
    turn = Turn()
    try:
        await take_turn(job, turn.take)
    except RlAssetsError as error:
        turn.failed = str(error)
    return turn


def tick(
    conn: psycopg.Connection, url: str, data_dir: Path, minute: int = 0, play: Play = here, late: int = 0
) -> dict[str, Report]:
    """Play the tick of a minute of the hour, `late` minutes later; the reports by name."""
    moment = HOUR + timedelta(minutes=minute)
    reports = run_tick(
        conn,
        moment,
        market_url=url,
        data_dir=data_dir,
        model_line=LINE,
        play=play,
        now=lambda: moment + timedelta(minutes=late),
    )
    return {report.name: report for report in reports}
