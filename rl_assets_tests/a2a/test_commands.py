from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from rl_assets.agents.replay import replay
from rl_assets.cli import BAD_INPUT, FAILED, INTERRUPTED, run
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import save_snapshot
from rl_assets.store.episodes import read_episodes
from rl_assets_tests.a2a.sdk import WORLD
from rl_assets_tests.processes import free_port

NAME = WORLD[0].id
ENDPOINT = ["http://127.0.0.1:1", "--agent", "endpoint", "--base-url", "http://127.0.0.1:1/v1", "--model", "m"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATABASE_URL", "DAGSTER_PG_URL", "RL_ASSETS_A2A_KEY", "BABYLON_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    save_snapshot(tmp_path / "snapshots", *WORLD)
    return tmp_path


def test_a_served_snapshot_is_played_and_recorded(
    data: Path, postgres_url: str, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
):
    port = free_port()
    env = os.environ | {"DATABASE_URL": postgres_url, "DAGSTER_PG_URL": postgres_url}
    server = subprocess.Popen(
        [sys.executable, "-m", "rl_assets", "serve", NAME, "--port", str(port)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(f"http://127.0.0.1:{port}/  {NAME}")
        assert run(["play", f"http://127.0.0.1:{port}", "--agent", "news_follower"]) == 0
        assert run(["play", f"http://127.0.0.1:{port}", "--agent", "hold", "--name", "oracle"]) == FAILED
    finally:
        server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    said = capsys.readouterr()
    assert "oracle is the name of a policy of this platform" in said.err
    (identity,) = re.findall(r"\b\d{30,}\b", said.out)
    episode = read_episodes(conn, [identity])[identity]
    assert str(episode.policy) == "news_follower-a2a"
    assert replay(episode, *WORLD) == []


@pytest.mark.parametrize(
    "arguments, key, said",
    [
        (["nonsense"], None, "is not a snapshot id"),
        (["train-000009-0123456789ab"], None, "is missing"),
        ([NAME, "--host", "0.0.0.0"], None, "lets other machines in: set RL_ASSETS_A2A_KEY"),
        ([NAME, "--host", "0.0.0.0"], "k" * 16, "say with --url"),
        ([NAME], "short", "fewer than 16 characters"),
        ([NAME, "--agents", "0"], None, "--agents"),
    ],
)
def test_what_cannot_or_should_not_be_served_is_said_before_anything_starts(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    key: str | None,
    said: str,
):
    if key is not None:
        monkeypatch.setenv("RL_ASSETS_A2A_KEY", key)
    assert run(["serve", *arguments]) == BAD_INPUT
    assert said in capsys.readouterr().err
    assert [path.name for path in data.iterdir()] == ["snapshots"]


def test_a_truth_of_another_day_is_not_served(data: Path, capsys: pytest.CaptureFixture[str]):
    other = generate("train", 6)
    save_snapshot(data / "snapshots", *other)
    sealed = data / "snapshots" / "sealed"
    (sealed / f"{other[0].id}.json").replace(sealed / f"{NAME}.json")
    assert run(["serve", NAME]) == BAD_INPUT
    assert "is not the one it was made with" in capsys.readouterr().err


def test_a_port_in_use_is_said(data: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["serve", NAME, "--port", str(taken.getsockname()[1])]) == BAD_INPUT
    assert "choose another with --port" in capsys.readouterr().err


def test_an_agent_that_is_interrupted_says_so_and_no_more():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        agent = subprocess.Popen(
            [sys.executable, "-m", "rl_assets", "play", url, "--agent", "hold"], stderr=subprocess.PIPE, text=True
        )
        try:
            silent.settimeout(60)
            asked, _ = silent.accept()
            with asked:
                agent.send_signal(signal.SIGINT)
                _, said = agent.communicate(timeout=30)
        finally:
            agent.kill()
    assert (agent.returncode, said.strip()) == (INTERRUPTED, "rl-assets: interrupted")


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["ftp://host", "--agent", "hold"], BAD_INPUT, "is not the URL of a server"),
        (["http://127.0.0.1:1", "--agent", "oracle"], BAD_INPUT, "oracle"),
        (["http://127.0.0.1:1", "--agent", "endpoint"], BAD_INPUT, "--base-url and --model"),
        (["http://127.0.0.1:1", "--agent", "hold", "--model", "m"], BAD_INPUT, "are for --agent endpoint"),
        ([*ENDPOINT, "--key-env", "NOT_SET"], BAD_INPUT, "--key-env names NOT_SET, which is not set"),
        (["http://127.0.0.1:1", "--agent", "hold"], FAILED, "cannot be played"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
):
    assert run(["play", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
