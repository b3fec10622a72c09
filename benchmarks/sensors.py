"""Sensors: what a tick asks of the database, and a claim of 1000, at growing numbers of recorded trajectories.

python -m benchmarks.sensors [ROWS ...]      10000, 1000000 and 10000000 unless told, which take 6 GB of disk

Where other work is going on, the milliseconds of CPU say more than those of the clock: of this process and of the
server's, taken together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import psycopg

from benchmarks.server import cpu_of, migrated_server
from benchmarks.timing import Seconds, measure
from rl_assets.automation.sensors import MOST_WINDOWS
from rl_assets.registry.models import register_base
from rl_assets.store.agents import provision_agents
from rl_assets.store.database import connect
from rl_assets.store.episodes import changed_windows
from rl_assets.store.ledger import claim_batch, readiness
from rl_assets.training.trigger import Runs, look
from rl_assets.windows import Watch, plan

LINE = "bench"
MEMBERS = 8
PER_BATCH = 125
"""Groups of a batch."""
PER_WINDOW = 1000
"""Episodes of an hour."""
NEWS = 2000
"""Rows that nobody has judged yet, in the newest hours."""
BIG = ("trajectories", "offers", "offered_episodes", "groups")
READS, CLAIMS = 50, 9
CLAIMED = 1000
"""Episodes of a claim; half of those that wait, where they are fewer than two claims."""
LEAST = 100
"""Rows of which enough wait for two claims."""

FILL = """
INSERT INTO trajectories ("id", "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId",
  "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus",
  "usedInTraining", "judgedAt", "createdAt", "updatedAt")
SELECT n::text, lpad(n::text, 20, '0'), %(agent)s, at, at, 1000, to_char(at, 'YYYY-MM-DD"T"HH24:00'), '[]', '{}', '{}',
  '{}', 0, 0, 'completed', n <= %(used)s,
  CASE WHEN n <= %(rows)s - %(news)s THEN at END, at, at
FROM (SELECT n, %(now)s::timestamp - ((%(rows)s - n) / %(window)s) * interval '1 hour' AS at
      FROM generate_series(1, %(rows)s) AS n) AS moments;

INSERT INTO rl_assets.judgement_sets (id, window_id, judge, judge_version, body)
VALUES ('set', '2026-01-01T00:00', 'outcome', '1', '{}');

INSERT INTO rl_assets.groups (group_id, window_id, model_line, step, members, judged_in)
SELECT 'group-' || lpad(g::text, 12, '0'), lpad((g * %(members)s / %(window)s)::text, 12, '0'), %(line)s, 0,
  %(members)s, CASE WHEN g %% 50 > 0 THEN 'set' END
FROM generate_series(1, %(rows)s / %(members)s) AS g;

INSERT INTO rl_assets.batches (id, model_line, base_step, state, episodes, groups, manifest)
SELECT 'batch-' || b, %(line)s, 0, 'rejected', %(batch)s * %(members)s, %(batch)s, '{}'
FROM generate_series(0, %(rows)s / %(members)s / 2 / %(batch)s) AS b;

INSERT INTO rl_assets.offers (model_line, step, window_id, group_id, judgement_set, members, trajectory_ids, rewards,
  batch_id)
SELECT %(line)s, 0, lpad((g * %(members)s / %(window)s)::text, 12, '0'), 'group-' || lpad(g::text, 12, '0'), 'set',
  %(members)s,
  (SELECT array_agg(lpad(n::text, 20, '0')) FROM generate_series((g - 1) * %(members)s + 1, g * %(members)s) AS n),
  (SELECT array_agg(n::float8) FROM generate_series(1, %(members)s) AS n),
  CASE WHEN g <= %(rows)s / %(members)s / 2 THEN 'batch-' || (g / %(batch)s) END
FROM generate_series(1, %(rows)s / %(members)s) AS g;

