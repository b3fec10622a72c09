"""What a paid judge has answered, and its budget: reserved before a request is sent, settled when it is answered.

A key is the hash of a request. Days are UTC. Tokens are those of prompt and answer together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

BUDGET_LOCK = 0x726C_0002
"""Advisory lock under which a budget is looked at and reserved from: two processes cannot both take the rest."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """answer: as the judge gave it, parsed. dollars: None where no price was known."""

    key: str
    answer: dict[str, Any]
    tokens_in: int
    tokens_out: int
    dollars: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and dollars that are spent or reserved, of a window (over all days) and of today (over all windows)."""

    window_tokens: int
    window_dollars: float
    day_tokens: int
    day_dollars: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens and dollars per window and per UTC day. A limit of None does not bind."""

    window_tokens: int | None = None
    window_dollars: float | None = None
    day_tokens: int | None = None
    day_dollars: float | None = None


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Which limit (a field of Limits) a request would break: what it allows, what is spent, what is asked for."""

    limit: str
    allowed: float
    spent: float
    asked: float


def cached_answers(conn: psycopg.Connection, keys: Sequence[str]) -> dict[str, CachedAnswer]:
    """The answers that are known, by key."""
    with conn.cursor(row_factory=class_row(CachedAnswer)) as cursor:
        cursor.execute(
            "SELECT key, answer, tokens_in, tokens_out, dollars FROM rl_assets.judge_calls WHERE key = ANY(%s)",
            [list(keys)],
        )
        return {found.key: found for found in cursor}


def spent(conn: psycopg.Connection, window_id: str) -> Spent:
    """What counts against the budgets of a window and of today."""
    with conn.cursor(row_factory=class_row(Spent)) as cursor:
        cursor.execute(
            """WITH counted AS (
                 SELECT * FROM rl_assets.judge_spending WHERE settled_at IS NOT NULL OR expires_at > clock_timestamp()
               ), today AS (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS day)
               SELECT w.tokens AS window_tokens, w.dollars AS window_dollars,
                      d.tokens AS day_tokens, d.dollars AS day_dollars
               FROM (SELECT coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(dollars), 0) AS dollars
                     FROM counted WHERE window_id = %s) AS w,
                    (SELECT coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(dollars), 0) AS dollars
                     FROM counted JOIN today USING (day)) AS d""",
            [window_id],
        )
        found = cursor.fetchone()
    assert found is not None
    return found


def reserve(
    conn: psycopg.Connection,
    window_id: str,
    model: str,
    tokens: int,
    dollars: float | None,
    limits: Limits,
    expire_seconds: float,
) -> int | Exhausted:
    """Reserve what a request may cost at most; returns the reservation's id, or the limit that does not allow it."""
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [BUDGET_LOCK])
        now = spent(conn, window_id)
        asked = {"tokens": tokens, "dollars": dollars or 0.0}
        for limit in ("window_tokens", "window_dollars", "day_tokens", "day_dollars"):
            allowed, already, more = getattr(limits, limit), getattr(now, limit), asked[limit.split("_")[1]]
            if allowed is not None and already + more > allowed:
                return Exhausted(limit, allowed, already, more)
        row = conn.execute(
            """INSERT INTO rl_assets.judge_spending (window_id, day, model, tokens, dollars, expires_at)
               VALUES (%s, (clock_timestamp() AT TIME ZONE 'UTC')::date, %s, %s, %s,
                       clock_timestamp() + make_interval(secs => %s)) RETURNING id""",
            [window_id, model, tokens, dollars, expire_seconds],
        ).fetchone()
    assert row is not None
    return row[0]


def settle(
    conn: psycopg.Connection,
    reservation: int,
    outcome: str,
    tokens: int,
    dollars: float | None,
    keep: CachedAnswer | None = None,
) -> None:
    """Write what a request did cost and how it ended, and in the same transaction the answer, if it is to be kept."""
    with conn.transaction():
        row = conn.execute(
            """UPDATE rl_assets.judge_spending
               SET tokens = %s, dollars = %s, outcome = %s, settled_at = clock_timestamp()
               WHERE id = %s RETURNING model""",
            [tokens, dollars, outcome, reservation],
        ).fetchone()
        assert row is not None, f"there is no reservation {reservation}"
        if keep is not None:
            conn.execute(
                """INSERT INTO rl_assets.judge_calls (key, model, answer, tokens_in, tokens_out, dollars)
                   VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (key) DO NOTHING""",
                [keep.key, row[0], Jsonb(keep.answer), keep.tokens_in, keep.tokens_out, keep.dollars],
            )
