"""What the episodes of a rollout say: candidate and champion, paired by market, and whether the one does harm.

An episode of the candidate is compared with the mean of episodes that the champion has played on the same market: the
same snapshot, or the same scenario in the same hour of live play. Episodes are taken as they are recorded, each once,
and nothing depends on what they earned, so with equal models every difference is zero on average given those before it,
which is all that `sequence` asks for. Differences of PnL are cut at `most_dollars` on either side: the bounds are of
the mean of what is left, and with equal models that is zero as well.

Once the candidate is champion nobody plays beside it. Its failed steps are then compared with those that the champion
before it had last; PnL is not, because other hours are other markets. So there are three sequences, and each spends a
third of alpha.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg

from rl_assets.episodes import window_of
from rl_assets.registry.rollout import Rollout, has_candidate, note_look
from rl_assets.registry.sequence import Bounds, bounds
from rl_assets.store.episodes import RECENT
from rl_assets.store.record import naive
from rl_assets.windows import GRACE, LENGTH, OVERLAP

MOST_ROWS = 2_000
"""Episodes that one look takes in, at most; the next look takes the next ones."""
SEQUENCES = 3
BEFORE = timedelta(days=7)
"""How far back the champion's episodes are looked for, once it plays no more."""
ANY_MARKET = "any"
_FINE = ("completed", "completed_with_errors")

Row = tuple[str, bool, str, float | None, float]
"""Trajectory id, whether the candidate played it, its market, PnL in dollars, share of failed steps."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What follows from the evidence: `wait`, `advance` or `rollback`, why, and the figures for the record."""

    decision: str
    reason: str
    figures: dict[str, Any]


def look_at(conn: psycopg.Connection, rollout: Rollout) -> Conclusion:
    """Take in the episodes that are new, pair them, and say what follows: in a transaction, under the line's lock."""
    _take_in(conn, rollout)
    _pair(conn, rollout)
    rows = conn.execute(
        "SELECT stage, pnl, errors FROM rl_assets.rollout_pairs WHERE rollout_id = %s ORDER BY number", [rollout.id]
    ).fetchall()
    stages = np.array([row[0] for row in rows], np.int64)
    pnl = np.array([np.nan if row[1] is None else row[1] for row in rows], np.float64)
    errors = np.array([row[2] for row in rows], np.float64)
    return conclude(rollout, stages, pnl, errors)


def conclude(rollout: Rollout, stages: np.ndarray, pnl: np.ndarray, errors: np.ndarray) -> Conclusion:
    """What follows from pairs, in the order in which they came.

    stages: int64 (pairs,), in which each was made. pnl: float64 (pairs,), dollars, NaN where an episode has none.
    errors: float64 (pairs,), in [-1, 1].
    """
    terms = rollout.terms
    watched = rollout.state == "watched"
    scale = terms.most_dollars
    here = int((stages == rollout.stage).sum())
    failing = bounds(errors[stages == rollout.stage] if watched else errors, terms.alpha / SEQUENCES)
    earned = bounds(np.clip(pnl[~np.isnan(pnl)] / scale, -1.0, 1.0), terms.alpha / SEQUENCES)
    figures = {
        "pairs": len(stages),
        "pairs_of_this_stage": here,
        "percentage": rollout.percentage,
        "pnl_dollars": {name: value * scale for name, value in asdict(earned).items() if name != "count"},
        "pnl_pairs": earned.count,
        "failed_steps": asdict(failing),
        "alpha": terms.alpha,
    }
    told = f"{len(stages)} pairs, {_shown(failing, 100.0)} in a hundred steps more fail"
    if earned.count:
        told += f", PnL {_shown(earned, scale)} dollars per episode next to the champion's"
    if failing.lower > terms.harm_errors:
        return Conclusion(
            "rollback", f"its steps fail too often, by over {100 * terms.harm_errors:g} in a hundred: {told}", figures
        )
    steps_are_fine = here >= terms.least_pairs and failing.upper < terms.harm_errors
    if watched:
        if steps_are_fine:
            return Conclusion("advance", f"no more steps fail than before: {told}", figures)
        return Conclusion("wait", f"step {rollout.step} is live and watched: {told}", figures)
    if earned.upper * scale < -terms.harm_dollars:
        return Conclusion("rollback", f"it loses more than {terms.harm_dollars:g} dollars per episode: {told}", figures)
    if steps_are_fine and earned.lower * scale > -terms.harm_dollars:
        return Conclusion("advance", f"it is shown to do no harm: {told}", figures)
    if len(stages) >= terms.most_pairs:
        return Conclusion("rollback", f"it is not shown to do no harm in {terms.most_pairs} pairs: {told}", figures)
    return Conclusion("wait", f"step {rollout.step} is with {rollout.percentage} % of the agents: {told}", figures)


def _shown(found: Bounds, scale: float) -> str:
    return f"{found.mean * scale:+.2f} [{found.lower * scale:+.2f}, {found.upper * scale:+.2f}]"


def _take_in(conn: psycopg.Connection, rollout: Rollout) -> None:
    """Enter the episodes of both models that are not entered yet, the oldest first."""
    now = datetime.now(UTC)
    both = [_recorded(conn, rollout, is_candidate=mine) for mine in (True, False)]
    if all(len(rows) < MOST_ROWS for rows in both):
        note_look(conn, rollout.id, now)
    rows = [*both[0], *both[1]]
    if rollout.state == "staged":
        rows += _failed_ticks(conn, rollout)
    with conn.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO rl_assets.rollout_episodes (rollout_id, trajectory_id, is_candidate, market, pnl, errors)
               VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
            [(rollout.id, *row) for row in rows],
        )


