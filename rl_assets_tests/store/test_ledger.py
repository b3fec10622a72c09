"""The ledger on a real Postgres: who waits, who is claimed, and what becomes of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from rl_assets.episodes import Episode
from rl_assets.grouping import build_groups
from rl_assets.judging import JudgementSet, OutcomeJudge
from rl_assets.store.agents import provision_agents
from rl_assets.store.episodes import changed_windows, new_trajectory_ids, write_episodes
from rl_assets.store.ledger import advance_batch, claim_batch, claimed_ids, readiness, record_judgements
from rl_assets.training.manifest import Manifest
from rl_assets_tests.store.made import SAMPLE, WINDOW, an_episode

LINE = SAMPLE.policy.name


def played(conn: psycopg.Connection, snapshots: int, siblings: int = 2, **changes) -> list[Episode]:
    """Recorded episodes that earn from one dollar on, a dollar more each."""
    agent = provision_agents(conn, ["model"])["model"]
    ids = new_trajectory_ids(snapshots * siblings)
    episodes = [
        an_episode(
            trajectory_id=ids[n],
            agent_id=agent,
            snapshot_id=f"train-{n // siblings:06d}",
            breaches=0,
            expected_pnl=1.0 + n,
            **changes,
        )
        for n in range(snapshots * siblings)
    ]
    write_episodes(conn, episodes)
    return episodes


def judge(conn: psycopg.Connection, episodes: Sequence[Episode], group_size: int = 2, window: str = WINDOW) -> int:
    groups = build_groups(episodes, window_id=window, group_size=group_size)
    by_id = {episode.trajectory_id: episode for episode in episodes}
    ranker = OutcomeJudge()
    return record_judgements(conn, JudgementSet.of(window, ranker, [ranker.rank(g, by_id) for g in groups], groups))


def claim(conn: psycopg.Connection, minimum: int, forced_by: str | None = None):
    return claim_batch(conn, model_line=LINE, base_step=0, minimum=minimum, forced_by=forced_by)


def test_judged_episodes_wait_are_claimed_and_are_used(conn: psycopg.Connection):
    episodes = played(conn, 4)
    assert judge(conn, episodes) == 8
    assert readiness(conn, LINE, 0).fresh == 8
    batch = claim(conn, 5)
    assert batch is not None and batch.episodes == 6
    manifest = Manifest.from_json(batch.manifest)
    assert sorted(manifest.trajectory_ids) == claimed_ids(conn, batch.id)
    advance_batch(conn, batch.id, "training", run_id="run")
    trained = advance_batch(conn, batch.id, "trained", result={"step": 1})
    assert (trained.state, trained.run_id, trained.result) == ("trained", "run", {"step": 1})
    used = conn.execute('SELECT "trajectoryId" FROM trajectories WHERE "trainedInBatch" = %s', [batch.id]).fetchall()
    assert sorted(identity for (identity,) in used) == claimed_ids(conn, batch.id)
    assert changed_windows(conn, None, 10) == []
    assert readiness(conn, LINE, 0).fresh == 2
