"""Episodes in Postgres: written in bulk, read by window or by id, and which windows have news."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Composed, Identifier, Literal

from rl_assets.collector import paused_collector
from rl_assets.episodes import WINDOW_FORMAT, Episode
from rl_assets.errors import DatabaseError, MalformedInput
from rl_assets.store.parse import Decoded, Malformed, decode, to_episode
from rl_assets.store.record import CALL_COLUMNS, TRAJECTORY_COLUMNS, call_rows, naive, trajectory_row
from rl_assets.windows import Changes, WindowState

LIMIT_BYTES = 16 * 2**20
"""Rows with more JSON than this are rejected unread: thousands of times what an episode takes."""
CHUNK = 200
"""Rows in memory as text at a time."""
RAW_CHARACTERS = 2000
NEWS_ROWS = 10_000
"""Changed rows that are looked at together: some milliseconds by their index."""
RECENT = timedelta(hours=48)
"""How far back windows are looked at on a database without an index on changes."""

_WINDOW = SQL("""CASE WHEN "windowId" IS NULL OR "windowId" >= 'A' THEN to_char("endTime", 'YYYY-MM-DD"T"HH24:00')
                      ELSE "windowId" END""")
"""A row's hour. Some recorders name no window, or a benchmark; the others would have named the hour of its end."""
_NEWS = SQL('"updatedAt" IS DISTINCT FROM "judgedAt" AND NOT "usedInTraining"')
_COLUMNS = SQL("""
    "trajectoryId", "agentId", "scenarioId", "finalPnL", "isTrainingData", "isEvaluation", {window} AS "window",
    "updatedAt"::text AS "version",
    (extract(epoch FROM "startTime") * 1000)::float8 AS "startMs",
    (extract(epoch FROM "endTime") * 1000)::float8 AS "endMs",
    octet_length("stepsJson") AS "bytes", octet_length("metadataJson") AS "metadataBytes",
    CASE WHEN octet_length("stepsJson") <= {limit} THEN "stepsJson" END AS "stepsJson",
    CASE WHEN octet_length("metadataJson") <= {limit} THEN "metadataJson" END AS "metadataJson"
""")
_IDS_OF_HOUR = """
    SELECT "trajectoryId" FROM (
      SELECT "trajectoryId" FROM trajectories WHERE "windowId" = %(window)s
      UNION ALL SELECT "trajectoryId" FROM trajectories WHERE ("windowId" IS NULL OR "windowId" >= 'A')
                                                          AND "endTime" >= %(start)s AND "endTime" < %(end)s) AS hour
    ORDER BY "trajectoryId" COLLATE "C"
"""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not an episode. raw: the beginning of its steps as they are stored."""

    trajectory_id: str
    reason: str
    detail: str
    raw: str


@dataclass(frozen=True, slots=True)
class WindowPart:
    """Some rows of a window, in order of trajectory id.

    versions: of each row by trajectory id, its `updatedAt` as Postgres writes it.
    """

    episodes: list[Episode]
    rejects: list[Reject]
    versions: dict[str, str]


def new_ids(n: int) -> list[str]:
    """n ids that no other process makes: decimal, in order of time like Babylon's, but with 48 random bits per call."""
    if n > 2**20:
        raise ValueError(f"{n} ids at once; ask for at most {2**20}")
    first = (time.time_ns() // 1_000_000 << 68) | (secrets.randbits(48) << 20)
    return [str(first + number) for number in range(n)]


@paused_collector()
def write_episodes(conn: psycopg.Connection, episodes: Sequence[Episode]) -> int:
    """Record episodes and their calls in one transaction; returns how many.

    Raises MalformedInput if one cannot be stored, DatabaseError if an agent is unknown or an episode already recorded;
    then nothing is written.
    """
    now = datetime.now(UTC)
    try:
        with conn.transaction(), conn.cursor() as cursor:
            with cursor.copy(_copy("trajectories", TRAJECTORY_COLUMNS)) as copy:
                for episode, row_id in zip(episodes, new_ids(len(episodes)), strict=True):
                    copy.write_row(trajectory_row(episode, row_id, now))
            with cursor.copy(_copy("llm_call_logs", CALL_COLUMNS)) as copy:
                for episode in episodes:
                    for row in call_rows(episode, new_ids(len(episode.steps)), now):
                        copy.write_row(row)
    except psycopg.DataError as error:
        raise MalformedInput(f"an episode does not fit Babylon's columns ({error}); correct what made it") from error
    except psycopg.errors.ForeignKeyViolation as error:
        raise DatabaseError(
            f"an episode's agent is unknown ({error.diag.message_detail}); provision it first"
        ) from error
    except psycopg.errors.UniqueViolation as error:
        raise DatabaseError(
            f"an episode is already recorded ({error.diag.message_detail}); give it a new id"
        ) from error
    return len(episodes)


def read_window(conn: psycopg.Connection, window_id: str, *, limit_bytes: int = LIMIT_BYTES) -> Iterator[WindowPart]:
    """Every row of an hour, of any known shape, as of one moment, each once and in order of trajectory id.

    A part holds up to CHUNK rows, so that an hour of any size can be read. A malformed row becomes a reject and stops
    nothing. Rows that are fine but of no use to training are episodes whose `not_trainable` says why.
    """
    start = datetime.strptime(window_id, WINDOW_FORMAT)
    parameters = {"window": window_id, "start": start, "end": start + timedelta(hours=1)}
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Sorted without their texts, of which an hour may hold more than a disk has room to sort.
        ids = [identity for (identity,) in conn.execute(_IDS_OF_HOUR, parameters)]
        for first in range(0, len(ids), CHUNK):
            yield _part(conn, ids[first : first + CHUNK], limit_bytes)


@paused_collector()
def _part(conn: psycopg.Connection, trajectory_ids: Sequence[str], limit_bytes: int) -> WindowPart:
    part = WindowPart([], [], {})
    for one, version in _read(conn, trajectory_ids, limit_bytes):
        part.versions[one.trajectory_id] = version
        if isinstance(one, Episode):
            part.episodes.append(one)
        else:
            part.rejects.append(one)
    return part


@paused_collector()
def read_episodes(conn: psycopg.Connection, trajectory_ids: Sequence[str]) -> dict[str, Episode]:
    """The named episodes. Raises MalformedInput if one of them is not there or is not readable."""
    episodes: dict[str, Episode] = {}
    with conn.transaction():
        for first in range(0, len(trajectory_ids), CHUNK):
            for one, _ in _read(conn, trajectory_ids[first : first + CHUNK], LIMIT_BYTES):
                if isinstance(one, Reject):
                    raise MalformedInput(f"episode {one.trajectory_id} is {one.reason} ({one.detail}); restore its row")
                episodes[one.trajectory_id] = one
    missing = sorted(set(trajectory_ids) - episodes.keys())
    if missing:
        raise MalformedInput(
            f"{len(missing)} episodes are gone from the database, first {missing[0]}; restore their rows"
        )
    return episodes


def changed_windows(
    conn: psycopg.Connection, since: datetime | None, first: str = "", rows: int = NEWS_ROWS
) -> Iterator[Changes]:
    """Windows from the first on with a row changed at `since` or later, by so many rows at a time, those that changed
    first before others.

    At least one part comes. A window whose rows are in several parts is in each of them. A change that consists in a
    judgement mirrored to the row, or in its use in training, is no news. An index on news answers this; a database
    that Babylon made lacks it, and then only windows of the last 48 hours before `since` are looked at
    (`sql/babylon.sql` has the index, for an operator to add).
    """
    oldest = since.astimezone(UTC) - RECENT if since is not None and not has_news_index(conn) else None
    while True:
        part = _changed_windows(conn, since, oldest, first, rows)
        yield part
        if part.reached is None:
            return
        since = part.reached + timedelta(milliseconds=1)  # as fine as Babylon's columns are


def _changed_windows(
    conn: psycopg.Connection, since: datetime | None, oldest: datetime | None, first: str, rows: int
) -> Changes:
    conditions, parameters = [SQL('isfinite("updatedAt")')], dict[str, Any](first=first, rows=rows)
    if since is not None:
        conditions.append(SQL('"updatedAt" >= %(since)s'))
        parameters["since"] = naive(since)
    if oldest is not None:
        conditions.append(SQL('("windowId" >= %(oldest)s OR "windowId" IS NULL AND "endTime" >= %(ended)s)'))
        parameters |= {"oldest": oldest.strftime(WINDOW_FORMAT), "ended": naive(oldest)}
    # What a part says of a window's newest change is true of all of its news, or else each part would tell another.
    query = SQL("""
        WITH part AS (
          SELECT {window} AS "window", "updatedAt" FROM trajectories WHERE {news} AND {conditions}
          ORDER BY "updatedAt" FETCH FIRST %(rows)s ROWS WITH TIES),
        ended AS (SELECT CASE WHEN count(*) >= %(rows)s THEN max("updatedAt") END AS "reached" FROM part),
        news AS (SELECT "window", max("updatedAt") AS "newest" FROM part GROUP BY 1)
        SELECT "reached", "window", (SELECT count(*) FROM trajectories WHERE "windowId" = "window"),
               greatest("newest", CASE WHEN "reached" IS NOT NULL THEN (
                 SELECT max("updatedAt") FROM trajectories WHERE "windowId" = "window" AND {news} AND {conditions}) END)
        FROM ended LEFT JOIN news
          ON "window" >= %(first)s AND "window" ~ '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:00$'
        ORDER BY "newest", "window"
    """).format(window=_WINDOW, news=_NEWS, conditions=SQL(" AND ").join(conditions))
    found = conn.execute(query, parameters).fetchall()
    reached: datetime | None = found[0][0]
    return Changes(
        [WindowState(window, count, newest.replace(tzinfo=UTC)) for _, window, count, newest in found if window],
        None if reached is None else reached.replace(tzinfo=UTC),
    )


def _read(
    conn: psycopg.Connection, trajectory_ids: Sequence[str], limit_bytes: int
) -> Iterator[tuple[Episode | Reject, str]]:
    """Up to CHUNK rows with their versions, in order of trajectory id."""
    columns = _COLUMNS.format(window=_WINDOW, limit=Literal(limit_bytes))
    query = SQL("""SELECT {} FROM trajectories WHERE "trajectoryId" = ANY(%s) ORDER BY "trajectoryId" COLLATE "C" """)
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query.format(columns), [list(trajectory_ids)]).fetchall()
    found: list[Decoded | Reject] = [_decoded(row, limit_bytes) for row in rows]
    logged = _logged(conn, [one.row["trajectoryId"] for one in found if isinstance(one, Decoded) and one.bare])
    for row, one in zip(rows, found, strict=True):
        try:
            identity = row["trajectoryId"]
            known = one if isinstance(one, Reject) else to_episode(one, row["window"], logged.get(identity, {}))
            yield known, row["version"]
        except Malformed as error:
            yield _reject(row, error), row["version"]


