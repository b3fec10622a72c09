"""Rollouts as the database keeps them, and which of the two models an agent plays with while one is under way.

An agent's place is a hash of model line and agent id, so it is the same in every process, for every candidate, and an
agent that has got the candidate keeps it as the percentage grows. What is decided about a rollout is in `stages`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from rl_assets.registry.terms import Terms

_COLUMNS = (
    "id, model_line, step, champion_step, stage, percentage, state, terms, figures, reason, started_at, changed_at, "
    "looked_at"
)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A candidate on its way. state: `staged` while a part of the agents has it, `watched` once it is champion, then
    `ended` or `rolled_back`. stage: place in the stages of `terms`. figures: of the last look at its evidence.
    looked_at: when all evidence of this stage had been taken in, None where some may be older than the last look."""

    id: int
    model_line: str
    step: int
    champion_step: int
    stage: int
    percentage: int
    state: str
    terms: Terms
    figures: dict[str, Any]
    reason: str
    started_at: datetime
    changed_at: datetime
    looked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Event:
    """A decision on a rollout: started, advanced, promoted, ended or rolled_back. figures: what it rests on."""

    decision: str
    percentage: int
    reason: str
    figures: dict[str, Any]
    at: datetime


def place_of(model_line: str, agent_id: str) -> float:
    """Where an agent stands among all, from 0 up to but not 100: BLAKE2b of line and agent id, read as a fraction."""
    text = f"{model_line}\0{agent_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") * 100.0 / 2**48


def has_candidate(rollout: Rollout, agent_id: str) -> bool:
    """Whether an agent plays with the candidate of a rollout."""
    return place_of(rollout.model_line, agent_id) < rollout.percentage


def open_rollout(conn: psycopg.Connection, model_line: str) -> Rollout | None:
    """The rollout of a line that is staged or watched, or None."""
    return _one(conn, "model_line = %s AND state IN ('staged', 'watched')", model_line)


def staged_rollout(conn: psycopg.Connection, model_line: str) -> Rollout | None:
    """The rollout of a line in which two models play, or None."""
    return _one(conn, "model_line = %s AND state = 'staged'", model_line)


def last_rollout(conn: psycopg.Connection, model_line: str) -> Rollout | None:
    """The newest rollout of a line, over or not, or None."""
    return _one(conn, "model_line = %s ORDER BY id DESC LIMIT 1", model_line)


def insert(
    conn: psycopg.Connection, *, line: str, step: int, champion_step: int, percentage: int, terms: Terms, reason: str
) -> Rollout:
    row = conn.execute(
        """INSERT INTO rl_assets.rollouts (model_line, step, champion_step, stage, percentage, state, terms, reason)
           VALUES (%s, %s, %s, 0, %s, 'staged', %s, %s) RETURNING id""",
        [line, step, champion_step, percentage, Jsonb(terms.to_json()), reason],
    ).fetchone()
    assert row is not None
    return change(conn, row[0], "started", state="staged", stage=0, percentage=percentage, reason=reason, figures={})


def change(
    conn: psycopg.Connection,
    rollout_id: int,
    decision: str,
    *,
    state: str,
    stage: int,
    percentage: int,
    reason: str,
    figures: dict[str, Any],
) -> Rollout:
    """Enter a decision, and bring the rollout to where it leads."""
    conn.execute(
        """INSERT INTO rl_assets.rollout_events (rollout_id, decision, percentage, reason, figures)
           VALUES (%s, %s, %s, %s, %s)""",
        [rollout_id, decision, percentage, reason, Jsonb(figures)],
    )
    conn.execute(
        """UPDATE rl_assets.rollouts SET state = %s, stage = %s, percentage = %s, reason = %s, figures = %s,
             changed_at = clock_timestamp(), looked_at = NULL WHERE id = %s""",
        [state, stage, percentage, reason, Jsonb(figures), rollout_id],
    )
    found = _one(conn, "id = %s", rollout_id)
    assert found is not None
    return found


def close(conn: psycopg.Connection, rollout: Rollout, decision: str, reason: str) -> Rollout:
    """End a rollout: `ended` where its model stays, `rolled_back` where no agent plays with it any more."""
    percentage = rollout.percentage if decision == "ended" else 0
    return change(
        conn,
        rollout.id,
        decision,
        state=decision,
        stage=rollout.stage,
        percentage=percentage,
        reason=reason,
        figures=rollout.figures,
    )


def note_figures(conn: psycopg.Connection, rollout_id: int, figures: dict[str, Any]) -> None:
    """Keep what a look has found, though nothing follows from it."""
    conn.execute("UPDATE rl_assets.rollouts SET figures = %s WHERE id = %s", [Jsonb(figures), rollout_id])


def note_look(conn: psycopg.Connection, rollout_id: int, at: datetime) -> None:
    """Keep that all evidence there was at a moment has been taken in."""
    conn.execute("UPDATE rl_assets.rollouts SET looked_at = %s WHERE id = %s", [at, rollout_id])


def events_of(conn: psycopg.Connection, rollout_id: int) -> list[Event]:
    """Every decision on a rollout, the oldest first."""
    with conn.cursor(row_factory=class_row(Event)) as cursor:
        return cursor.execute(
            """SELECT decision, percentage, reason, figures, at FROM rl_assets.rollout_events
               WHERE rollout_id = %s ORDER BY id""",
            [rollout_id],
        ).fetchall()


def _one(conn: psycopg.Connection, where: str, parameter: object) -> Rollout | None:
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            f"SELECT {_COLUMNS} FROM rl_assets.rollouts WHERE {where}",  # pyright: ignore[reportArgumentType, reportCallIssue]
            [parameter],
        ).fetchone()
    return None if row is None else Rollout(**{**row, "terms": Terms.from_json(row["terms"])})
