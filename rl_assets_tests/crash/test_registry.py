"""A server that crashes while judgements, models and the champion are written: all of a change is there, or none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from rl_assets.registry.models import get_model, promote, register_candidate, reject, rollback
from rl_assets.registry.stages import advance, begin
from rl_assets.registry.terms import Terms
from rl_assets.store.database import connect, migrate
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets.store.ledger import record_judgements
from rl_assets_tests.registry.made import LINE, a_base, a_batch, a_checkpoint, a_result, evaluated
from rl_assets_tests.registry.played import play_beside, well
from rl_assets_tests.store.waiting import judged, recorded

pytestmark = [pytest.mark.slow]

STAGED = Terms(stages=(50, 100), least_pairs=20)
WRITTEN = (
    *("rl_assets.judgement_sets", "rl_assets.groups", "rl_assets.offers", "rl_assets.offered_episodes"),
    *("rl_assets.models", "rl_assets.champion", "rl_assets.champion_history", "rl_assets.evaluations"),
    *("rl_assets.rollouts", "rl_assets.rollout_events", "rl_assets.rollout_pairs", "rl_assets.rollout_episodes"),
    *("trained_models", "trajectories", "reward_judgments"),
)


def test_a_change_of_the_registry_is_whole_or_not_there(reachable: Path):
    """A backend dies by SIGKILL just before each commit, and whoever was at work does it again."""
    server = EmbeddedPostgres(reachable / "postgres", elsewhere=reachable / "elsewhere")
    server.up()
    try:
        migrate(server.url())
        with connect(server.url()) as conn:
            a_base(conn, reachable)
            episodes = recorded(conn, 8)
            results = [a_result(a_batch(conn, str(n), 0), a_checkpoint(reachable / LINE, n), 0, n) for n in (1, 2, 3)]
        changes: list[tuple[str, Callable[[psycopg.Connection], object]]] = [
            ("judged", lambda c: record_judgements(c, judged(episodes))),
            *((f"step {r.step} registered", lambda c, r=r: register_candidate(c, r)) for r in results),
            ("step 1 evaluated", lambda c: evaluated(c, get_model(c, LINE, 1), promote=True)),
            ("step 1 promoted", lambda c: promote(c, LINE, 1)),
            ("step 1 taken back", lambda c: rollback(c, LINE, "a person says so")),
            ("step 2 evaluated", lambda c: evaluated(c, get_model(c, LINE, 2), promote=False)),
            ("step 2 rejected", lambda c: reject(c, LINE, 2)),
            ("step 3 evaluated", lambda c: evaluated(c, get_model(c, LINE, 3), promote=True)),
            ("step 3 staged", lambda c: begin(c, LINE, 3, STAGED, well)),
            ("both played", lambda c: play_beside(c, [1.0] * 300, [0.0] * 300, steps=(3, 0))),
            ("step 3 arrived", lambda c: advance(c, LINE, well)),
        ]
        for name, change in changes:
            with connect(server.url()) as conn:
                before = written(conn)
            with pytest.raises(psycopg.OperationalError), connect(server.url()) as conn, conn.transaction():
                change(conn)
                assert written(conn) != before, name
                os.kill(conn.info.backend_pid, signal.SIGKILL)
            server.up()
            with connect(server.url()) as conn:
                assert written(conn) == before, name
                change(conn)
        with connect(server.url()) as conn:
            states = conn.execute("SELECT step, state FROM rl_assets.models ORDER BY step").fetchall()
            assert states == [(0, "retired"), (1, "rejected"), (2, "rejected"), (3, "champion")]
            assert conn.execute("SELECT step, previous_step FROM rl_assets.champion").fetchall() == [(3, 0)]
            live = "SELECT \"version\" FROM trained_models WHERE \"status\" IN ('ready', 'deployed')"
            assert conn.execute(live).fetchall() == [(get_model(conn, LINE, 3).version,)]
    finally:
        server.down()


def written(conn: psycopg.Connection) -> list[tuple[str, int, str | None]]:
    """How many rows each table has, and a hash of all of them."""
    found = []
    for table in WRITTEN:
        query = f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} AS t"
        row = conn.execute(query).fetchone()  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert row is not None
        found.append((table, *row))
    return found