def _recorded(conn: psycopg.Connection, rollout: Rollout, *, is_candidate: bool) -> list[Row]:
    """Episodes that one of the two has played since they play side by side; of a champion that is no more, its last."""
    step = rollout.step if is_candidate else rollout.champion_step
    watched = rollout.state == "watched"
    since = rollout.started_at
    if watched:
        since = rollout.started_at - BEFORE if not is_candidate else rollout.changed_at
    looked = rollout.looked_at
    oldest = since if looked is None else max(since, looked - RECENT)
    found = conn.execute(
        """SELECT "trajectoryId", "windowId", "scenarioId", "finalPnL", "finalStatus", "episodeLength", "metricsJson",
                  "metadataJson"
           FROM trajectories AS t
           WHERE "windowId" >= %(window)s AND "windowId" < 'A' AND "endTime" >= %(since)s AND NOT "isEvaluation"
             AND (%(looked)s::timestamp IS NULL OR "updatedAt" >= %(looked)s OR "windowId" > %(settled_then)s)
             AND strpos("metadataJson", %(policy)s) > 0
             AND ("windowId" <= %(settled)s OR strpos("metadataJson", '"snapshotId":null') = 0)
             AND NOT EXISTS (SELECT FROM rl_assets.rollout_episodes AS e
                             WHERE e.rollout_id = %(rollout)s AND e.trajectory_id = t."trajectoryId")
           ORDER BY "endTime" DESC, "trajectoryId" LIMIT %(most)s""",
        {
            "window": window_of(oldest),
            "since": naive(since),
            # What has not changed since was seen then, unless its hour was in play.
            "looked": None if looked is None else naive(looked - OVERLAP),
            "settled_then": None if looked is None else window_of(looked - LENGTH - GRACE),
            # Until then a live agent's episode grows by a step per tick.
            "settled": window_of(datetime.now(UTC) - LENGTH - GRACE),
            # As `store.record` writes it: the cast of a foreign row's text to JSON could fail.
            "policy": f'"policy":{json.dumps(rollout.model_line)},"step":{step},',
            "rollout": rollout.id,
            "most": MOST_ROWS,
        },
    ).fetchall()
    rows = []
    for trajectory_id, window, scenario, realised, status, length, metrics, metadata in reversed(found):
        known = json.loads(metadata)
        expected = known.get("expectedPnl")
        market = ANY_MARKET if watched else known.get("snapshotId") or f"{window} {scenario}"
        share = min(json.loads(metrics).get("errorCount", 0) / length, 1.0) if length and status in _FINE else 1.0
        pnl = None if watched else realised if expected is None else expected
        rows.append((trajectory_id, is_candidate, market, pnl, share))
    return rows


def _failed_ticks(conn: psycopg.Connection, rollout: Rollout) -> list[Row]:
    """Ticks of live agents that ended without an episode: the model of an agent follows from its place."""
    found = conn.execute(
        """SELECT a.agent_id, extract(epoch FROM t.tick)::bigint, t.window_id, a.scenario
           FROM rl_assets.live_ticks AS t JOIN rl_assets.live_agents AS a USING (agent_id)
           WHERE a.kind = 'model' AND t.state = 'failed' AND t.tick >= %s ORDER BY t.tick DESC, 1 LIMIT %s""",
        [rollout.changed_at, MOST_ROWS],
    ).fetchall()
    return [
        (f"tick-{agent}-{tick}", has_candidate(rollout, agent), f"{window} {scenario}", None, 1.0)
        for agent, tick, window, scenario in found
    ]


def _pair(conn: psycopg.Connection, rollout: Rollout) -> None:
    """Give each waiting episode of the candidate its share of the champion's that wait on the same market."""
    waiting = conn.execute(
        """SELECT market, is_candidate, trajectory_id, pnl, errors FROM rl_assets.rollout_episodes
           WHERE rollout_id = %s AND pair IS NULL ORDER BY market, is_candidate DESC, trajectory_id""",
        [rollout.id],
    ).fetchall()
    last = conn.execute(
        "SELECT coalesce(max(number), 0) FROM rl_assets.rollout_pairs WHERE rollout_id = %s", [rollout.id]
    ).fetchone()
    number = last[0] if last else 0
    # At 5 % nineteen of the champion's episodes come to one of the candidate's; no one is to take those of the next.
    most = math.ceil((100 - rollout.percentage) / rollout.percentage) or 1
    pairs, members = [], []
    for _, group in itertools.groupby(waiting, key=lambda row: row[0]):
        both = list(group)
        ours, theirs = ([row[2:] for row in both if row[1] is mine] for mine in (True, False))
        count = min(len(ours), len(theirs))
        for place in range(count):
            mine, others = ours[place], theirs[place::count][:most]
            number += 1
            worth = [row[1] for row in others if row[1] is not None]
            pnl = None if mine[1] is None or not worth else mine[1] - float(np.mean(worth))
            pairs.append((rollout.id, number, rollout.stage, pnl, mine[2] - float(np.mean([row[2] for row in others]))))
            members += [(number, rollout.id, row[0]) for row in (mine, *others)]
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO rl_assets.rollout_pairs (rollout_id, number, stage, pnl, errors) VALUES (%s, %s, %s, %s, %s)",
            pairs,
        )
        cursor.executemany(
            "UPDATE rl_assets.rollout_episodes SET pair = %s WHERE rollout_id = %s AND trajectory_id = %s", members
        )