INSERT INTO rl_assets.offered_episodes (offer_id, trajectory_id)
SELECT id, unnest(trajectory_ids) FROM rl_assets.offers
"""
"""Half of the episodes are trained on, half wait, one group in fifty has no verdict, and the newest rows are news."""


def fill(conn: psycopg.Connection, rows: int, news: int = NEWS) -> None:
    agent = provision_agents(conn, ["bench"])["bench"]
    register_base(conn, LINE, Path("/nowhere/0000"), "0" * 64, metrics={})
    values = {
        "agent": agent,
        "rows": rows,
        "used": 0 if news == rows else rows // MEMBERS // 2 * MEMBERS,
        "news": news,
        "now": datetime.now(UTC).replace(tzinfo=None),
        "window": PER_WINDOW,
        "members": MEMBERS,
        "line": LINE,
        "batch": PER_BATCH,
    }
    conn.execute("SET synchronous_commit = off")
    # An index that is built at once takes a fraction of the time of one that grows row by row.
    indexes = conn.execute(
        """SELECT indexname, indexdef FROM pg_indexes
           WHERE tablename = 'trajectories' AND indexdef NOT LIKE 'CREATE UNIQUE%'"""
    ).fetchall()
    for name, _ in indexes:
        conn.execute(f'DROP INDEX "{name}"')  # pyright: ignore[reportArgumentType, reportCallIssue]
    conn.execute("ALTER TABLE trajectories DISABLE TRIGGER ALL")
    for statement in FILL.split(";\n"):
        conn.execute(statement, values)  # pyright: ignore[reportArgumentType, reportCallIssue]
    conn.execute("ALTER TABLE trajectories ENABLE TRIGGER ALL")
    for _, definition in indexes:
        conn.execute(definition)
    conn.execute("VACUUM ANALYZE")
    conn.execute("CHECKPOINT")
    conn.execute("SET synchronous_commit = on")


def claim(conn: psycopg.Connection, episodes: int) -> None:
    batch = claim_batch(conn, model_line=LINE, base_step=0, minimum=episodes, forced_by=None)
    assert batch is not None and batch.episodes == episodes


def end(conn: psycopg.Connection) -> None:
    """Bring the batch in flight to its end, so that another can be claimed."""
    conn.execute("UPDATE rl_assets.batches SET state = 'rejected' WHERE state = 'reserved'")


def scans(conn: psycopg.Connection, work: Callable[[], object]) -> set[str]:
    """Big tables that a piece of work read from end to end, as Postgres explains each of its statements."""
    said: list[str] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        said.append(notice.message_primary or "")

    conn.add_notice_handler(note)
    for setting in ("auto_explain.log_min_duration = 0", "auto_explain.log_nested_statements = on"):
        conn.execute(f"SET {setting}")  # pyright: ignore[reportArgumentType, reportCallIssue]
    conn.execute("SET client_min_messages = log")
    work()
    conn.execute("RESET client_min_messages")
    conn.execute("SET auto_explain.log_min_duration = -1")
    conn.remove_notice_handler(note)
    plans = "\n".join(said)
    assert "Scan" in plans
    return {table for table in BIG if f"Seq Scan on {table}" in plans or f"Seq Scan on rl_assets.{table}" in plans}


def milliseconds(seconds: Seconds) -> str:
    low, high = min(seconds.runs) * 1000, max(seconds.runs) * 1000
    return f"{seconds.median * 1000:8.2f} ms ({low:.2f} … {high:.2f})"


def at(rows: int) -> None:
    with migrated_server() as url, connect(url) as conn:
        conn.execute("LOAD 'auto_explain'")
        filling = measure(lambda: fill(conn, rows), 1, warm_up=0)
        measured(conn, rows, filling)


def backlog(rows: int) -> None:
    """A look at a database that nobody has read yet, as the sensor takes it at its first tick."""
    with migrated_server() as url, connect(url) as conn:
        fill(conn, rows, news=rows)

        def first_look() -> None:
            taken, _ = plan(Watch(), changed_windows(conn, None), set(), datetime.now(UTC), MOST_WINDOWS)
            assert taken

        told = milliseconds(measure(first_look, READS, warm_up=5))
        print(f"{rows:,} trajectories that nobody has read\n  {'first look at windows':26} {told}", flush=True)


def measured(conn: psycopg.Connection, rows: int, filling: Seconds) -> None:
    since = datetime.now(UTC) - timedelta(hours=1)
    nobody = Runs(None, frozenset())
    reads: dict[str, Callable[[], object]] = {
        "readiness": lambda: readiness(conn, LINE, 0),
        "changed_windows": lambda: list(changed_windows(conn, since)),
        "look below the threshold": lambda: look(conn, model_line=LINE, minimum=rows, runs_of=lambda _: nobody),
    }
    ready = readiness(conn, LINE, 0)
    print(f"{rows:,} trajectories, {ready.fresh:,} of them waiting (filled in {filling.median:.0f} s)")
    for name, work in reads.items():
        told = milliseconds(measure(work, READS, warm_up=5))
        cpu = cpu_of(conn, lambda work=work: measure(work, READS, warm_up=0)) / READS
        print(f"  {name:26} {told}   CPU {cpu:6.2f} ms   scans: {scans(conn, work) or 'none'}")
    times, cpu = [], []
    size = min(CLAIMED, ready.fresh // 2 // MEMBERS * MEMBERS)
    for _ in range(min(CLAIMS, ready.fresh // size - 1)):
        cpu.append(cpu_of(conn, lambda: times.extend(measure(lambda: claim(conn, size), 1, warm_up=0).runs)))
        end(conn)
    told, read = milliseconds(Seconds(tuple(times))), scans(conn, lambda: claim(conn, size))
    print(f"  {f'claim of {size}':26} {told}   CPU {median(cpu):6.2f} ms   scans: {read or 'none'}", flush=True)


def main(sizes: list[int]) -> None:
    if any(rows < LEAST for rows in sizes):
        sys.exit(f"benchmarks.sensors needs at least {LEAST} rows, so that some can be claimed")
    for rows in sizes or [10_000, 1_000_000, 10_000_000]:
        at(rows)
    backlog(min(max(sizes, default=1_000_000), 1_000_000))


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
