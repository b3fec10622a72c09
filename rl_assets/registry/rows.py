"""Rows of the registry, with those of Babylon's `trained_models` that show the same models.

Each function is a statement or two of a transaction that `models` begins, under the line's lock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from rl_assets.errors import LedgerConflict
from rl_assets.registry.checkpoints import RemoteCheckpoint, located
from rl_assets.registry.decisions import latest_evaluation
from rl_assets.store.locks import LINES
from rl_assets.store.record import naive

_VERSION = re.compile(r"v(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
_COLUMNS = "model_line, step, version, checkpoint_path, digest, batch_id, parent_step, state, metrics, created_at"


@dataclass(frozen=True, slots=True)
class Model:
    """A row of the registry. state: candidate, champion, retired or rejected. parent_step: what it was trained from."""

    model_line: str
    step: int
    version: str
    checkpoint_path: Path | RemoteCheckpoint
    digest: str
    batch_id: str | None
    parent_step: int | None
    state: str
    metrics: dict[str, Any]
    created_at: datetime


SHOWN = {"candidate": "training", "champion": "deployed", "retired": "ready", "rejected": "archived"}
"""The status in Babylon's table by state here."""


def point_at(conn: psycopg.Connection, model: Model, previous_step: int | None, reason: str) -> None:
    conn.execute(
        """UPDATE rl_assets.champion SET step = %s, previous_step = %s, reason = %s, changed_at = clock_timestamp()
           WHERE model_line = %s""",
        [model.step, previous_step, reason, model.model_line],
    )
    enter_history(conn, model.model_line, model.step, previous_step, reason)
    # Last, for this is what Babylon's app sees.
    set_state(conn, model, "champion")


def enter_history(conn: psycopg.Connection, line: str, step: int, previous_step: int | None, reason: str) -> None:
    conn.execute(
        "INSERT INTO rl_assets.champion_history (model_line, step, previous_step, reason) VALUES (%s, %s, %s, %s)",
        [line, step, previous_step, reason],
    )


def set_state(conn: psycopg.Connection, model: Model, state: str) -> None:
    """Give a model a state, here and, as `SHOWN` says, in Babylon's table."""
    conn.execute(
        "UPDATE rl_assets.models SET state = %s WHERE model_line = %s AND step = %s",
        [state, model.model_line, model.step],
    )
    _show(conn, model, SHOWN[state])


def insert(
    conn: psycopg.Connection,
    line: str,
    step: int,
    path: Path | RemoteCheckpoint,
    digest: str,
    batch_id: str | None,
    parent_step: int | None,
    state: str,
    metrics: dict[str, float],
) -> Model:
    conn.execute(
        """INSERT INTO rl_assets.models
             (model_line, step, version, checkpoint_path, digest, batch_id, parent_step, state, metrics)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)""",
        [line, step, _next_version(conn, line), str(path), digest, batch_id, parent_step, state, Jsonb(metrics)],
    )
    model = get_model(conn, line, step)
    _show(conn, model, SHOWN[state])
    return model


def move(conn: psycopg.Connection, model: Model, path: Path | RemoteCheckpoint) -> Model:
    """The same files elsewhere: the data directory has been moved."""
    conn.execute(
        "UPDATE rl_assets.models SET checkpoint_path = %s WHERE model_line = %s AND step = %s",
        [str(path), model.model_line, model.step],
    )
    moved = get_model(conn, model.model_line, model.step)
    _show(conn, moved, SHOWN[moved.state])
    return moved


