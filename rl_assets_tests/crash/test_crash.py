"""A worker that is killed at every write of the loop that lasts: whoever comes next ends where it would have ended.

The crash points are counted, not chosen: the same work is done again and again, and dies one write later each time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.registry.decisions import latest_evaluation, record_evaluation
from rl_assets.registry.models import champion_step, list_models
from rl_assets.store.database import connect
from rl_assets.store.ledger import Batch, batches, claimed_ids, readiness
from rl_assets_tests.crash.conftest import Worker, World
from rl_assets_tests.crash.worker import LINE
from rl_assets_tests.registry.made import a_decision

_log = logging.getLogger(__name__)
STRIDE = int(os.environ.get("RL_ASSETS_CRASH_STRIDE", "8"))
"""Every how many-th crash point is tried; 1 tries them all, which takes many minutes."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def check(world: World, conn: psycopg.Connection) -> Batch:
    """What must hold after any crash, once another worker has been at work: returns the one batch."""
    (batch,) = batches(conn, model_line=LINE)
    members = [identity for group in batch.manifest["groups"] for identity in group["trajectory_ids"]]
    assert set(Counter(members).values()) == {1}
    assert claimed_ids(conn, batch.id) == sorted(members)
    assert batch.attempt <= 2
    used = conn.execute(
        'SELECT "trajectoryId", "trainedInBatch" FROM trajectories WHERE "usedInTraining" ORDER BY 1'
    ).fetchall()
    assert used == [(identity, batch.id) for identity in sorted(members)]
    assert conn.execute('SELECT "batchId", "status" FROM training_batches').fetchall() == [(batch.id, "completed")]

    candidate, base = list_models(conn, LINE)
    assert (base.step, candidate.step, candidate.batch_id, candidate.parent_step) == (0, 1, batch.id, 0)
    assert checkpoint_digest(candidate.checkpoint_path) == candidate.digest
    manifest = world.data / "batches" / batch.id / "manifest.json"
    assert json.loads(manifest.read_text(encoding="utf-8")) == {**batch.manifest, "without_logprobs": 0}
    checkpoints = world.data / "art" / "rl-assets" / "models" / LINE / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir() if path.name.isdigit()) == ["0000", "0001"]
    return batch


def crash_everywhere(
    start: World, worker: Worker, root: Path, *, stop_at: str | None, check_end: Callable[[World], None], only: str = ""
) -> list[str]:
    """Kill a worker at each crash point from a state on, have a second one heal it, and check; returns the points.

    stop_at: how the point begins at which this part of the work is done. only: what a point that is tried holds.
    """
    whole = start.copy(root / "whole")
    assert worker(whole.order(stop_at=stop_at)) == 0, whole.said
    points = whole.reached
    check_end(whole)
    whole.drop()
    _log.info("%d crash points: %s", sum(only in point for point in points), "; ".join(points))
    for number, point in enumerate(points, 1):
        if only not in point or (not only and number % STRIDE):
            continue
        world = start.copy(root / str(number))
        assert worker(world.order(die_at=number)) == -signal.SIGKILL, f"{point}\n{world.said}"
        if stop_at is None or not point.startswith(stop_at):
            assert worker(world.order(stop_at=stop_at)) == 0, f"{point}\n{world.said}"
        try:
            check_end(world)
        except AssertionError as error:
            error.add_note(f"after a crash {point}")
            raise
        world.drop()
    return points


def test_killed_anywhere_from_the_claim_to_the_checkpoint(waiting: World, worker: Worker, tmp_path: Path):
    def is_trained(world: World) -> None:
        with connect(world.url) as conn:
            # What has been committed when the last point of the claim died is healed without a second claim.
            assert check(world, conn).state == "trained"

    points = crash_everywhere(waiting, worker, tmp_path, stop_at="after commit trained", check_end=is_trained)
    for needed in ("before the request", "after commit reserved", "before rename to 0001", "after commit training"):
        assert any(point.startswith(needed) for point in points)


def test_killed_anywhere_from_the_checkpoint_to_the_decision(trained: World, worker: Worker, tmp_path: Path):
    def is_rejected(world: World) -> None:
        with connect(world.url) as conn:
            batch = check(world, conn)
            assert batch.state == "rejected"
            assert conn.execute("SELECT count(*) FROM rl_assets.evaluations").fetchone() == (1,)
            assert (champion_step(conn, LINE), readiness(conn, LINE, 0).fresh) == (0, 0)
            assert [model.state for model in list_models(conn, LINE)] == ["rejected", "champion"]

    points = crash_everywhere(trained, worker, tmp_path, stop_at=None, check_end=is_rejected)
    assert any(point.startswith("after commit rejected") for point in points)


def test_killed_anywhere_while_a_candidate_is_promoted(trained: World, worker: Worker, tmp_path: Path):
    better = trained.copy(tmp_path / "better")
    with connect(better.url) as conn:
        (batch,) = batches(conn, model_line=LINE)
        record_evaluation(conn, batch_id=batch.id, candidate_step=1, champion_step=0, decision=a_decision(promote=True))
    assert worker(better.order(stop_at="after commit evaluated")) == 0, better.said

    def is_promoted(world: World) -> None:
        with connect(world.url) as conn:
            batch = check(world, conn)
            found = latest_evaluation(conn, batch.id)
            assert (batch.state, champion_step(conn, LINE)) == ("promoted", 1)
            assert found is not None and found.decision.promote
            assert conn.execute("SELECT step FROM rl_assets.champion_history ORDER BY id").fetchall() == [(0,), (1,)]
            live = conn.execute("""SELECT "version" FROM trained_models WHERE "status" = 'deployed'""").fetchall()
            assert live == [("v1.0.1",)]

    # What comes before is tried with a candidate that is rejected.
    points = crash_everywhere(better, worker, tmp_path, stop_at=None, check_end=is_promoted, only="promoted")
    better.drop()
    assert any(point.startswith("after commit promoted") for point in points)
