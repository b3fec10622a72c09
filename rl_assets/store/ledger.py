"""The ledger: which judged episodes wait for training, which batch has claimed them, and how far each batch has come.

What waits of a window follows from two things alone: the newest judgement of each of its groups, and which episodes
are claimed. Writers come one after another (`Lock.LEDGER`), each in one transaction; readers never wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from rl_assets.episodes import digest
from rl_assets.errors import DatabaseError, LedgerConflict
from rl_assets.judging import JudgementSet
from rl_assets.store.locks import Lock, session_lock
from rl_assets.store.mirror import mirror_judgements, mirror_training
from rl_assets.store.offers import oldest_free, refill, waiting_ids
from rl_assets.training.manifest import Manifest, ManifestGroup

LOCK_SECONDS = 120

IN_FLIGHT = ("reserved", "training", "unknown", "trained", "evaluated")
"""States of which a model line has one batch at a time (the index `batches_in_flight` sees to it)."""

DECIDED = ("promoted", "rejected")
"""States of a batch that has been decided upon."""

NEXT = {
    "reserved": ("training", "failed", "freed"),
    "training": ("trained", "failed", "unknown"),
    "unknown": ("trained", "failed"),
    "failed": ("reserved", "freed"),
    "trained": ("evaluated", "rejected"),
    "evaluated": DECIDED,
    "promoted": (),
    "rejected": (),
    "freed": (),
}
"""Where a batch may go from each state. What is trained is consumed: its episodes are never given back. A person may
reject it before the gate has seen it, since what cannot be played would block its line for ever."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What waits of a model line, as played by the step that would be trained, or by those shortly before it.

    fresh: episodes that may be claimed now, in trainable_groups. waiting_groups: groups without a judge's verdict.
    claimed: episodes in batches that were not freed. in_flight_batch: the batch that is not at its end yet.
    """

    fresh: int
    trainable_groups: int
    waiting_groups: int
    claimed: int
    in_flight_batch: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A claim and what became of it. manifest: JSON of `rl_assets.training.manifest.Manifest`. attempt: from 1.
    branch_of: the batch whose claim this one is trained on once more; None where the claim is its own."""

    id: str
    model_line: str
    base_step: int
    state: str
    attempt: int
    episodes: int
    groups: int
    manifest: dict[str, Any]
    forced_by: str | None
    run_id: str | None
    error: str | None
    result: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime
    branch_of: str | None


def record_judgements(
    conn: psycopg.Connection, judgement: JudgementSet, versions: Mapping[str, str] | None = None
) -> int:
    """Append a judgement set, put its trainable groups in the queue and show its scores in Babylon's tables.

    What waited of the window and is not claimed is replaced; what is claimed stays as it is. A group that the set has
    no verdict on keeps an earlier one. versions: of each row that was judged, as `read_window` tells them; a row that
    has changed since stays news to `changed_windows`, which it does not where they are not given. Returns how many
    episodes wait now that did not wait before. Recording a set again changes nothing but the times of its scores, and
    shows those that were not shown because the first time was interrupted: until then their rows are news.
    """
    with session_lock(conn, Lock.WINDOW, judgement.window_id):
        offered = _enter_judgements(conn, judgement)
        mirror_judgements(conn, judgement, versions)
    return offered


def _enter_judgements(conn: psycopg.Connection, judgement: JudgementSet) -> int:
    window, waiting = judgement.window_id, judgement.waiting
    learnable = [group for group in judgement.groups if group.step is not None]
    rows = [
        {
            "group_id": group.group_id,
            "model_line": group.policy,
            "step": group.step,
            "members": len(group.trajectory_ids),
            "judged_in": None if group.group_id in waiting else judgement.id,
        }
        for group in learnable
    ]
    body = Jsonb(judgement.to_json())
    with _writing(conn):
        conn.execute(
            """INSERT INTO rl_assets.judgement_sets (id, window_id, judge, judge_version, body)
               VALUES (%s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING""",
            [judgement.id, window, judgement.judge, judgement.judge_version, body],
        )
        conn.execute(
            "DELETE FROM rl_assets.groups WHERE window_id = %s AND group_id <> ALL(%s)",
            [window, [group.group_id for group in learnable]],
        )
        _forget_empty(conn, waiting)
        conn.execute(
            """INSERT INTO rl_assets.groups (group_id, window_id, model_line, step, members, judged_in)
               SELECT group_id, %s, model_line, step, members, judged_in FROM jsonb_to_recordset(%s)
                 AS g (group_id text, model_line text, step integer, members integer, judged_in text)
               ON CONFLICT (group_id) DO UPDATE
               SET window_id = excluded.window_id, judged_in = coalesce(excluded.judged_in, groups.judged_in)""",
            [window, Jsonb(rows)],
        )
        before = waiting_ids(conn, window)
        refill(conn, window)
        after = waiting_ids(conn, window)
    return len(after - before)


