from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rl_assets.errors import RlAssetsError
from rl_assets.services import Children, code_server, databases, keep_marker
from rl_assets.settings import REPOSITORY, Settings
from rl_assets.store.embedded import EmbeddedPostgres

FAMILY = """
import subprocess, sys, time, pathlib
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose modules children can run."""
    (tmp_path / "a_family.py").write_text(FAMILY)
    (tmp_path / "a_failure.py").write_text("print('first'); print('the port is taken'); raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_children_end_with_their_children(modules: Path):
    told = modules / "pid"
    with Children(modules / "logs") as children:
        children.start("family", "a_family", str(told))
        assert soon(lambda: told.is_file() and told.read_text() != "")
        grandchild = int(told.read_text())
        children.check()
        assert lives(grandchild)
    assert not lives(grandchild)


def test_children_end_when_the_command_fails(modules: Path):
    told = modules / "pid"
    with pytest.raises(ZeroDivisionError), Children(modules / "logs") as children:
        children.start("family", "a_family", str(told))
        assert soon(lambda: told.is_file() and told.read_text() != "")
        raise ZeroDivisionError
    assert not lives(int(told.read_text()))


def test_a_child_that_died_is_reported_with_what_it_said(modules: Path):
    def died() -> bool:
        try:
            children.check()
        except RlAssetsError as error:
            said.append(str(error))
        return bool(said)

    said: list[str] = []
    with Children(modules / "logs") as children:
        children.start("failure", "a_failure")
        assert soon(died)
    assert "failure ended with code 3 (the port is taken)" in said[0]
    assert str(modules / "logs" / "failure.log") in said[0]


def test_definitions_that_do_not_load_are_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RL_ASSETS_EXECUTOR", "abacus")
    with Children(tmp_path / "logs") as children, pytest.raises(RlAssetsError) as refused:
        code_server(children, tmp_path)
    assert "code ended with code 1 (" in str(refused.value)
    assert "RL_ASSETS_EXECUTOR='abacus' is unknown" in children.log("code").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
@pytest.mark.parametrize("itself", ["SIG_DFL", "SIG_IGN"])
def test_a_child_does_not_outlive_a_killed_command(modules: Path, itself: str):
    program = (
        f"import signal; signal.signal(signal.SIGTERM, signal.{itself})\n"
        "import sys, time; from pathlib import Path; from rl_assets.services import Children\n"
        "children = Children(Path(sys.argv[1])); children.start('sleeper', 'a_sleeper', sys.argv[2]); time.sleep(600)"
    )
    (modules / "a_sleeper.py").write_text(
        "import os, sys, time, pathlib; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    )
    told = modules / "pid"
    command = subprocess.Popen([sys.executable, "-c", program, str(modules / "logs"), str(told)], cwd=REPOSITORY)
    assert soon(lambda: told.is_file() and told.read_text() != "")
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    assert soon(lambda: not lives(int(told.read_text())))


def test_the_last_command_out_stops_the_embedded_database(reachable: Path):
    settings = Settings(reachable)
    server = EmbeddedPostgres(settings.postgres_dir)
    with databases(settings) as first:
        assert os.environ["DATABASE_URL"] == first.babylon
        with databases(settings) as second:
            assert second == first
        assert server.status().running
    assert not server.status().running
    assert "DATABASE_URL" not in os.environ


def test_a_server_that_was_asked_to_stay_stays(reachable: Path):
    settings = Settings(reachable)
    server = EmbeddedPostgres(settings.postgres_dir)
    server.up()
    try:
        keep_marker(settings).touch()
        with databases(settings):
            pass
        assert server.status().running
    finally:
        server.down()


def test_a_database_that_is_named_is_left_alone(tmp_path: Path):
    settings = Settings(tmp_path, database_url="postgresql://me@host/a", dagster_pg_url="postgresql://me@host/b")
    with databases(settings) as urls:
        assert (urls.babylon, urls.dagster) == ("postgresql://me@host/a", "postgresql://me@host/b")
    assert list(tmp_path.iterdir()) == []
