"""A real daemon that is killed: whoever comes next asks for what was claimed, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from rl_assets.automation.runs import RUN_KEY
from rl_assets.logs import PARTITION
from rl_assets.settings import REPOSITORY
from rl_assets.store.ledger import batches, claimed_ids, readiness
from rl_assets_tests.store.waiting import LINE, a_champion, waiting

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def until(done: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 400
    while not done():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def a_daemon(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that ends by SIGKILL, with the processes that it has started."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", "workspace.yaml"]
    with (
        log.open("ab") as said,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=said, stderr=said, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_daemon_killed_between_claim_and_request_is_made_up_for(
    conn: psycopg.Connection,
    postgres_url: str,
    empty_postgres_url: str,
    reachable: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in {
        "DATABASE_URL": postgres_url,
        "DAGSTER_PG_URL": empty_postgres_url,
        "DAGSTER_HOME": str(REPOSITORY),
        "RL_ASSETS_DATA": str(reachable),
        "RL_ASSETS_DAGSTER_DIR": str(reachable / "dagster"),
        "TRAINING_MIN_TRAJECTORIES": "4",
    }.items():
        monkeypatch.setenv(name, value)
    a_champion(conn)
    everybody = sorted(episode.trajectory_id for episode in waiting(conn, 8))
    with dg.DagsterInstance.from_config(str(REPOSITORY)) as instance, psycopg.connect(empty_postgres_url) as holding:
        assert instance.get_runs() == []
        # Dagster may read its runs and not add one: the daemon gets as far as the request, and no further.
        holding.execute("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE")
        with a_daemon(reachable / "daemon.log") as first:
            until(lambda: batches(conn, model_line=LINE), first)
        (batch,) = batches(conn, model_line=LINE)
        # What it had sent when it died waits for the lock on the server, and dies with its connection.
        holding.execute(
            """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        )
        holding.rollback()
        assert (batch.state, instance.get_runs()) == ("reserved", [])

        with a_daemon(reachable / "daemon.log") as second:
            until(instance.get_runs, second)
        runs = instance.get_runs(dg.RunsFilter(tags={PARTITION: batch.id}))
        assert [run.tags[RUN_KEY] for run in runs] == [f"{batch.id}:1"]
        assert instance.has_dynamic_partition("batches", batch.id)
    (still,) = batches(conn, model_line=LINE)
    held = claimed_ids(conn, batch.id)
    assert (still.id, len(held), readiness(conn, LINE, 0).fresh) == (batch.id, 4, 4)
    assert set(held) < set(everybody)
