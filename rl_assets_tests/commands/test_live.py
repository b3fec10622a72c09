from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from rl_assets.cli import BAD_INPUT, FAILED, run
from rl_assets.store.live import live_agents
from rl_assets_tests.a2a.sdk import Servers


@pytest.fixture(autouse=True)
def environment(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("DAGSTER_PG_URL", postgres_url)
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("LIVE_MARKET_URL", "WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_an_agent_is_registered_ticks_rests_gets_points_and_is_stopped(
    conn: psycopg.Connection, serve: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LIVE_MARKET_URL", serve().url)
    assert run(["live", "register", "ann", "--agent", "momentum", "--points", "1"]) == 0
    assert run(["live", "tick"]) == 0
    assert run(["live", "list"]) == 0
    assert "`rl-assets live points ann 100`" in capsys.readouterr().out
    assert run(["live", "points", "ann", "50"]) == 0
    assert run(["live", "points", "ann", "--", "-60"]) == BAD_INPUT
    assert run(["live", "stop", "ann"]) == 0
    (agent,) = live_agents(conn)
    assert (agent.points, agent.last_state, agent.active) == (50, "played", False)
    assert run(["live", "register", "ann", "--agent", "hold", "--scenario", "wild"]) == 0
    (agent,) = live_agents(conn)
    assert (agent.points, agent.policy, agent.scenario, agent.active) == (50, {"name": "hold"}, "wild", True)
    ids = conn.execute('SELECT "id" FROM "User" WHERE "isAgent"').fetchall()
    assert ids == [(agent.agent_id,)]


def test_an_agent_of_babylon_plays_with_the_points_that_it_has_there(
    conn: psycopg.Connection, serve: Servers, capsys: pytest.CaptureFixture[str]
):
    conn.execute(
        """INSERT INTO "User" ("id", "username", "isAgent", "agentPointsBalance", "updatedAt")
           VALUES ('their-id', 'trader', true, 7, now()), ('person', 'someone', false, 7, now())"""
    )
    assert run(["live", "register", "trader", "--agent", "hold", "--cost", "5"]) == 0
    assert run(["live", "register", "someone", "--agent", "hold"]) == FAILED
    assert "is a person, not an agent" in capsys.readouterr().err
    assert run(["live", "tick", "--market", serve().url]) == 0
    left = conn.execute(
        """SELECT "agentPointsBalance", "agentLastTickAt" IS NULL FROM "User" WHERE "id" = 'their-id'"""
    )
    assert left.fetchall() == [(2, False)]
    assert conn.execute('SELECT DISTINCT "agentId" FROM trajectories').fetchall() == [("their-id",)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["register", "../x", "--agent", "hold"], "an agent's name has 1 to 40 letters"),
        (["register", "momentum", "--agent", "hold"], "momentum is the name of a policy of this platform"),
        (["register", "oracle", "--agent", "hold"], "oracle is the name of a policy of this platform"),
        (["register", "model", "--agent", "hold"], "model is the name of a policy of this platform"),
        (["register", "babylon-agent", "--agent", "hold"], "babylon-agent is the name of a policy of this platform"),
        (["register", "a", "--agent", "endpoint"], "say which with --base-url and --model"),
        (["register", "a", "--agent", "hold", "--model", "m"], "are for --agent endpoint"),
        (["register", "a", "--agent", "endpoint", "--base-url", "ftp://x", "--model", "m"], "not the URL of a server"),
        (
            [
                "register",
                "a",
                "--agent",
                "endpoint",
                "--base-url",
                "http://h",
                "--model",
                "m",
                "--key-env",
                "DATABASE_URL",
            ],
            "--key-env names a variable like OPENAI_API_KEY",
        ),
        (["points", "nobody", "5"], "no live agent is called 'nobody'"),
        (["stop", "nobody"], "no live agent is called 'nobody'"),
        (["tick"], "set LIVE_MARKET_URL"),
        (["tick", "--market", "nonsense"], "not the URL of a server"),
        (["tick", "--market", "http://127.0.0.1:1", "--at", "noon"], "is no tick; write it like"),
    ],
)
def test_bad_input_is_said_in_a_sentence_and_changes_nothing(
    conn: psycopg.Connection, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["live", *arguments]) == BAD_INPUT
    assert said in capsys.readouterr().err
    assert live_agents(conn) == []
