"""What a paid judge has answered, and its budget: reserved before a request is sent, settled when it is answered.

A key is the hash of a request. Days are UTC. Tokens are those of prompt and answer together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from rl_assets.store.locks import Lock, transaction_lock


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
        found = cursor.execute(_SPENT, {"window": window_id}).fetchone()
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
    asked = asdict(limits) | {
        "window": window_id,
        "model": model,
        "tokens": tokens,
        "dollars": dollars,
        "expire": expire_seconds,
    }
    if limits == Limits():  # then nobody else's reservation can stand in the way
        row = conn.execute(_RESERVE, asked).fetchone()
    else:
        with conn.pipeline(), conn.transaction():
            transaction_lock(conn, Lock.BUDGET)
            row = conn.execute(_RESERVE, asked).fetchone()
    if row is not None:
        return row[0]
    now = spent(conn, window_id)
    more = {"tokens": tokens, "dollars": dollars or 0.0}
    over = [
        Exhausted(limit, allowed, getattr(now, limit), more[limit.split("_")[1]])
        for limit, allowed in asdict(limits).items()
        if allowed is not None
    ]
    return max(over, key=lambda one: one.spent + one.asked - one.allowed)


def settle(
    conn: psycopg.Connection,
    reservation: int,
    outcome: str,
    tokens: int,
    dollars: float | None,
    keep: CachedAnswer | None = None,
) -> None:
    """Write what a request did cost and how it ended, and in the same transaction the answer, if it is to be kept."""
    given: dict[str, Any] = dict.fromkeys(_ANSWER) if keep is None else asdict(keep) | {"answer": Jsonb(keep.answer)}
    given |= {"reservation": reservation, "outcome": outcome, "tokens": tokens, "paid": dollars}
    conn.execute(_SETTLE, given)


_SOON = "set_config('synchronous_commit', 'off', true)"
"""Requests do not wait for the disk. What a crash of the server loses is the last moment, and is asked again."""
_COUNTED = """counted AS (
    SELECT window_id, day, tokens, dollars FROM rl_assets.judge_spending
    WHERE (window_id = %(window)s OR day = (clock_timestamp() AT TIME ZONE 'UTC')::date)
      AND (settled_at IS NOT NULL OR expires_at > clock_timestamp())
), used AS (
    SELECT coalesce(sum(tokens) FILTER (WHERE window_id = %(window)s), 0)::bigint AS window_tokens,
           coalesce(sum(dollars) FILTER (WHERE window_id = %(window)s), 0) AS window_dollars,
           coalesce(sum(tokens) FILTER (WHERE day = today), 0)::bigint AS day_tokens,
           coalesce(sum(dollars) FILTER (WHERE day = today), 0) AS day_dollars
    FROM (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS today) AS clock LEFT JOIN counted ON true
)"""
_SPENT = f"WITH {_COUNTED} SELECT window_tokens, window_dollars, day_tokens, day_dollars FROM used"
_RESERVE = f"""WITH {_COUNTED}
INSERT INTO rl_assets.judge_spending (window_id, day, model, tokens, dollars, expires_at)
SELECT %(window)s, (clock_timestamp() AT TIME ZONE 'UTC')::date, %(model)s, %(tokens)s, %(dollars)s,
       clock_timestamp() + make_interval(secs => %(expire)s)
FROM used
WHERE {_SOON} IS NOT NULL
  AND (%(window_tokens)s::bigint IS NULL OR used.window_tokens + %(tokens)s <= %(window_tokens)s)
  AND (%(window_dollars)s::float8 IS NULL
       OR used.window_dollars + coalesce(%(dollars)s::float8, 0) <= %(window_dollars)s)
  AND (%(day_tokens)s::bigint IS NULL OR used.day_tokens + %(tokens)s <= %(day_tokens)s)
  AND (%(day_dollars)s::float8 IS NULL OR used.day_dollars + coalesce(%(dollars)s::float8, 0) <= %(day_dollars)s)
RETURNING id"""
_SETTLE = f"""WITH settled AS (
    UPDATE rl_assets.judge_spending
    SET tokens = %(tokens)s, dollars = %(paid)s, outcome = %(outcome)s, settled_at = clock_timestamp()
    WHERE id = %(reservation)s AND {_SOON} IS NOT NULL RETURNING model
)
INSERT INTO rl_assets.judge_calls (key, model, answer, tokens_in, tokens_out, dollars)
SELECT %(key)s::text, model, %(answer)s::jsonb, %(tokens_in)s::bigint, %(tokens_out)s::bigint, %(dollars)s::float8
FROM settled WHERE %(key)s::text IS NOT NULL
ON CONFLICT (key) DO NOTHING"""
_ANSWER = ("key", "answer", "tokens_in", "tokens_out", "dollars")
