"""Judgement sets as they were recorded, for comparing judges with each other. `rl_assets.store.ledger` appends them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import psycopg

NEWEST = 5
"""Judgement sets that a new one is compared with."""


@dataclass(frozen=True, slots=True)
class RecordedSet:
    """scores: in [0, 1], by group id and trajectory id; groups without verdicts are not in it."""

    id: str
    judge: str
    judge_version: str
    recorded_at: datetime
    scores: dict[str, dict[str, float]]


def recorded_sets(conn: psycopg.Connection, window_id: str) -> list[RecordedSet]:
    """The NEWEST judgement sets of a window, newest first."""
    rows = conn.execute(
        """SELECT id, judge, judge_version, recorded_at, body -> 'rankings' FROM rl_assets.judgement_sets
           WHERE window_id = %s ORDER BY recorded_at DESC, id LIMIT %s""",
        [window_id, NEWEST],
    ).fetchall()
    return [RecordedSet(*row[:4], scores=_scores(row[4])) for row in rows]


def _scores(rankings: list[dict]) -> dict[str, dict[str, float]]:
    return {
        ranking["group_id"]: {verdict["trajectory_id"]: float(verdict["score"]) for verdict in ranking["verdicts"]}
        for ranking in rankings
        if ranking["verdicts"]
    }


def unjudged_windows(conn: psycopg.Connection, since: str) -> list[str]:
    """The windows, the oldest first and none before `since`, of which groups wait for a judge."""
    rows = conn.execute(
        "SELECT DISTINCT window_id FROM rl_assets.groups WHERE judged_in IS NULL AND window_id >= %s ORDER BY 1",
        [since],
    ).fetchall()
    return [window for (window,) in rows]
