"""Offers: judged groups that wait to be claimed. Each function is one part of a transaction of the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from rl_assets.grouping import group_id


def refill(conn: psycopg.Connection, window_id: str) -> None:
    """Make the unclaimed offers of a window anew, from its groups' newest judgements and from what is not claimed."""
    conn.execute("DELETE FROM rl_assets.offers WHERE window_id = %s AND batch_id IS NULL", [window_id])
    judged = conn.execute(
        "SELECT group_id, judged_in FROM rl_assets.groups WHERE window_id = %s AND judged_in IS NOT NULL ORDER BY 1",
        [window_id],
    ).fetchall()
    offers = list(_trainable(conn, judged))
    free = _free(conn, [identity for *_, rewards in offers for identity in rewards])
    rows = []
    for judgement_set, group, rewards in offers:
        kept = {identity: reward for identity, reward in rewards.items() if identity in free}
        free.difference_update(kept)  # in place, which `-=` of keys is not
        if len(set(kept.values())) < 2:
            continue  # what is left of the group is one episode, or all do equally well
        whole = len(kept) == len(rewards)
        rows.append(
            {
                "model_line": group["policy"],
                "step": group["step"],
                "group_id": group["group_id"] if whole else group_id(group["kind"], group["key"], kept),
                "judgement_set": judgement_set,
                "trajectory_ids": list(kept),
                "rewards": list(kept.values()),
            }
        )
    conn.execute(
        """WITH given AS (
             SELECT * FROM jsonb_to_recordset(%s) AS g (model_line text, step integer, group_id text,
               judgement_set text, trajectory_ids text[], rewards double precision[])),
           offer AS (
             INSERT INTO rl_assets.offers
               (model_line, step, window_id, group_id, judgement_set, members, trajectory_ids, rewards)
             SELECT model_line, step, %s, group_id, judgement_set, cardinality(trajectory_ids), trajectory_ids, rewards
             FROM given RETURNING id, trajectory_ids)
           INSERT INTO rl_assets.offered_episodes (offer_id, trajectory_id)
           SELECT id, unnest(trajectory_ids) FROM offer""",
        [Jsonb(rows), window_id],
    )


def waiting_ids(conn: psycopg.Connection, window_id: str) -> set[str]:
    """Episodes of a window that may be claimed."""
    rows = conn.execute(
        "SELECT unnest(trajectory_ids) FROM rl_assets.offers WHERE window_id = %s AND batch_id IS NULL", [window_id]
    ).fetchall()
    return {identity for (identity,) in rows}


def oldest(conn: psycopg.Connection, model_line: str, steps: range, minimum: int) -> list[tuple]:
    """(id, window, judgement set, group, trajectory ids, rewards) of offers of these steps, oldest first, until
    `minimum` members."""
    return conn.execute(
        # Each step is read by itself, in the order of the index.
        """SELECT id, window_id, judgement_set, group_id, trajectory_ids, rewards FROM (
             SELECT o.*, sum(members) OVER (ORDER BY window_id, group_id, id) - members AS before
             FROM unnest(%s::integer[]) AS played (step), LATERAL (
               SELECT * FROM rl_assets.offers AS o
               WHERE o.model_line = %s AND o.step = played.step AND o.batch_id IS NULL
               ORDER BY o.window_id, o.group_id, o.id LIMIT %s) AS o) AS counted
           WHERE before < %s ORDER BY window_id, group_id, id""",
        [list(steps), model_line, minimum // 2 + 1, minimum],  # an offer has two members at least
    ).fetchall()


def oldest_free(conn: psycopg.Connection, model_line: str, steps: range, minimum: int) -> list[tuple]:
    """What `oldest` gives once all of it is free: the game's own trainer may have used an episode since it was offered,
    and somebody may have deleted it. Windows in which that is so are refilled."""
    while True:
        offers = oldest(conn, model_line, steps, minimum)
        ids = [identity for *_, members, _ in offers for identity in members]
        rows = conn.execute(
            'SELECT "trajectoryId" FROM trajectories WHERE "trajectoryId" = ANY(%s) AND NOT "usedInTraining"', [ids]
        ).fetchall()
        gone = set(ids).difference(identity for (identity,) in rows)
        stale = {window for _, window, _, _, members, _ in offers if gone.intersection(members)}
        if not stale:
            return offers
        for window in sorted(stale):
            refill(conn, window)


def _trainable(
    conn: psycopg.Connection, judged: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Any], dict[str, float]]]:
    """Of groups and the sets that judge them, those to train on: set, group and reward by trajectory id."""
    bodies = {}
    for _, judgement_set in judged:
        if judgement_set not in bodies:
            bodies[judgement_set] = _body(conn, judgement_set)
    for name, judgement_set in judged:
        group, ranking = bodies[judgement_set][name]
        if ranking["trainable"]:
            score = {verdict["trajectory_id"]: verdict["score"] for verdict in ranking["verdicts"]}
            yield judgement_set, group, {identity: score[identity] for identity in group["trajectory_ids"]}


def _body(conn: psycopg.Connection, judgement_set: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Group and ranking, by group id."""
    rows = conn.execute("SELECT body FROM rl_assets.judgement_sets WHERE id = %s", [judgement_set]).fetchall()
    ((body,),) = rows
    groups = {group["group_id"]: group for group in body["groups"]}
    return {ranking["group_id"]: (groups[ranking["group_id"]], ranking) for ranking in body["rankings"]}


def _free(conn: psycopg.Connection, ids: list[str]) -> set[str]:
    """Those that are recorded, that no training of anybody has used, and that are in no offer."""
    rows = conn.execute(
        """SELECT "trajectoryId" FROM trajectories AS t WHERE "trajectoryId" = ANY(%s) AND NOT "usedInTraining"
           AND NOT EXISTS (SELECT FROM rl_assets.offered_episodes AS e WHERE e.trajectory_id = t."trajectoryId")""",
        [ids],
    ).fetchall()
    return {identity for (identity,) in rows}