def _decoded(row: dict[str, Any], limit_bytes: int) -> Decoded | Reject:
    try:
        largest = max(row["bytes"], row["metadataBytes"])
        if largest > limit_bytes:
            raise Malformed("too_large", f"{largest} bytes of JSON; at most {limit_bytes} are read")
        return decode(row)
    except Malformed as error:
        return _reject(row, error)


def _reject(row: Any, error: Malformed) -> Reject:
    return Reject(row["trajectoryId"], error.reason, error.detail, (row["stepsJson"] or "")[:RAW_CHARACTERS])


def _logged(conn: psycopg.Connection, trajectory_ids: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """By trajectory and step, the call that decided as `llm_call_logs` has it."""
    calls: dict[str, dict[str, dict[str, Any]]] = {}
    if not trajectory_ids:
        return calls
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            """SELECT "trajectoryId", "stepId", "model", "purpose", "systemPrompt", "userPrompt", "response",
                      "temperature", "maxTokens", "topP", "promptTokens", "latencyMs"
               FROM llm_call_logs WHERE "trajectoryId" = ANY(%s) ORDER BY "purpose" <> 'action', "timestamp", "id" """,
            [trajectory_ids],
        )
        for row in cursor:
            calls.setdefault(row["trajectoryId"], {}).setdefault(row["stepId"], row)
    return calls


def has_news_index(conn: psycopg.Connection) -> bool:
    """Whether the index is there by which `changed_windows` finds news of any hour."""
    row = conn.execute("SELECT to_regclass('\"rl_assets_trajectories_news_idx\"') IS NOT NULL").fetchone()
    return row is not None and row[0]


def _copy(table: str, columns: Sequence[str]) -> Composed:
    return SQL("COPY {} ({}) FROM STDIN").format(Identifier(table), SQL(", ").join(map(Identifier, columns)))
