"""Fixtures for everybody: a real Postgres, and a fresh migrated database per test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from rl_assets.settings import prepare_environment
from rl_assets.store.database import connect, migrate
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets_tests.processes import SMALL, start, with_a_weak_policy

prepare_environment()
# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("rl-assets", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rl-assets")

_numbers = itertools.count()


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every account may enter. Pytest's own is closed to the one that runs the server for root."""
    yield from _reachable()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A server for this session of tests. It does without durability, which a test of it asks for by itself."""
    directories = _reachable()
    directory = next(directories)
    server = EmbeddedPostgres(directory / "postgres", elsewhere=directory / "elsewhere")
    try:
        server.up()
        with connect(server.url("dagster")) as conn:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                conn.execute(f"ALTER SYSTEM SET {setting} = off")  # pyright: ignore[reportArgumentType, reportCallIssue]
            conn.execute("SELECT pg_reload_conf()")
            conn.execute("CREATE DATABASE migrated")
        migrate(server.url("migrated"))
        yield server
    finally:
        server.down()
        next(directories, None)


@pytest.fixture
def empty_postgres_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a new database with nothing in it."""
    yield from _database(postgres_server, "template0")


@pytest.fixture
def postgres_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a new database with Babylon's tables and ours, empty."""
    yield from _database(postgres_server, "migrated")


@pytest.fixture
def conn(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a new database with all tables, as the store's functions want it."""
    with connect(postgres_url) as connection:
        yield connection


@pytest.fixture(scope="session")
def looped() -> Iterator[Path]:
    """A data directory on which the loop has run once, from playing to the gate's decision, through a real daemon."""
    directories = _reachable()
    data = with_a_weak_policy(next(directories))
    command = start(data, *SMALL)
    said, _ = command.communicate(timeout=800)
    assert command.returncode == 0, said
    yield data
    next(directories, None)


@pytest.fixture(scope="session")
def babylon_data() -> Path:
    """The directory of sample records of Babylon; skips where there is none."""
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "babylon"
    path = Path(os.environ.get("RL_ASSETS_BABYLON_DATA") or default)
    if not path.is_dir():
        pytest.skip("Babylon's sample records are not here; set RL_ASSETS_BABYLON_DATA to their directory")
    return path


def _reachable() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="rl-assets-tests-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def _database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with connect(server.url("dagster")) as conn:
        # Copying files takes half the time of logging every page, and this server has nothing to recover.
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # pyright: ignore
        yield server.url(name)
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")  # pyright: ignore[reportArgumentType, reportCallIssue]
