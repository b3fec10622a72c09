"""What the gate has found, as the database keeps it. Rows are only ever added; the newest of a batch counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from rl_assets.registry.gate import Decision

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A decision of the gate on a candidate, next to the champion of that moment."""

    batch_id: str
    candidate_step: int
    champion_step: int
    decision: Decision
    created_at: datetime


def record_evaluation(
    conn: psycopg.Connection, *, batch_id: str, candidate_step: int, champion_step: int, decision: Decision
) -> Evaluation:
    """Add what the gate found of a batch's candidate."""
    conn.execute(
        """INSERT INTO rl_assets.evaluations (batch_id, candidate_step, champion_step, decision)
           VALUES (%s, %s, %s, %s)""",
        [batch_id, candidate_step, champion_step, Jsonb(decision.to_json())],
    )
    found = latest_evaluation(conn, batch_id)
    assert found is not None
    return found


def latest_evaluation(conn: psycopg.Connection, batch_id: str) -> Evaluation | None:
    """The newest evaluation of a batch, or None."""
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            """SELECT batch_id, candidate_step, champion_step, decision, created_at FROM rl_assets.evaluations
               WHERE batch_id = %s ORDER BY id DESC LIMIT 1""",
            [batch_id],
        ).fetchone()
    return None if row is None else Evaluation(**{**row, "decision": Decision.from_json(row["decision"])})


def look_number(conn: psycopg.Connection, model_line: str, champion_step: int, candidate_step: int) -> int:
    """The how-manieth candidate this is that a champion is compared with, from 1: it decides how much alpha is due."""
    row = conn.execute(
        """SELECT count(DISTINCT e.candidate_step) FROM rl_assets.evaluations e
           JOIN rl_assets.batches b ON b.id = e.batch_id
           WHERE b.model_line = %s AND e.champion_step = %s AND e.candidate_step <> %s""",
        [model_line, champion_step, candidate_step],
    ).fetchone()
    return 1 + (int(row[0]) if row else 0)
