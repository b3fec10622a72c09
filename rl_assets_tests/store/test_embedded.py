from __future__ import annotations

import multiprocessing
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from rl_assets.errors import ConfigurationError, DatabaseError
from rl_assets.settings import REPOSITORY
from rl_assets.store.cluster import PORT_VARIABLE, choose_port
from rl_assets.store.embedded import EmbeddedPostgres

UP = """
import sys
from pathlib import Path
from rl_assets.store.embedded import EmbeddedPostgres
root, elsewhere = map(Path, sys.argv[1:3])
server = EmbeddedPostgres(root, elsewhere=elsewhere)
server.up()
print(server.status().pid, flush=True)
"""
UP_AND_WAIT = UP + "import time; time.sleep(600)"


@pytest.fixture
def server(reachable: Path) -> Iterator[EmbeddedPostgres]:
    """The server of a new directory, not yet up; stopped in the end."""
    instance = EmbeddedPostgres(reachable / "postgres", elsewhere=reachable / "elsewhere")
    yield instance
    instance.down()


def another_process(server_root: Path, code: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", code, str(server_root / "postgres"), str(server_root / "elsewhere")]
    return subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def one_value(url: str, query: str) -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(query).fetchone()  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert row is not None
        return row[0]


def test_six_that_start_it_at_once_share_one_server(server: EmbeddedPostgres, reachable: Path):
    starters = [another_process(reachable, UP) for _ in range(6)]
    pids = {starter.communicate(timeout=120)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0] * 6
    assert pids == {str(server.status().pid)}


def test_it_survives_a_killed_owner_and_is_found_again(server: EmbeddedPostgres, reachable: Path):
    owner = another_process(reachable, UP_AND_WAIT)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    server.up()
    assert server.status().pid == pid
    assert one_value(server.url(), "SELECT current_database()") == "babylon"


def test_what_was_committed_survives_a_killed_server(server: EmbeddedPostgres):
    server.up()
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 7 AS value")
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    server.up()
    assert server.status().pid != pid
    assert one_value(server.url(), "SELECT value FROM kept") == 7


def ends(pid: int) -> None:
    """Wait for the end of a server that is down: it takes its pid file away a moment before."""
    deadline = time.monotonic() + 30
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_down_stops_it_and_up_brings_it_back_where_it_was(server: EmbeddedPostgres):
    server.up()
    before = server.status()
    server.down()
    assert not server.status().running
    assert before.pid is not None
    ends(before.pid)
    server.down()
    server.up()
    assert server.status().port == before.port


def test_a_stale_pid_file_never_costs_another_program_its_life(server: EmbeddedPostgres):
    server.up()
    data = server.status().data
    assert data is not None
    server.down()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander:
        try:
            (data / "postmaster.pid").write_text(f"{bystander.pid}\n{data}\n{int(time.time())}\n20001\n\n127.0.0.1\n")
            server.down()
            server.up()
            assert server.status().pid != bystander.pid
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_port_that_is_asked_for_and_taken_is_said(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv(PORT_VARIABLE, str(taken.getsockname()[1]))
        with pytest.raises(DatabaseError, match="is in use by another program"):
            choose_port(None)


@pytest.mark.parametrize("wrong", ["abc", "0", "65536", "-1"])
def test_a_port_that_is_none_is_said(postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, wrong: str):
    monkeypatch.setenv(PORT_VARIABLE, wrong)
    with pytest.raises(ConfigurationError, match=PORT_VARIABLE):
        postgres_server.up()


def test_another_port_than_the_running_servers_is_said(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(PORT_VARIABLE, "1")
    with pytest.raises(DatabaseError, match="`rl-assets db down` first"):
        postgres_server.up()


def test_a_damaged_state_file_is_named_and_nothing_is_started(server: EmbeddedPostgres, reachable: Path):
    (reachable / "postgres").mkdir()
    state = reachable / "postgres" / "state.json"
    state.write_text("{")
    with pytest.raises(DatabaseError, match=r"state\.json cannot be read"):
        server.up()
    state.unlink()


def test_the_password_is_neither_shown_nor_dispensable(postgres_server: EmbeddedPostgres):
    password = postgres_server.url().split(":")[2].split("@")[0]
    assert password not in str(postgres_server.status())
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres_server.url().replace(password, "guess")).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_normal_user_has_it_as_well(reachable: Path):
    nobody = pwd.getpwnam("nobody")
    os.chown(reachable, nobody.pw_uid, nobody.pw_gid)
    # A fork, for the interpreter itself may be out of that account's reach, as below root's home.
    process = multiprocessing.get_context("fork").Process(target=_up_as, args=(nobody, reachable))
    process.start()
    process.join(timeout=120)
    server = EmbeddedPostgres(reachable / "postgres", elsewhere=reachable / "elsewhere")
    try:
        assert process.exitcode == 0
        assert psutil.Process(server.status().pid).uids().real == nobody.pw_uid
        assert (reachable / "postgres" / "state.json").stat().st_mode & 0o077 == 0
    finally:
        server.down()


def _up_as(who: pwd.struct_passwd, directory: Path) -> None:
    os.setgroups([])
    os.setgid(who.pw_gid)
    os.setuid(who.pw_uid)
    os.chdir("/")
    EmbeddedPostgres(directory / "postgres", elsewhere=directory / "elsewhere").up()
