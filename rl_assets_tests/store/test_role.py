"""The role with the least rights, on a real Postgres: all that the loop writes works, and nothing of Babylon's can be
harmed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from rl_assets.cli import run
from rl_assets.errors import ConfigurationError, DatabaseError
from rl_assets.registry.models import champion_step, promote, reject, rollback
from rl_assets.store.database import connect, migrate
from rl_assets.store.judge_calls import Limits, cached_answers, reserve, settle, spent
from rl_assets.store.ledger import advance_batch, claim_batch, readiness
from rl_assets.store.live import give_points, live_agents, register
from rl_assets.store.outcomes import due_windows, track_outcomes
from rl_assets.store.role import role_sql
from rl_assets.store.snapshots import list_snapshots
from rl_assets_tests.registry.made import LINE, a_base, a_candidate, evaluated
from rl_assets_tests.store.waiting import waiting

WINDOW = "2026-11-23T08:00"


@pytest.fixture
def as_role(postgres_url: str) -> Iterator[str]:
    """The URL of a new migrated database for the role, made as a person would make it."""
    name = f"platform_{urlsplit(postgres_url).path.strip('/')}"
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        for _ in range(2):
            owner.execute(role_sql(name))  # pyright: ignore[reportArgumentType, reportCallIssue]
        owner.execute(f"ALTER ROLE {name} PASSWORD 'hunter22'")  # pyright: ignore[reportArgumentType, reportCallIssue]
    parts = urlsplit(postgres_url)
    host = parts.netloc.rsplit("@", 1)[1]
    yield urlunsplit(parts._replace(netloc=f"{name}:hunter22@{host}"))
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(f"DROP OWNED BY {name}")  # pyright: ignore[reportArgumentType, reportCallIssue]
        owner.execute(f"DROP ROLE {name}")  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_the_loop_needs_no_more_than_the_role_may(as_role: str, tmp_path: Path):
    with connect(as_role) as conn:
        a_base(conn, tmp_path)
        waiting(conn, 12)
        assert readiness(conn, LINE, 0).fresh == 12
        batch = claim_batch(conn, model_line=LINE, base_step=0, minimum=12, forced_by=None)
        assert batch is not None
        for state in ("training", "trained"):
            advance_batch(conn, batch.id, state)
        used = 'SELECT count(*) FROM trajectories WHERE "usedInTraining"'
        assert conn.execute(used).fetchone() == (12,)
        for step, better in ((1, True), (2, False)):
            evaluated(conn, a_candidate(conn, tmp_path, step), promote=better)
            (promote if better else reject)(conn, LINE, step)
        rollback(conn, LINE, "tried")
        assert champion_step(conn, LINE) == 0
        register(conn, "ada", "reference", {"rule": "hold"}, scenario="live", cost=1, seconds=5, memory_mb=64)
        assert give_points(conn, "ada", 3, "to begin with") == 3
        assert [agent.name for agent in live_agents(conn)] == ["ada"]
        assert cached_answers(conn, ["none"]) == {}
        reservation = reserve(conn, WINDOW, "judge", 10, None, Limits(100, None, 100, None), 60.0)
        assert isinstance(reservation, int)
        settle(conn, reservation, "answered", 5, None)
        assert spent(conn, WINDOW).window_tokens == 5
        track_outcomes(conn, WINDOW)
        due_windows(conn, datetime.now(UTC))
        assert list_snapshots(conn) == []


def test_an_up_to_date_database_needs_no_right_to_migrate(as_role: str):
    migrate(as_role)


TABLES = ("trajectories", '"User"', "trained_models", '"Market"', "rl_assets.batches")
HARM = [
    *(f"DROP TABLE {table}" for table in TABLES),
    *(f"ALTER TABLE {table} ADD COLUMN mine text" for table in TABLES),
    *(f"TRUNCATE {table} CASCADE" for table in TABLES),
    *(f"CREATE INDEX ON {table} ((1))" for table in TABLES),
    *(f"DELETE FROM {table}" for table in TABLES[:4]),
    """UPDATE trajectories SET "trajectoryId" = 'x'""",
    'UPDATE trajectories SET "createdAt" = now()',
    """UPDATE training_batches SET "status" = 'pending'""",
    """UPDATE llm_call_logs SET "response" = 'x'""",
    'UPDATE "User" SET "isActor" = true',
    'UPDATE "User" SET "virtualBalance" = 1000000',
    'UPDATE "Market" SET "resolution" = true',
    'UPDATE "SystemSettings" SET "wandbEnabled" = true',
    "UPDATE rl_assets.alembic_version SET version_num = '0001'",
    "CREATE TABLE public.mine (x int)",
    "CREATE TABLE rl_assets.mine (x int)",
    "CREATE SCHEMA mine",
    "CREATE ROLE another",
    "COPY trajectories TO PROGRAM 'cat'",
]


def test_nothing_of_babylons_can_be_harmed(as_role: str):
    with connect(as_role) as conn:
        for harm in HARM:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(harm)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_database_that_lacks_a_migration_is_left_to_its_owner(as_role: str, postgres_url: str):
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("DROP SCHEMA rl_assets CASCADE")
    with pytest.raises(DatabaseError, match="as a role that may create tables and a schema"):
        migrate(as_role)


@pytest.mark.parametrize("name", ["", "a b", 'x"; DROP TABLE "User', "$role$", "ä", "x" * 64])
def test_a_name_that_is_none_is_refused(name: str):
    with pytest.raises(ConfigurationError, match="no name of a role"):
        role_sql(name)


def test_the_command_prints_what_is_to_be_run(capsys: pytest.CaptureFixture[str]):
    assert run(["db", "role", "rl_platform"]) == 0
    said = capsys.readouterr().out
    assert said == role_sql("rl_platform")
    assert 'GRANT INSERT ON "public"."trajectories"' in said
