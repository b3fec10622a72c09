"""The registry of benchmark snapshots: which worlds there are, and which of them have been materialized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from rl_assets.errors import MalformedInput
from rl_assets.places import Place
from rl_assets.store.episodes import Reject, WindowPart

if TYPE_CHECKING:
    from rl_assets.market.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class RegisteredSnapshot:
    """A world by its seed and configuration. day: market day. materialized_at: None while its files are not checked."""

    id: str
    split: str
    seed: int
    day: int
    config: dict[str, Any]
    content_hash: str
    created_at: datetime
    materialized_at: datetime | None


def register_snapshots(conn: psycopg.Connection, snapshots: Sequence[Snapshot]) -> int:
    """Register worlds; returns how many are new. One that is registered already stays as it is."""
    rows = [
        (s.id, s.split, s.seed, s.day, Jsonb(asdict(s.config)), s.id.rsplit("-", 1)[-1])
        for s in sorted(snapshots, key=lambda s: s.id)
    ]
    with conn.transaction(), conn.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO rl_assets.snapshots (id, split, seed, day, config, content_hash)
               VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING""",
            rows,
        )
        return max(cursor.rowcount, 0)


def list_snapshots(
    conn: psycopg.Connection, split: str | None = None, unmaterialized: bool = False
) -> list[RegisteredSnapshot]:
    """Registered snapshots in order of id, of one split or of all, and all of them or those not materialized yet."""
    with conn.cursor(row_factory=class_row(RegisteredSnapshot)) as cursor:
        cursor.execute(
            """SELECT id, split, seed, day, config, content_hash, created_at, materialized_at FROM rl_assets.snapshots
               WHERE (%(split)s::text IS NULL OR split = %(split)s)
                 AND (materialized_at IS NULL OR NOT %(waiting)s)
               ORDER BY id""",
            {"split": split, "waiting": unmaterialized},
        )
        return cursor.fetchall()


def mark_materialized(conn: psycopg.Connection, ids: Sequence[str]) -> int:
    """Note that the files of snapshots have been written and audited; returns for how many that is new."""
    return conn.execute(
        "UPDATE rl_assets.snapshots SET materialized_at = now() WHERE id = ANY(%s) AND materialized_at IS NULL",
        [list(ids)],
    ).rowcount


def without_unknown(conn: psycopg.Connection, part: WindowPart, root: Place) -> WindowPart:
    """The part with episodes of unknown snapshots rejected: nobody here can play them again. Known are those that are
    registered, and imported ones whose files are below `root`."""
    from rl_assets.market.snapshot import load_world

    named = sorted({episode.snapshot_id for episode in part.episodes if episode.snapshot_id is not None})
    rows = conn.execute("SELECT id FROM rl_assets.snapshots WHERE id = ANY(%s)", [named]).fetchall()
    unknown: dict[str | None, str] = {}
    for snapshot_id in set(named).difference(found for (found,) in rows):
        try:
            load_world(root, snapshot_id)
        except MalformedInput as error:
            unknown[snapshot_id] = str(error)
    if not unknown:
        return part
    return replace(
        part,
        episodes=[episode for episode in part.episodes if episode.snapshot_id not in unknown],
        rejects=part.rejects
        + [
            Reject(episode.trajectory_id, "unknown_snapshot", unknown[episode.snapshot_id], "")
            for episode in part.episodes
            if episode.snapshot_id in unknown
        ],
    )