def _forget_empty(conn: psycopg.Connection, waiting: Iterable[str]) -> None:
    """Have groups wait that an earlier set had no verdict on either, because their hour was open then: for a judge they
    did not wait at that time, and now they do."""
    conn.execute(
        """UPDATE rl_assets.groups AS g SET judged_in = NULL
           FROM (SELECT s.id, r ->> 'group_id' AS group_id
                 FROM (SELECT DISTINCT judged_in AS id FROM rl_assets.groups WHERE group_id = ANY(%(waiting)s)) AS d
                 JOIN rl_assets.judgement_sets AS s USING (id), jsonb_array_elements(s.body -> 'rankings') AS r
                 WHERE jsonb_array_length(r -> 'verdicts') = 0) AS empty
           WHERE g.group_id = ANY(%(waiting)s) AND g.group_id = empty.group_id AND g.judged_in = empty.id""",
        {"waiting": list(waiting)},
    )


def readiness(conn: psycopg.Connection, model_line: str, step: int | None, most_stale: int = 0) -> Readiness:
    """What waits for the next training on top of `step`; nothing does where there is no step yet. most_stale: how many
    steps before it the policy that played may be."""
    waiting = conn.execute(
        """SELECT coalesce(sum(episodes), 0)::bigint, coalesce(sum(offers), 0)::bigint,
                  coalesce(sum(unjudged), 0)::bigint
           FROM rl_assets.waiting WHERE model_line = %(line)s AND step BETWEEN %(step)s - %(stale)s AND %(step)s""",
        {"line": model_line, "step": step, "stale": most_stale},
    ).fetchone()
    claimed = conn.execute("SELECT episodes FROM rl_assets.claimed WHERE model_line = %s", [model_line]).fetchone()
    in_flight = batches(conn, model_line=model_line, states=IN_FLIGHT, limit=1)
    fresh, trainable, unjudged = waiting or (0, 0, 0)
    return Readiness(fresh, trainable, unjudged, claimed[0] if claimed else 0, in_flight[0].id if in_flight else None)


def claim_batch(
    conn: psycopg.Connection,
    *,
    model_line: str,
    base_step: int,
    minimum: int,
    forced_by: str | None,
    most_stale: int = 0,
) -> Batch | None:
    """Claim whole groups, oldest window first, until they hold `minimum` episodes, of what `base_step` has played and
    up to `most_stale` steps before it.

    Returns None, and claims nothing, if fewer wait or a batch of the line is in flight. Where `forced_by` says who
    wants one all the same, fewer will do if fewer wait; LedgerConflict is raised if there is nothing to claim.
    """
    with _writing(conn):
        in_flight = batches(conn, model_line=model_line, states=IN_FLIGHT, limit=1)
        steps = range(max(base_step - most_stale, 0), base_step + 1)
        offers = [] if in_flight else oldest_free(conn, model_line, steps, minimum)
        found = sum(len(ids) for _, _, _, _, ids, _ in offers)
        if not offers or (found < minimum and forced_by is None):
            if forced_by is None:
                return None
            raise LedgerConflict(
                f"{in_flight[0].id} of {model_line} is {in_flight[0].state}; wait for its end, one is trained at a time"
                if in_flight
                else f"no fresh episode of {model_line} step {base_step} waits; play and judge some before forcing"
            )
        groups = tuple(ManifestGroup(group, tuple(ids), tuple(rewards)) for _, _, _, group, ids, rewards in offers)
        manifest = Manifest(
            batch_id=_free_name(conn, [model_line, base_step, [[g.group_id, g.rewards] for g in groups]]),
            model_line=model_line,
            base_step=base_step,
            judgement_sets=tuple(sorted({judgement_set for _, _, judgement_set, _, _, _ in offers})),
            windows=tuple(sorted({window for _, window, _, _, _, _ in offers})),
            groups=groups,
        )
        return _enter(conn, manifest, forced_by=forced_by, offers=[offer for offer, *_ in offers])


