"""The whole loop through a real daemon, small: what `make demo` does, how it ends, and that nothing is left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from rl_assets.services import databases
from rl_assets.settings import REPOSITORY, Settings

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = ["harness", "--train", "--snapshots", "8", "--siblings", "8", "--gate-snapshots", "8", "--threshold", "24"]


@pytest.fixture
def data(reachable: Path) -> Path:
    """A data directory whose base policy has imitated little: the loop is what is tested."""
    from rl_assets.training.base import WarmStart, ensure_base_policy

    ensure_base_policy(reachable, Settings(reachable).model_line, warm_start=WarmStart(episodes=64, passes=1))
    return reachable


def start(data: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "DAGSTER_PG_URL", "RL_ASSETS_DAGSTER_DIR")}
    return subprocess.Popen(
        [sys.executable, "-m", "rl_assets", *arguments],
        cwd=REPOSITORY,
        env=env | {"RL_ASSETS_DATA": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_running(data: Path) -> list[str]:
    """Command lines of living processes that were started for a data directory."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            ours = process.environ().get("RL_ASSETS_DATA") == str(data) or str(data) in " ".join(process.cmdline())
            if ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def query(data: Path, sql: str, *, dagster: bool = False) -> list[tuple]:
    with databases(Settings(data)) as urls, psycopg.connect(urls.dagster if dagster else urls.babylon) as conn:
        return conn.execute(sql).fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_the_sensor_trains_on_what_was_played_and_on_nothing_twice(data: Path):
    for _ in range(2):
        command = start(data, *SMALL)
        said, _ = command.communicate(timeout=500)
        assert command.returncode == 0, said
        assert "readiness before: " in said
        assert re.search(r"batch-[0-9a-f]{16} is (promoted|rejected)", said)
        assert left_running(data) == []
    claims = query(data, 'select "trainedInBatch", count(*) from trajectories where "usedInTraining" group by 1')
    assert len(claims) == 2
    assert all(count >= 24 for _, count in claims)
    runs = query(data, "select status, count(*) from runs group by 1", dagster=True)
    assert [status for status, _ in runs] == ["SUCCESS"]
    verify = subprocess.run(
        [sys.executable, "-m", "rl_assets", "verify"],
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"RL_ASSETS_DATA": str(data)},
        capture_output=True,
        text=True,
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr
    assert " 0 fail" in verify.stdout
    assert left_running(data) == []


def test_below_the_threshold_nothing_is_trained_and_the_code_says_so(data: Path):
    command = start(data, *SMALL[:-1], "100000")
    said, _ = command.communicate(timeout=300)
    assert command.returncode == 3, said
    assert "of 100000 fresh episodes: nothing is trained" in said.replace("\n", " ")
    assert left_running(data) == []
    assert query(data, 'select 1 from trajectories where "usedInTraining"') == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_running(data: Path, number: signal.Signals):
    command = start(data, *SMALL)
    deadline = time.monotonic() + 120
    assert command.stdout is not None
    for line in command.stdout:
        assert time.monotonic() < deadline
        if "digest of what was played" in line:
            break
    command.send_signal(number)
    command.communicate(timeout=90)
    assert command.returncode == 130
    assert left_running(data) == []
