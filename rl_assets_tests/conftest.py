"""Fixtures for everybody: a real Postgres, and a fresh migrated database per test."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from rl_assets.settings import prepare_environment
from rl_assets.store.database import connect, migrate
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets_tests.pictures import leave_blank
from rl_assets_tests.processes import a_reachable_directory, left_running, record_late, run, served, settled

if TYPE_CHECKING:
    from rl_assets_tests.a2a.sdk import Servers

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and the models of tests are small
    os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_environment()
# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("rl-assets", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rl-assets")

_numbers = itertools.count()

TOGETHER = {
    "rl_assets_tests/integration/test_demo.py": "looped",
    "rl_assets_tests/integration/test_backfill.py": "looped",
    "rl_assets_tests/browser/": "looped",
    "rl_assets_tests/crash/": "crash",
    "rl_assets_tests/integration/test_harness.py": "below",
}
"""By how they begin, in order, the files whose tests share what takes long to make, and by what name."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have several workers share the tests by file, except that some files stay together and some tests go apart."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return ByFixtures(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several workers begin with what takes longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (_place(item.nodeid), "/integration/" not in item.nodeid))


def _place(nodeid: str) -> int:
    return next((place for place, path in enumerate(TOGETHER) if nodeid.startswith(path)), len(TOGETHER))


def pytest_collection_finish() -> None:
    """Modules are no garbage: whoever looks for some, as ART does after a training, need not look through them."""
    gc.collect()
    gc.freeze()


def _scope(nodeid: str) -> str:
    for path, name in TOGETHER.items():
        if nodeid.startswith(path):
            return name
    return nodeid if "/integration/" in nodeid else nodeid.split("::")[0]


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that the account may enter which runs the server for root."""
    with a_reachable_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A server for this session of tests. It does without durability, which a test of it asks for by itself."""
    with a_reachable_directory() as directory:
        server = EmbeddedPostgres(directory / "postgres", elsewhere=directory / "elsewhere")
        try:
            server.up()
            with connect(server.url("dagster")) as conn:
                for name in ("fsync", "synchronous_commit", "full_page_writes"):
                    conn.execute(f"ALTER SYSTEM SET {name} = off")  # pyright: ignore[reportArgumentType, reportCallIssue]
                conn.execute("SELECT pg_reload_conf()")
                conn.execute("CREATE DATABASE migrated")
            migrate(server.url("migrated"))
            yield server
        finally:
            server.down()


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
def weak_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a base policy that has imitated little. Not to be written to; `settled` copies it."""
    from rl_assets.training.base import WarmStart, ensure_base_policy

    return ensure_base_policy(tmp_path_factory.mktemp("weak"), "any", warm_start=WarmStart(episodes=64, passes=1)).path


@pytest.fixture(scope="session")
def demo(weak_policy: Path) -> Iterator[tuple[Path, str]]:
    """A data directory on which a small demo has run, through a real daemon, and what the demo said."""
    with a_reachable_directory() as directory:
        data = settled(directory, weak_policy)
        code, said = run(data, "demo", "--threshold", "48")
        assert code == 0, said
        assert left_running(data) == []
        yield data, said


@pytest.fixture(scope="session")
def looped(demo: tuple[Path, str]) -> Path:
    """A data directory on which the loop has run once, from playing to the gate's decision."""
    return demo[0]


@pytest.fixture(scope="session")
def address(looped: Path) -> Iterator[str]:
    """Where the web interface on `looped` answers, with a daemon beside it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TZ", "Europe/Berlin")  # whose clocks no hour of ours goes by
        with served(looped) as url:
            yield url
    assert left_running(looped) == []


@pytest.fixture(scope="session")
def late_hour(address: str, looped: Path) -> str:
    """An hour long ago of which `looped` has been told only now, by one episode; its daemon has yet to notice."""
    hour = "2026-11-20T07:00"
    record_late(looped, hour)
    return hour


@pytest.fixture(scope="session")
def babylon_data() -> Path:
    """The directory of sample records of Babylon; skips where there is none."""
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "babylon"
    path = Path(os.environ.get("RL_ASSETS_BABYLON_DATA") or default)
    if not path.is_dir():
        pytest.skip("Babylon's sample records are not here; set RL_ASSETS_BABYLON_DATA to their directory")
    return path


def _database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with connect(server.url("dagster")) as conn:
        # Copying files takes half the time of logging every page, and this server has nothing to recover.
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # pyright: ignore
        yield server.url(name)
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_blank(monkeypatch)


@pytest.fixture
def serve() -> Iterator[Servers]:
    """Serves markets on loopback; each call gives a running one."""
    from rl_assets_tests.a2a.sdk import Servers

    servers = Servers()
    yield servers
    servers.stop()