def branch_batch(conn: psycopg.Connection, batch_id: str, forced_by: str) -> Batch:
    """A batch of the same episodes, rewards and base step as one that has been decided upon: its training makes another
    model, beside the first. Whose claim the episodes are does not change.

    Raises LedgerConflict where there is no such batch, it is not at its end, or another one of the line is in flight.
    """
    with _writing(conn):
        first = get_batch(conn, batch_id)
        if first.state not in DECIDED:
            raise LedgerConflict(
                f"{batch_id} is {first.state}; only what was promoted or rejected is trained once more: see "
                "`rl-assets batches retry` for one that failed"
            )
        _check_none_in_flight(conn, first.model_line, f"{batch_id} cannot be trained once more")
        claim = first.branch_of or first.id
        manifest = replace(Manifest.from_json(first.manifest), batch_id=_free_name(conn, ["branch", claim]))
        return _enter(conn, manifest, forced_by=forced_by, branch_of=claim)


def _enter(
    conn: psycopg.Connection,
    manifest: Manifest,
    *,
    forced_by: str | None,
    offers: Sequence[int] = (),
    branch_of: str | None = None,
) -> Batch:
    """Make a batch, reserved, that holds these offers. One statement, since each is a way to the server and back while
    everybody else waits for the ledger."""
    with conn.cursor(row_factory=class_row(Batch)) as cursor:
        batch = cursor.execute(
            """WITH held AS (UPDATE rl_assets.offers SET batch_id = %(id)s WHERE id = ANY(%(offers)s::bigint[])),
                    noted AS (INSERT INTO rl_assets.batch_events (batch_id, to_state, attempt)
                              VALUES (%(id)s, 'reserved', 1))
               INSERT INTO rl_assets.batches
                 (id, model_line, base_step, state, episodes, groups, manifest, forced_by, branch_of)
               VALUES (%(id)s, %(line)s, %(step)s, 'reserved', %(episodes)s, %(groups)s, %(manifest)s, %(forced)s,
                       %(branch_of)s)
               RETURNING *""",
            {
                "id": manifest.batch_id,
                "offers": list(offers),
                "line": manifest.model_line,
                "step": manifest.base_step,
                "episodes": len(manifest.trajectory_ids),
                "groups": len(manifest.groups),
                "manifest": Jsonb(manifest.to_json()),
                "forced": forced_by,
                "branch_of": branch_of,
            },
        ).fetchone()
    assert batch is not None
    return batch


def get_batch(conn: psycopg.Connection, batch_id: str) -> Batch:
    """Raises LedgerConflict if there is no such batch."""
    with conn.cursor(row_factory=class_row(Batch)) as cursor:
        batch = cursor.execute("SELECT * FROM rl_assets.batches WHERE id = %s", [batch_id]).fetchone()
    if batch is None:
        raise LedgerConflict(f"the ledger has no batch {batch_id!r}; a batch is made by claiming one")
    return batch


def batches(
    conn: psycopg.Connection, *, model_line: str, states: Sequence[str] | None = None, limit: int = 100
) -> list[Batch]:
    """Batches of a model line, newest first, of all states or of those given."""
    with conn.cursor(row_factory=class_row(Batch)) as cursor:
        return cursor.execute(
            """SELECT * FROM rl_assets.batches WHERE model_line = %s AND state = ANY(%s)
               ORDER BY created_at DESC, id LIMIT %s""",
            [model_line, list(states if states is not None else NEXT), limit],
        ).fetchall()


def claimed_ids(conn: psycopg.Connection, batch_id: str) -> list[str]:
    """Ids of the episodes that a batch holds, or that the one holds whose branch it is; none once that is freed."""
    rows = conn.execute(
        """SELECT e.trajectory_id FROM rl_assets.offers AS o JOIN rl_assets.offered_episodes AS e ON e.offer_id = o.id
           WHERE o.batch_id = (SELECT coalesce(branch_of, id) FROM rl_assets.batches WHERE id = %s) ORDER BY 1""",
        [batch_id],
    ).fetchall()
    return [identity for (identity,) in rows]


