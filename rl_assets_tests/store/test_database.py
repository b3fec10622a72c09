from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from rl_assets.errors import DatabaseError
from rl_assets.store.database import MIGRATIONS, connect, migrate
from rl_assets.verify.operations import newest_migration

CATALOGUE = """
  SELECT table_name, column_name, data_type, is_nullable, column_default, character_maximum_length
  FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, column_name
"""


def rows(url: str, query: str) -> list[tuple]:
    with connect(url) as conn:
        return conn.execute(query).fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_migrating_twice_changes_nothing(empty_postgres_url: str):
    migrate(empty_postgres_url)
    before = rows(empty_postgres_url, CATALOGUE)
    migrate(empty_postgres_url)
    assert rows(empty_postgres_url, CATALOGUE) == before
    assert {name for name, *_ in before} >= {"trajectories", "llm_call_logs", "trained_models", "User"}


def test_four_that_migrate_at_once_all_succeed(empty_postgres_url: str):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate, [empty_postgres_url] * 4)) == [None] * 4
    assert rows(empty_postgres_url, "SELECT count(*) FROM rl_assets.alembic_version") == [(1,)]


def test_babylons_own_tables_are_left_as_they_are(empty_postgres_url: str, babylon_data: Path):
    ddl = (babylon_data / "schema.sql").read_text(encoding="utf-8")
    with psycopg.connect(empty_postgres_url, autocommit=True) as conn:
        conn.execute(ddl)  # pyright: ignore[reportArgumentType, reportCallIssue]
        conn.execute('ALTER TABLE trajectories ADD COLUMN "theirs" text')
    before = rows(empty_postgres_url, CATALOGUE)
    migrate(empty_postgres_url)
    assert rows(empty_postgres_url, CATALOGUE) == before


@pytest.mark.parametrize(
    "harm",
    [
        'ALTER TABLE trajectories ADD COLUMN "ours" text',
        'ALTER TABLE trajectories ALTER COLUMN "windowId" SET NOT NULL',
        'DROP TABLE "Market" CASCADE',
        'CREATE INDEX ON trajectories ("judgedAt")',
        'CREATE TABLE rl_assets.extra (agent text REFERENCES "User" ("id"))',
    ],
)
def test_a_migration_that_touches_a_table_of_babylon_is_refused_and_leaves_nothing(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
):
    scripts = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, scripts)
    head = newest_migration(scripts / "versions")
    (scripts / "versions" / "v9999_harm.py").write_text(
        f"from alembic import op\nrevision, down_revision = '9999', {head!r}\n"
        f"def upgrade():\n    op.execute({harm!r})\n"
    )
    monkeypatch.setattr("rl_assets.store.database.MIGRATIONS", scripts)
    before = rows(postgres_url, CATALOGUE)
    with pytest.raises(DatabaseError, match="tables outside the schema rl_assets changed"):
        migrate(postgres_url)
    assert rows(postgres_url, CATALOGUE) == before
    assert rows(postgres_url, "SELECT version_num FROM rl_assets.alembic_version") == [(head,)]
    assert rows(postgres_url, "SELECT to_regclass('rl_assets.extra')") == [(None,)]


def test_our_tables_of_babylon_are_those_of_babylon(empty_postgres_url: str, postgres_url: str, babylon_data: Path):
    with psycopg.connect(empty_postgres_url, autocommit=True) as conn:
        conn.execute((babylon_data / "schema.sql").read_text(encoding="utf-8"))  # pyright: ignore
    theirs = {row[:2]: row[2:] for row in rows(empty_postgres_url, CATALOGUE)}
    ours = {row[:2]: row[2:] for row in rows(postgres_url, CATALOGUE)}
    assert {key: ours[key] for key in ours if key in theirs} == {key: theirs[key] for key in ours if key in theirs}
    assert {table for table, _ in ours} <= {table for table, _ in theirs}


def test_a_role_that_may_not_create_is_told_what_to_do(empty_postgres_url: str):
    role = f"reader_{re.sub(r'[^0-9a-z]', '', empty_postgres_url.rsplit('/', 1)[1])}"
    with psycopg.connect(empty_postgres_url, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")  # pyright: ignore
    try:
        host = empty_postgres_url.split("@", 1)[1]
        with pytest.raises(DatabaseError, match="as a role that may create tables and a schema") as caught:
            migrate(f"postgresql://{role}:hunter2@{host}")
        assert "hunter2" not in str(caught.value)
    finally:
        with psycopg.connect(empty_postgres_url, autocommit=True) as conn:
            conn.execute(f"DROP ROLE {role}")  # pyright: ignore


def test_a_database_of_a_later_version_is_refused(postgres_url: str):
    with connect(postgres_url) as conn:
        conn.execute("UPDATE rl_assets.alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match="another version of rl-assets"):
        migrate(postgres_url)


@pytest.mark.parametrize("suffix", ["", "?schema=public&connection_limit=5", "?pgbouncer=false&sslmode=prefer"])
@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_urls_as_babylon_and_sqlalchemy_write_them_are_understood(postgres_url: str, scheme: str, suffix: str):
    url = scheme + postgres_url.removeprefix("postgresql") + suffix
    assert rows(url, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("/", "/nosuch_"), "there is no database"),
        (("rl_assets:", "nobody_here:"), "does not accept the password of user nobody_here"),
        (("127.0.0.1:", "no.such.host.invalid:"), "is not known"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_the_password(postgres_url: str, change: tuple[str, str], said: str):
    head, tail = postgres_url.rsplit("/", 1)
    url = f"{head}{change[1]}{tail}" if change[0] == "/" else postgres_url.replace(*change, 1)
    password = postgres_url.split(":")[2].split("@")[0]
    with pytest.raises(DatabaseError, match=said) as caught:
        connect(url)
    assert password not in str(caught.value)


def test_a_pooler_of_transactions_is_refused(postgres_url: str):
    with pytest.raises(DatabaseError, match="give the direct URL"):
        connect(f"{postgres_url}?pgbouncer=true")


@pytest.mark.parametrize("wrong", ["", "mysql://a@b/c", "postgresql://[::1", "hello"])
def test_what_is_no_url_is_said(wrong: str):
    with pytest.raises(DatabaseError, match="not one of Postgres"):
        connect(wrong)


@pytest.mark.parametrize("table", ["judgement_sets", "batch_events", "champion_history", "evaluations", "points"])
@pytest.mark.parametrize("change", ["DELETE FROM rl_assets.{}", "UPDATE rl_assets.{} SET id = DEFAULT"])
def test_what_is_only_added_to_cannot_be_changed(conn: psycopg.Connection, table: str, change: str):
    with pytest.raises(psycopg.Error, match="only ever added"):
        conn.execute(change.format(table))  # pyright: ignore[reportArgumentType, reportCallIssue]
