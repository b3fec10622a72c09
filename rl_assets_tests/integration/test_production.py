"""The start that docs/production.md describes: its own lines, in a reader's shell, with real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psycopg
import pytest

from rl_assets.settings import REPOSITORY
from rl_assets_tests.documented import of_page, typed
from rl_assets_tests.processes import answers, free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

PRODUCTION = REPOSITORY / "docs" / "production.md"
OURS = ("DATABASE_URL", "DAGSTER", "RL_ASSETS_", "TRAINING_", "RULER_", "WANDB_", "PG")
"""How the variables begin that a reader has not set yet."""
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError {
    __typename ... on PythonError { message } } } } } }"""


@pytest.fixture
def reader(postgres_url: str, empty_postgres_url: str, reachable: Path) -> dict[str, str]:
    """The environment of a reader who has typed what the page exports. Only the databases and the directory of the
    logs of steps are this machine's."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env["RL_ASSETS_DATA"] = str(reachable)
    exports = "\n".join(command for command in typed(PRODUCTION) if command.startswith("export "))
    for documented, here in {
        "postgresql://user:password@host/babylon": postgres_url,
        "postgresql://user:password@host/dagster": empty_postgres_url,
        "/var/lib/rl-assets/dagster": str(reachable / "dagster"),
    }.items():
        exports = exports.replace(documented, f"'{here}'")
    return dict(line.split("=", 1) for line in shell(f"{exports}\nenv -0", env).split("\0") if line)


def shell(line: str, env: dict[str, str]) -> str:
    """What a line says that a reader types in the project's directory."""
    done = subprocess.run(["bash", "-euc", line], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def service(line: str, env: dict[str, str], directory: Path) -> Iterator[Callable[[], bool]]:
    """A process as a supervisor keeps it, ended by SIGTERM, or by SIGKILL where that takes longer than systemd waits.
    The function given tells whether it lives."""
    log = Path(env["RL_ASSETS_DATA"]) / f"{line.split()[0]}.log"
    with (
        log.open("wb") as said,
        subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=directory, env=env, stdout=said, stderr=said, start_new_session=True
        ) as process,
    ):
        try:
            yield lambda: process.poll() is None
            assert process.poll() is None, log.read_text(errors="replace")
            process.terminate()
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                if "code-server" not in line:  # that waits for calls which are under way, and once for 300 s
                    raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def until(done: Callable[[], bool], lives: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not done():
        assert lives() and time.monotonic() < deadline
        time.sleep(0.2)


def test_the_first_commands_run_and_the_index_can_be_added(reader: dict[str, str]):
    assert shell("rl-assets db migrate", reader) == "migrated\n"
    (index,) = of_page("production.md", "sql")
    with psycopg.connect(reader["DATABASE_URL"], autocommit=True) as conn:
        conn.execute('DROP INDEX "rl_assets_trajectories_news_idx"')
        assert re.search(r"index on news\W+warn", shell("rl-assets verify", reader))
        conn.execute(index.text)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert re.search(r"index on news\W+pass", shell("rl-assets verify", reader))


def test_a_pool_gets_a_place_more(reader: dict[str, str]):
    shell("dagster instance concurrency set judge 2", reader)
    with psycopg.connect(reader["DAGSTER_PG_URL"]) as conn:
        limits = conn.execute('SELECT concurrency_key, "limit" FROM concurrency_limits').fetchall()
    assert ("judge", 2) in limits


def test_daemon_web_interface_and_code_server_start_as_documented(reader: dict[str, str], reachable: Path):
    (services,) = [block for block in of_page("production.md", "sh") if "dagster-daemon" in block.text]
    daemon, webserver, code_server = services.commands()
    (workspace,) = of_page("production.md", "yaml")
    code_port, port = str(free_port()), str(free_port())
    assert daemon == "dagster-daemon run -w workspace.yaml"
    assert webserver == "dagster-webserver -w workspace.yaml -h 127.0.0.1"
    assert code_server == "dagster code-server start -m rl_assets.definitions -p 4000"
    (reachable / "workspace.yaml").write_text(workspace.text.replace("4000", code_port))
    with (
        # Ended after the daemon: it waits for calls that are under way, and once for 300 s.
        service(code_server.replace("4000", code_port), reader, reachable) as code_server_lives,
        service(daemon, reader, REPOSITORY) as daemon_lives,
    ):
        health = ["dagster", "api", "grpc-health-check", "-p", code_port]
        until(lambda: subprocess.run(health, env=reader, capture_output=True).returncode == 0, code_server_lives)
        with service(webserver, reader | {"DAGSTER_WEBSERVER_PORT": port}, reachable) as webserver_lives:
            address = f"http://127.0.0.1:{port}"
            until(lambda: answers(address), webserver_lives)
            found = httpx.post(f"{address}/graphql", json={"query": LOCATIONS}, timeout=60).json()
        assert found["data"]["workspaceOrError"]["locationEntries"] == [
            {"name": "rl_assets", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
        ]
        with psycopg.connect(reader["DAGSTER_PG_URL"], autocommit=True) as conn:
            until(lambda: conn.execute("SELECT 1 FROM job_ticks LIMIT 1").fetchone() is not None, daemon_lives)