def advance_batch(
    conn: psycopg.Connection,
    batch_id: str,
    state: str,
    *,
    run_id: str | None = None,
    error: str | None = None,
    result: dict[str, Any] | None = None,
    seen: Batch | None = None,
) -> Batch:
    """Move a batch to another state, with what belongs to it, in one transaction; returns it as it is then.

    A batch that is in the state already stays as it is. From `failed` to `reserved` begins the next attempt; `freed`
    gives the episodes back, as the newest judgement sees them; `trained` marks them as used in Babylon's tables.
    seen: the batch as it was when the move was decided upon. Raises LedgerConflict if there is no such batch, it may
    not go there, or it has moved since it was seen.
    """
    with _writing(conn):
        before = get_batch(conn, batch_id)
        if seen is not None and before != seen:
            raise LedgerConflict(f"{batch_id} was {seen.state} and is {before.state} now; look at it again")
        if before.state == state:
            return before
        if state not in NEXT[before.state]:
            possible = " or ".join(NEXT[before.state])
            raise LedgerConflict(
                f"{batch_id} is {before.state} and cannot become {state}; "
                + (f"from there it becomes {possible}" if possible else "that is its end, claim another batch")
            )
        if state == "reserved":
            _check_none_in_flight(conn, before.model_line, f"{batch_id} cannot be tried again")
        attempt = before.attempt + (state == "reserved")
        if state == "trained":
            mirror_training(conn, Manifest.from_json(before.manifest), is_branch=before.branch_of is not None)
        conn.execute(
            """UPDATE rl_assets.batches SET state = %s, attempt = %s, run_id = coalesce(%s, run_id), error = %s,
                      result = coalesce(%s, result), updated_at = clock_timestamp() WHERE id = %s""",
            [state, attempt, run_id or None, error, None if result is None else Jsonb(result), batch_id],
        )
        _note(conn, batch_id, before.state, state, attempt, run_id or None, error)
        if state == "freed":
            conn.execute("UPDATE rl_assets.offers SET batch_id = NULL WHERE batch_id = %s", [batch_id])
            for window in Manifest.from_json(before.manifest).windows:
                refill(conn, window)
        return get_batch(conn, batch_id)


def _check_none_in_flight(conn: psycopg.Connection, model_line: str, what_not: str) -> None:
    """Raise LedgerConflict if a batch of the line is. what_not: what then cannot be, as the message begins."""
    for other in batches(conn, model_line=model_line, states=IN_FLIGHT, limit=1):
        raise LedgerConflict(f"{what_not} while {other.id} is {other.state}; wait for its end")


def _free_name(conn: psycopg.Connection, content: object) -> str:
    """A batch's name: a hash of its content, and of how often that very content was claimed and freed before."""
    names = (f"batch-{digest([content, earlier])[:16]}" for earlier in itertools.count())
    return next(
        name for name in names if conn.execute("SELECT FROM rl_assets.batches WHERE id = %s", [name]).fetchone() is None
    )


def _note(
    conn: psycopg.Connection,
    batch_id: str,
    from_state: str,
    to_state: str,
    attempt: int,
    run_id: str | None,
    error: str | None,
) -> None:
    conn.execute(
        """INSERT INTO rl_assets.batch_events (batch_id, from_state, to_state, attempt, run_id, error)
           VALUES (%s, %s, %s, %s, %s, %s)""",
        [batch_id, from_state, to_state, attempt, run_id, error],
    )


@contextmanager
def _writing(conn: psycopg.Connection) -> Iterator[None]:
    """A transaction, once no other writer of the ledger is in one.

    Raises DatabaseError if somebody else stands in the way for longer than a writer takes.
    """
    try:
        with conn.transaction():
            limit = f"{LOCK_SECONDS}s"
            conn.execute(
                "SELECT set_config('lock_timeout', %s, true), pg_advisory_xact_lock(%s)", [limit, int(Lock.LEDGER)]
            )
            yield
    except psycopg.errors.LockNotAvailable as error:
        raise DatabaseError(
            f"another session has held the ledger for {LOCK_SECONDS} s; look for it in pg_stat_activity, and end it"
        ) from error
