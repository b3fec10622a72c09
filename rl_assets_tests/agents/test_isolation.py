"""What one agent does to itself, to the others and to the ledger, with a process per agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import psycopg

from rl_assets.agents.isolation import isolated
from rl_assets.settings import REPOSITORY
from rl_assets.store.live import LOST, live_agents
from rl_assets_tests.a2a.sdk import Servers
from rl_assets_tests.agents.endpoint_server import LoopbackModel, Reply, good
from rl_assets_tests.agents.live import enrol, tick
from rl_assets_tests.loopback import serving


def caller(handler: BaseHTTPRequestHandler) -> int:
    """The process at the other end of a request."""
    port = handler.client_address[1]
    found = [c.pid for c in psutil.net_connections("tcp4") if c.laddr and c.laddr.port == port and c.pid != os.getpid()]
    (pid,) = {pid for pid in found if pid}
    return pid


def crash(handler: BaseHTTPRequestHandler) -> None:
    os.kill(caller(handler), signal.SIGSEGV)


def flood(handler: BaseHTTPRequestHandler) -> None:
    """An answer without end."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(b" " * 2**20)


def processes() -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if "rl_assets.agents.live_process" in (process.info["cmdline"] or [])
        and str(os.getpid()) in process.info["cmdline"]
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def api(url: str) -> dict[str, Any]:
    return {"base_url": url, "model": "m", "temperature": 1.0}


def test_an_agent_that_crashes_hangs_or_eats_memory_harms_no_other(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    never = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        never.wait()

    url = serve().url
    with serving(crash) as crashing, serving(flood) as flooding, serving(hang) as hanging:
        enrol(conn, "crashes", "endpoint", api(crashing))
        enrol(conn, "eats", "endpoint", api(flooding), memory_mb=256)
        enrol(conn, "fine", "endpoint", api(model.url))
        enrol(conn, "hangs", "endpoint", api(hanging), seconds=8)
        reports = tick(conn, url, tmp_path, play=isolated)
        never.set()
    assert {name: report.outcome for name, report in reports.items()} == {
        "crashes": "failed",
        "eats": "failed",
        "fine": "played",
        "hangs": "failed",
    }
    assert str(reports["crashes"].reason) == "its process was ended by SIGSEGV"
    assert "needs more than 256 MiB of memory" in str(reports["eats"].reason)
    assert "no decision within 8 s" in str(reports["hangs"].reason)
    told = conn.execute("SELECT state, reason FROM rl_assets.live_ticks ORDER BY agent_id").fetchall()
    assert sorted(map(str, told)) == sorted(str((r.outcome, r.reason)) for r in reports.values())
    assert {agent.points for agent in live_agents(conn)} == {99}
    assert conn.execute("SELECT count(*) FROM trajectories").fetchall() == [(1,)]
    assert processes() == []


def a_tick(url: str, moment: str, market: str, data: Path) -> subprocess.Popen[str]:
    """`rl-assets live tick` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rl_assets", "live", "tick", "--at", moment, "--market", market],
        cwd=REPOSITORY,
        env={**os.environ, "DATABASE_URL": url, "DAGSTER_PG_URL": url, "RL_ASSETS_DATA": str(data), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def asked(model: LoopbackModel, let_go: threading.Event) -> threading.Event:
    """Set when the model is asked; it answers when it is let go."""
    seen = threading.Event()

    def wait(request: Any) -> Reply:
        seen.set()
        let_go.wait(300)
        return good(request)

    model.mode = wait
    return seen


def test_a_coordinator_that_is_killed_in_a_tick_loses_it_once(
    conn: psycopg.Connection, postgres_url: str, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    market, now, let_go = serve().url, f"{datetime.now(UTC):%Y-%m-%dT%H:%M}", threading.Event()
    enrol(conn, "llm", "endpoint", api(model.url))
    seen = asked(model, let_go)
    killed = a_tick(postgres_url, now, market, tmp_path)
    assert seen.wait(300)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []  # the agent's process has ended with its coordinator, and can place no order any more
    assert conn.execute("SELECT state FROM rl_assets.live_ticks").fetchall() == [("playing",)]
    let_go.set()
    again = a_tick(postgres_url, now, market, tmp_path)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "lost before" in said
    assert conn.execute("SELECT state, reason FROM rl_assets.live_ticks").fetchall() == [("lost", LOST)]
    assert conn.execute("SELECT points, balance FROM rl_assets.points WHERE tick IS NOT NULL").fetchall() == [(-1, 99)]
    assert len(model.calls) == 1


def test_two_coordinators_at_one_tick_play_and_take_points_once(
    conn: psycopg.Connection, postgres_url: str, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    market, now, let_go = serve().url, f"{datetime.now(UTC):%Y-%m-%dT%H:%M}", threading.Event()
    enrol(conn, "llm", "endpoint", api(model.url))
    seen = asked(model, let_go)
    both = [a_tick(postgres_url, now, market, tmp_path) for _ in range(2)]
    assert seen.wait(300)
    # One holds the agent now; whichever it is, the other comes by and goes on.
    other = wait_for(lambda: [each for each in both if each.poll() is not None])[0]
    let_go.set()
    said = {each: each.communicate(timeout=300)[0] for each in both}
    assert "busy" in said[other]
    (one,) = [text for each, text in said.items() if each is not other]
    assert "played" in one
    assert [each.returncode for each in both] == [0, 0]
    assert conn.execute("SELECT state FROM rl_assets.live_ticks").fetchall() == [("played",)]
    assert conn.execute("SELECT points, balance FROM rl_assets.points WHERE tick IS NOT NULL").fetchall() == [(-1, 99)]
    assert len(model.calls) == 1
    ((text,),) = conn.execute('SELECT "stepsJson" FROM trajectories').fetchall()
    assert len(json.loads(text)) == 1


def wait_for(look: Callable[[], Any]) -> Any:
    """What a look gives once it gives something."""
    pause = threading.Event()
    for _ in range(3000):
        if found := look():
            return found
        pause.wait(0.1)
    raise AssertionError("it never came")
