"""Postgres: recording episodes against a bare COPY of the same bytes, and reading them back.

python -m benchmarks.store [EPISODES] [REPEATS]
"""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime

import psycopg

from benchmarks.server import cpu_of, migrated_server
from benchmarks.timing import measure, side_by_side
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.market.generate import generate
from rl_assets.store.agents import provision_agents
from rl_assets.store.database import connect
from rl_assets.store.episodes import new_ids, read_episodes, write_episodes
from rl_assets.store.record import CALL_COLUMNS, TRAJECTORY_COLUMNS, call_rows, trajectory_row


def copied(conn: psycopg.Connection, table: str, columns: tuple[str, ...], text: bytes) -> None:
    """A bare COPY: ready-made bytes straight into the table, with nothing computed on the way."""
    names = ", ".join(f'"{name}"' for name in columns)
    with conn.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:  # pyright: ignore
        copy.write(text)


def as_copied(conn: psycopg.Connection, table: str, columns: tuple[str, ...], ids: list[str]) -> bytes:
    """The bytes by which COPY would bring the rows of these episodes back."""
    names = ", ".join(f'"{name}"' for name in columns)
    chosen = ", ".join(f"'{one}'" for one in ids)
    query = f'COPY (SELECT {names} FROM {table} WHERE "trajectoryId" IN ({chosen})) TO STDOUT'
    buffer = io.BytesIO()
    with conn.cursor() as cursor, cursor.copy(query) as copy:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for block in copy:
            buffer.write(block)
    return buffer.getvalue()


def main(episodes: int = 2000, repeats: int = 5) -> None:
    worlds = [generate("train", seed) for seed in range(episodes // 4)]
    with migrated_server() as url, connect(url) as conn:
        agent_id = provision_agents(conn, ["bench"])["bench"]
        agent = ReferenceAgent("random")
        record = play([Assignment(agent, agent_id, 4)], worlds, seed=0, new_ids=new_ids)
        write_episodes(conn, record)
        ids = [episode.trajectory_id for episode in record]
        raw = [
            (table, columns, as_copied(conn, table, columns, ids))
            for table, columns in (("trajectories", TRAJECTORY_COLUMNS), ("llm_call_logs", CALL_COLUMNS))
        ]

        def bare() -> None:
            with conn.transaction():
                conn.execute('DELETE FROM trajectories WHERE "trajectoryId" = ANY(%s)', [ids])
                conn.execute('DELETE FROM llm_call_logs WHERE "trajectoryId" = ANY(%s)', [ids])
            with conn.transaction():
                for table, columns, text in raw:
                    copied(conn, table, columns, text)

        def ours() -> None:
            with conn.transaction():
                conn.execute('DELETE FROM trajectories WHERE "trajectoryId" = ANY(%s)', [ids])
                conn.execute('DELETE FROM llm_call_logs WHERE "trajectoryId" = ANY(%s)', [ids])
            write_episodes(conn, record)

        a, b, times = side_by_side(ours, bare, repeats)
        read = measure(lambda: read_episodes(conn, ids), repeats)

        def cleared() -> None:
            conn.execute("TRUNCATE trajectories, llm_call_logs CASCADE")

        cpu = []
        for work in (lambda: write_episodes(conn, record), lambda: [copied(conn, *one) for one in raw]):
            cleared()
            cpu.append(cpu_of(conn, work))
    now = datetime.now(UTC)
    rendering = measure(
        lambda: [
            (trajectory_row(one, one.trajectory_id, now), call_rows(one, [""] * len(one.steps), now)) for one in record
        ],
        repeats,
    )
    size = sum(len(text) for _, _, text in raw) / 1e6
    print(f"{len(record):,} episodes of 12 ticks, {size:.1f} MB as COPY text; median of {repeats} (min … max)")
    print(f"  write_episodes         {a.rate(len(record))} episodes/s")
    print(f"  bare COPY, same bytes  {b.rate(len(record))} episodes/s")
    print(f"  ours at {times} of the bare COPY's speed; rendering the rows takes {rendering} s of it")
    print(f"  CPU of client and server: {cpu[0]:.0f} ms, bare {cpu[1]:.0f} ms, or {cpu[1] / cpu[0]:.2f}×")
    print(f"  read_episodes          {read.rate(len(record))} episodes/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
