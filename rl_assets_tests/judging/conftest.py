from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from rl_assets.judging import ruler_transport
from rl_assets.store.database import connect
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets_tests.judging.judge_server import LoopbackJudge, loopback_judge


@pytest.fixture(scope="session")
def judging_url(postgres_server: EmbeddedPostgres) -> str:
    """The URL of a database for the tests of judges. They write to two tables alone, so that they can share one."""
    with connect(postgres_server.url("dagster")) as conn:
        conn.execute("CREATE DATABASE judging TEMPLATE migrated")
    return postgres_server.url("judging")


@pytest.fixture
def conn(judging_url: str) -> Iterator[psycopg.Connection]:
    """A connection to a database without any answer or spending."""
    with connect(judging_url) as connection:
        connection.execute("TRUNCATE rl_assets.judge_calls, rl_assets.judge_spending")
        yield connection


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackJudge]:
    """A judge on loopback, which is asked again without long waits."""
    monkeypatch.setattr(ruler_transport, "BACKOFF_SECONDS", 0.001)
    with loopback_judge() as judge:
        yield judge
