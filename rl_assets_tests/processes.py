"""Processes of their own: the command line on a data directory and what it leaves behind, and one that answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from rl_assets.services import databases
from rl_assets.settings import REPOSITORY, Settings

MEMORY, ROOM = Path("/dev/shm"), 4 << 30


@contextmanager
def a_reachable_directory() -> Iterator[Path]:
    """Every account may enter it. Pytest's own is closed to the one that runs the server for root.

    In memory where there is room: a database per test is some hundred files that are made and deleted.
    """
    where = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None
    with tempfile.TemporaryDirectory(prefix="rl-assets-tests-", dir=where) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def settled(data: Path, policy: Path) -> Path:
    """The data directory, with a copy of a policy as its base policy: the loop is what is tested."""
    from rl_assets.registry.checkpoints import base_path

    shutil.copytree(policy, base_path(data, Settings(data).model_line))
    return data


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def answers(address: str) -> bool:
    """Whether Dagster's web interface answers there."""
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def start(data: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run `rl-assets` with these arguments on the embedded databases of a data directory."""
    ours = ("DATABASE_URL", "DAGSTER_PG_URL", "RL_ASSETS_DAGSTER_DIR", "TRAINING_MIN_TRAJECTORIES")
    return subprocess.Popen(
        [sys.executable, "-m", "rl_assets", *arguments],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k not in ours} | {"RL_ASSETS_DATA": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(data: Path, *arguments: str) -> tuple[int, str]:
    """Run `rl-assets` to its end: its exit code, and what it said."""
    command = start(data, *arguments)
    said, _ = command.communicate(timeout=1500)
    return command.returncode, said


@contextmanager
def answering(module: str, **variables: str) -> Iterator[Callable[[str], Any]]:
    """A process that answers a line with a line of JSON: gives what asks it. It ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        reads, writes = process.stdout, process.stdin

        def ask(line: str) -> Any:
            writes.write(line + "\n")
            writes.flush()
            said = reads.readline()
            assert said, f"{module} ended with code {process.wait(60)}"
            return json.loads(said)

        yield ask


def until(done: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(1)


@contextmanager
def served(data: Path) -> Iterator[str]:
    """The web interface on a data directory, as `make ui` starts it: its address."""
    port = free_port()
    command = start(data, "ui", "--port", str(port))
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert command.poll() is None, command.communicate()[0]
        return answers(url)

    at_work = "SELECT 1 FROM runs WHERE status IN ('STARTING', 'STARTED')"
    try:
        until(is_up, 180)
        yield url
        # A batch is decided upon before its run has ended, and Ctrl-C ends runs as failed.
        until(lambda: not query(data, at_work, dagster=True))
    finally:
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=300)


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
    """Rows of the embedded database of a data directory, Babylon's and ours or Dagster's."""
    with databases(Settings(data)) as urls, psycopg.connect(urls.dagster if dagster else urls.babylon) as conn:
        return conn.execute(sql).fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]


def record_late(data: Path, hour: str) -> None:
    """Have an episode recorded in an hour, as a recorder does that is late."""
    query(
        data,
        f"""INSERT INTO trajectories SELECT (jsonb_populate_record(t, jsonb_build_object('id', 'late-{hour}',
              'trajectoryId', 'late-{hour}', 'windowId', '{hour}', 'endTime', '{hour[:-2]}30:00',
              'startTime', '{hour[:-2]}29:00', 'judgedAt', NULL, 'aiJudgeReward', NULL, 'usedInTraining', false,
              'trainedInBatch', NULL, 'updatedAt', now() AT TIME ZONE 'UTC'))).* FROM trajectories AS t
            LIMIT 1 RETURNING 1""",
    )
