"""What Babylon's own tables say of judging and training: scores, which episodes were used, and batches.

Times are set by hand: Babylon's columns have no zone. Whoever writes to rows of trajectories here does so under a lock,
or two that have some in common would wait for each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import psycopg

from rl_assets.judging import JudgementSet, Ranking
from rl_assets.store.locks import Lock, transaction_lock
from rl_assets.store.record import naive
from rl_assets.training.manifest import Manifest

CHUNK = 500
"""Verdicts of a transaction: what a training that marks its episodes waits for, a tenth of a second or two."""


def mirror_judgements(
    conn: psycopg.Connection, judgement: JudgementSet, versions: Mapping[str, str] | None = None
) -> None:
    """Write each verdict to `reward_judgments`, in place of an earlier one, and to its trajectory, some at a time.

    `updatedAt` becomes `judgedAt`, by which a reader of changes knows that the row is otherwise what it was. One that
    has changed since it was read keeps its `updatedAt`, and so remains news; see `record_judgements`.
    """
    rows = [row for ranking in judgement.rankings for row in _rows(ranking)]
    now = naive(datetime.now(UTC))
    for first in range(0, len(rows), CHUNK):
        with conn.transaction():
            transaction_lock(conn, Lock.MIRROR)
            _mirror(conn, judgement, rows[first : first + CHUNK], versions, now)


def _mirror(
    conn: psycopg.Connection,
    judgement: JudgementSet,
    rows: list[tuple],
    versions: Mapping[str, str] | None,
    now: datetime,
) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    ids, groups, scores, ranks, normalised, reasons, components = columns
    criteria = json.dumps(judgement.criteria, sort_keys=True)
    conn.execute(
        """INSERT INTO reward_judgments ("id", "trajectoryId", "judgeModel", "judgeVersion", "overallScore",
               "componentScoresJson", "rank", "normalizedScore", "groupId", "reasoning", "criteriaJson", "judgedAt")
           SELECT 'judgement-' || v.id, v.id, %s, %s, v.score, v.components, v.rank, v.normalised, v.group_id,
                  v.reason, %s, %s
           FROM unnest(%s::text[], %s::text[], %s::float8[], %s::int[], %s::float8[], %s::text[], %s::text[])
                AS v (id, group_id, score, rank, normalised, reason, components)
           JOIN trajectories AS t ON t."trajectoryId" = v.id
           ON CONFLICT ("trajectoryId") DO UPDATE SET "judgeModel" = excluded."judgeModel",
               "judgeVersion" = excluded."judgeVersion", "overallScore" = excluded."overallScore",
               "componentScoresJson" = excluded."componentScoresJson", "rank" = excluded."rank",
               "normalizedScore" = excluded."normalizedScore", "groupId" = excluded."groupId",
               "reasoning" = excluded."reasoning", "criteriaJson" = excluded."criteriaJson",
               "judgedAt" = excluded."judgedAt" """,
        [
            judgement.judge,
            judgement.judge_version,
            criteria,
            now,
            ids,
            groups,
            scores,
            ranks,
            normalised,
            reasons,
            components,
        ],
    )
    seen = [None if versions is None else versions.get(identity, "-infinity") for identity in ids]
    conn.execute(
        """UPDATE trajectories AS t SET "aiJudgeReward" = v.score, "aiJudgeReasoning" = v.reason, "judgedAt" = %(now)s,
                  "updatedAt" = CASE WHEN v.seen IS NULL OR t."updatedAt" IN (v.seen, t."judgedAt") THEN %(now)s
                                     ELSE t."updatedAt" END
           FROM unnest(%(ids)s::text[], %(scores)s::float8[], %(reasons)s::text[], %(seen)s::timestamp[])
                AS v (id, score, reason, seen) WHERE t."trajectoryId" = v.id""",
        {"now": now, "ids": ids, "scores": scores, "reasons": reasons, "seen": seen},
    )


def mirror_training(conn: psycopg.Connection, manifest: Manifest, *, is_branch: bool) -> None:
    """Mark exactly the manifest's episodes as used, and add its row of `training_batches`, completed. Those of a branch
    keep the mark of the batch that has claimed them.

    The row is never there in another state: a worker of Babylon would train what it finds pending. This is part of a
    transaction of the ledger.
    """
    ids = list(manifest.trajectory_ids)
    now = naive(datetime.now(UTC))
    if not is_branch:
        transaction_lock(conn, Lock.MIRROR)
        conn.execute(
            """UPDATE trajectories SET "usedInTraining" = true, "trainedInBatch" = %s, "updatedAt" = %s
               WHERE "trajectoryId" = ANY(%s)""",
            [manifest.batch_id, now, ids],
        )
    groups = [{"groupId": g.group_id, "trajectoryIds": g.trajectory_ids, "rewards": g.rewards} for g in manifest.groups]
    conn.execute(
        """INSERT INTO training_batches ("id", "batchId", "scenarioId", "baseModel", "modelVersion", "trajectoryIds",
               "rankingsJson", "rewardsJson", "status", "createdAt", "startedAt", "completedAt")
           SELECT b.id, b.id, %s, %s, coalesce(m.version, 'unregistered'), %s, %s, %s, 'completed',
                  b.created_at AT TIME ZONE 'UTC', b.updated_at AT TIME ZONE 'UTC', %s
           FROM rl_assets.batches AS b LEFT JOIN rl_assets.models AS m ON m.batch_id = b.id WHERE b.id = %s
           ON CONFLICT ("batchId") DO NOTHING""",
        [
            manifest.windows[0] if len(manifest.windows) == 1 else manifest.batch_id,
            f"{manifest.model_line}@{manifest.base_step}",
            json.dumps(ids),
            json.dumps(groups),
            json.dumps([reward for group in manifest.groups for reward in group.rewards]),
            now,
            manifest.batch_id,
        ],
    )


def _rows(ranking: Ranking) -> list[tuple]:
    if not ranking.verdicts:
        return []
    best, worst = ranking.verdicts[0].score, ranking.verdicts[-1].score
    return [
        (
            verdict.trajectory_id,
            ranking.group_id,
            verdict.score,
            verdict.rank,
            (verdict.score - worst) / (best - worst) if best > worst else None,
            verdict.explanation,
            json.dumps(verdict.components, sort_keys=True),
        )
        for verdict in ranking.verdicts
    ]