def _show(conn: psycopg.Connection, model: Model, status: str) -> None:
    """Bring Babylon's row of a model up to date, whose `modelId` is line and version. Step 0 has none: no gate has seen
    it. Raises LedgerConflict where a row of that name is another's."""
    if model.batch_id is None:
        return
    name = f"{model.model_line}-{model.version}"
    found = latest_evaluation(conn, model.batch_id)
    changed = conn.execute(
        """INSERT INTO trained_models ("id", "modelId", "version", "baseModel", "trainingBatch", "status",
             "storagePath", "deployedAt", "archivedAt", "benchmarkScore", "evalMetrics", "createdAt", "updatedAt")
           VALUES (%(name)s, %(name)s, %(version)s, %(base)s, %(batch)s, %(status)s, %(path)s, %(deployed)s,
             %(archived)s, %(score)s, %(metrics)s, %(now)s, %(now)s)
           ON CONFLICT ("modelId") DO UPDATE SET "status" = excluded."status", "storagePath" = excluded."storagePath",
             "deployedAt" = coalesce(excluded."deployedAt", trained_models."deployedAt"),
             "archivedAt" = excluded."archivedAt", "benchmarkScore" = excluded."benchmarkScore",
             "evalMetrics" = excluded."evalMetrics", "updatedAt" = excluded."updatedAt"
           WHERE trained_models."trainingBatch" = excluded."trainingBatch" """,
        {
            "name": name,
            "version": model.version,
            "base": f"{model.model_line}@{model.parent_step}",
            "batch": model.batch_id,
            "status": status,
            "path": str(model.checkpoint_path),
            "deployed": _now() if status == "deployed" else None,
            "archived": _now() if status == "archived" else None,
            "score": found and found.decision.candidate.expected_pnl,
            "metrics": found and Jsonb(found.decision.to_json()),
            "now": _now(),
        },
    ).rowcount
    if not changed:
        raise LedgerConflict(f"row {name} of trained_models is of another batch; rename it, then try again")


def _next_version(conn: psycopg.Connection, line: str) -> str:
    """The highest version of the line, ours or Babylon's, with its last part raised by one."""
    rows = conn.execute(
        """SELECT version FROM rl_assets.models WHERE model_line = %(line)s
           UNION ALL SELECT "version" FROM trained_models WHERE starts_with("modelId", %(line)s || '-v')""",
        {"line": line},
    ).fetchall()
    known = [tuple(map(int, found.groups())) for (text,) in rows if (found := _VERSION.fullmatch(text))]
    if not known:
        return "v1.0.0"
    major, minor, patch = max(known)
    return f"v{major}.{minor}.{patch + 1}"


def get_model(conn: psycopg.Connection, model_line: str, step: int) -> Model:
    """A registered model. Raises LedgerConflict where there is none of that step."""
    model = find(conn, model_line, step)
    if model is None:
        raise LedgerConflict(f"{model_line} has no step {step}; `rl-assets models list` shows those that it has")
    return model


def find(conn: psycopg.Connection, line: str, step: int) -> Model | None:
    return next(iter(select(conn, "model_line = %s AND step = %s", [line, step])), None)


def select(conn: psycopg.Connection, where: str, parameters: list[object]) -> list[Model]:
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"SELECT {_COLUMNS} FROM rl_assets.models WHERE {where} ORDER BY step DESC",  # pyright: ignore
            parameters,
        ).fetchall()
    return [Model(**{**row, "checkpoint_path": located(row["checkpoint_path"])}) for row in rows]


def lock_champion(conn: psycopg.Connection, line: str) -> tuple[Model, int | None]:
    """Take the line's lock; returns the champion and the step before it."""
    lock(conn, line)
    step, previous_step = pointer(conn, line)
    return get_model(conn, line, step), previous_step


def pointer(conn: psycopg.Connection, line: str) -> tuple[int, int | None]:
    row = conn.execute("SELECT step, previous_step FROM rl_assets.champion WHERE model_line = %s", [line]).fetchone()
    if row is None:
        raise LedgerConflict(f"{line} has no champion yet; materialize base_policy")
    return row[0], row[1]


def lock(conn: psycopg.Connection, line: str) -> None:
    """Held until the transaction ends. Advisory, because a line that is new has no row yet that could be locked."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{LINES}{line}"])


def _now() -> datetime:
    return naive(datetime.now(UTC))
