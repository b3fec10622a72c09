from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
from psycopg.sql import SQL, Identifier

from rl_assets.a2a.client import RemoteError
from rl_assets.agents import prompt, turn
from rl_assets.agents.coordinator import why_nothing_to_do
from rl_assets.agents.reply import Reply
from rl_assets.agents.runner import Game
from rl_assets.assets.groups import grpo_groups
from rl_assets.assets.trajectories import recorded_trajectories
from rl_assets.episodes import Episode, digest
from rl_assets.errors import ConfigurationError
from rl_assets.grouping import build_groups
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.registry.models import register_base
from rl_assets.resources import Database, Judge, Lake, Trainer
from rl_assets.store.episodes import read_episodes
from rl_assets.store.live import give_points, live_agents, stop
from rl_assets.windows import hold_back, settles_at
from rl_assets_tests.a2a.sdk import WORLD, Servers
from rl_assets_tests.agents.endpoint_server import HOLD, LoopbackModel, status
from rl_assets_tests.agents.live import LINE, WINDOW, enrol, tick


def rows(conn: psycopg.Connection, query: str, *values: Any) -> list[tuple]:
    return conn.execute(query, values).fetchall()  # pyright: ignore[reportArgumentType, reportCallIssue]


def recorded(conn: psycopg.Connection) -> list[Episode]:
    ids = rows(conn, 'SELECT "trajectoryId" FROM trajectories ORDER BY "trajectoryId"')
    return list(read_episodes(conn, [identity for (identity,) in ids]).values())


def api(model: LoopbackModel) -> dict[str, Any]:
    return {"base_url": model.url, "model": "m", "temperature": 1.0}


def test_an_agents_steps_of_an_hour_are_one_trajectory_as_it_would_be_here(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path
):
    url = serve().url
    ids = {name: enrol(conn, f"{name}-1", "reference", {"name": name}) for name in ("momentum", "news_follower")}
    for minute in (0, 5, 10):
        reports = tick(conn, url, tmp_path, minute)
        assert {report.outcome for report in reports.values()} == {"played"}
    played = {episode.agent_id: episode for episode in recorded(conn)}
    for name, agent_id in ids.items():
        episode, game = played[agent_id], Game([WORLD])
        assert (str(episode.policy), episode.scenario_id, episode.window_id) == (name, "calm", WINDOW)
        for step in episode.steps:
            assert step.observation == game.observations()[0]
            game.take([Reply(step.response)])
            assert step.equity == pytest.approx(float(game.engine.equity[0]), abs=1e-6)
        assert episode.realised_pnl == pytest.approx(episode.steps[-1].equity - WORLD[0].config.start_cash)
        assert episode.system == prompt.system_message(WORLD[0].config)
    assert len(played) == 2
    assert {agent.points for agent in live_agents(conn)} == {97}
    assert rows(conn, "SELECT count(*), sum(points) FROM rl_assets.points WHERE tick IS NOT NULL") == [(6, -6)]


def test_every_access_call_and_action_is_recorded_in_babylons_shape(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    url = serve().url
    agent_id = enrol(conn, "llm", "endpoint", api(model), points=2)
    for minute in (0, 5):
        tick(conn, url, tmp_path, minute)
    ((identity, text, status, trades, length),) = rows(
        conn,
        """SELECT "trajectoryId", "stepsJson", "finalStatus", "tradesExecuted", "episodeLength" FROM trajectories
           WHERE "agentId" = %s""",
        agent_id,
    )
    assert (status, trades, length) == ("completed", 1, 2)
    first, second = json.loads(text)
    assert [access["providerName"] for access in first["providerAccesses"]] == [
        *("join", "getPortfolio", "buyShares", "getPortfolio")
    ]
    for access in first["providerAccesses"] + second["providerAccesses"]:
        assert set(access) >= {"providerName", "data", "purpose"}
        assert isinstance(access["data"], dict)
    assert first["environmentState"]["agentPoints"] == 1
    assert set(first["environmentState"]) >= {"agentBalance", "agentPnL", "openPositions", "activeMarkets"}
    assert first["action"]["actionType"] == "BUY_YES"
    assert first["action"]["result"]["shares"] > 0
    assert second["environmentState"]["openPositions"] == 1
    (call,) = second["llmCalls"]
    assert call["response"] == HOLD
    assert call["logprobs"] == [-0.5, -0.25]
    # The model was told what it had said before, and nothing of another hour.
    assert [message["role"] for message in model.calls[1]["messages"]] == ["system", "user", "assistant", "user"]
    logged = rows(
        conn,
        """SELECT "stepId", "systemPrompt", "userPrompt", "response", "purpose" FROM llm_call_logs
           WHERE "trajectoryId" = %s ORDER BY "stepId" """,
        identity,
    )
    assert logged == [
        (f"{identity}-step-{n}", c["systemPrompt"], c["userPrompt"], c["response"], "action")
        for n, c in enumerate(step["llmCalls"][0] for step in (first, second))
    ]


def test_the_hour_passes_extraction_and_is_grouped_by_scenario(
    conn: psycopg.Connection, postgres_url: str, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    url = serve().url
    calm = {enrol(conn, f"calm-{n}", "endpoint", api(model)) for n in range(3)}
    wild = {enrol(conn, f"wild-{n}", "endpoint", api(model), scenario="wild") for n in range(2)}
    tick(conn, url, tmp_path)
    agents = {episode.trajectory_id: episode.agent_id for episode in recorded(conn)}
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            [recorded_trajectories, grpo_groups],
            partition_key=WINDOW,
            instance=instance,
            resources={
                "database": Database(url=postgres_url),
                "lake": Lake(directory=str(tmp_path)),
                "judge": Judge(kind="outcome"),
                "trainer": Trainer(),
            },
            selection=[recorded_trajectories, grpo_groups],
        )
    assert done.success
    groups = pq.read_table(tmp_path / "windows" / WINDOW.replace(":", "") / "groups.parquet").to_pylist()
    assert {group["kind"] for group in groups} == {"live"}
    assert {json.loads(g["key"])["scenario"]: {agents[t] for t in g["trajectory_ids"]} for g in groups} == {
        "calm": calm,
        "wild": wild,
    }
    assert not any(group["trainable"] for group in groups)  # an endpoint is no step of the model line


def test_the_next_hour_and_the_next_market_day_are_other_trajectories(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    ticks = 3
    url = serve(worlds=[generate("train", 5, WorldConfig(ticks=ticks))]).url
    enrol(conn, "llm", "endpoint", api(model))
    for minute in range(ticks + 1):
        tick(conn, url, tmp_path, minute)
    tick(conn, url, tmp_path, 60)
    found = rows(conn, 'SELECT "windowId", "episodeLength" FROM trajectories ORDER BY "trajectoryId"')
    assert found == [(WINDOW, ticks), (WINDOW, 1), ("2025-06-03T09:00", 1)]
    # The market day goes on over the hour; the conversation begins again.
    assert len(model.calls[-1]["messages"]) == 2
    assert "t 2 " in model.calls[-1]["messages"][-1]["content"]


def test_an_agent_without_points_rests_and_says_so(conn: psycopg.Connection, serve: Servers, tmp_path: Path):
    url = serve().url
    enrol(conn, "poor", "reference", {"name": "hold"}, points=1)
    enrol(conn, "rich", "reference", {"name": "hold"})
    assert why_nothing_to_do(live_agents(conn)) is None
    assert [r.outcome for r in tick(conn, url, tmp_path, 0).values()] == ["played", "played"]
    reports = tick(conn, url, tmp_path, 5)
    assert (reports["poor"].outcome, reports["rich"].outcome) == ("rests", "played")
    assert reports["poor"].reason == "it has 0 points and a tick costs 1: `rl-assets live points poor 100`"
    stop(conn, "rich")
    assert "every active live agent rests" in str(why_nothing_to_do(live_agents(conn)))
    give_points(conn, "poor", 5, "topped up")
    assert tick(conn, url, tmp_path, 5)["poor"].outcome == "played"
    assert rows(conn, "SELECT points, balance FROM rl_assets.points ORDER BY id")[-2:] == [(5, 5), (-1, 4)]


def test_a_tick_that_is_run_again_plays_and_costs_nothing(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    url = serve().url
    enrol(conn, "llm", "endpoint", api(model))
    first, again = tick(conn, url, tmp_path)["llm"], tick(conn, url, tmp_path)["llm"]
    assert (first.outcome, first.points, first.again) == ("played", 1, False)
    assert (again.outcome, again.points, again.again) == ("played", 0, True)
    assert len(model.calls) == 1
    assert live_agents(conn)[0].points == 99


def test_a_tick_that_failed_keeps_what_was_read_and_said(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    model.mode = status(403, "not\x00for you")
    enrol(conn, "llm", "endpoint", api(model))
    report = tick(conn, serve().url, tmp_path)["llm"]
    assert report.outcome == "failed"
    assert "for you" in str(report.reason)
    ((state, reason, witnessed),) = rows(conn, "SELECT state, reason, witnessed FROM rl_assets.live_ticks")
    assert (state, reason) == ("failed", str(report.reason).replace("\x00", "\ufffd"))
    assert [access["providerName"] for access in json.loads(witnessed)] == ["join", "getPortfolio"]
    assert rows(conn, "SELECT count(*) FROM trajectories") == [(0,)]


def test_no_token_is_kept_but_in_a_file_for_this_account(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    enrol(conn, "rule", "reference", {"name": "momentum"})
    tick(conn, serve().url, tmp_path)
    (path,) = (tmp_path / "live").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    secret = json.loads(path.read_text())["token"].split(".")[1]
    said = capfd.readouterr()
    kept = "".join(
        str(conn.execute(SQL("SELECT t::text FROM {} AS t").format(Identifier(*table.split(".")))).fetchall())
        for table in (
            "trajectories",
            "llm_call_logs",
            "rl_assets.live_ticks",
            "rl_assets.points",
            "rl_assets.live_agents",
        )
    )
    assert "getPortfolio" in kept
    assert secret not in kept + said.out + said.err


def test_a_market_that_is_gone_or_has_forgotten_the_agent(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, model: LoopbackModel
):
    served = serve()
    enrol(conn, "llm", "endpoint", api(model))
    tick(conn, served.url, tmp_path, 0)
    served.lobby._sessions.clear()
    assert tick(conn, served.url, tmp_path, 5)["llm"].outcome == "played"  # it has joined again
    with pytest.raises(RemoteError, match="cannot be played"):
        tick(conn, "http://127.0.0.1:1/", tmp_path, 10)
    assert live_agents(conn)[0].points == 98  # nobody pays where nothing can be played
    assert rows(conn, 'SELECT "episodeLength" FROM trajectories ORDER BY "trajectoryId"') == [(1,), (1,)]


def test_a_tick_whose_hour_is_over_or_has_not_come_is_not_played(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path
):
    url = serve().url
    enrol(conn, "rule", "reference", {"name": "hold"})
    assert tick(conn, url, tmp_path, 55, late=9)["rule"].outcome == "refused"
    with pytest.raises(ConfigurationError, match="has not come yet"):
        tick(conn, url, tmp_path, 55, late=-5)
    assert rows(conn, "SELECT count(*) FROM rl_assets.live_ticks") == [(0,)]
    assert tick(conn, url, tmp_path, 55, late=1)["rule"].outcome == "played"


def test_agents_of_one_clock_play_when_all_have_joined(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = serve(agents=2).url
    enrol(conn, "first", "reference", {"name": "hold"})
    monkeypatch.setattr(turn, "MOVE_SECONDS", 0.0)
    report = tick(conn, url, tmp_path)["first"]
    assert (report.outcome, str(report.reason)[:31]) == ("failed", "the market opens when all its a")
    enrol(conn, "second", "reference", {"name": "momentum"})
    monkeypatch.setattr(turn, "MOVE_SECONDS", 200.0)
    for minute in (5, 10):
        assert {r.outcome for r in tick(conn, url, tmp_path, minute).values()} == {"played"}
    assert [[step.tick for step in episode.steps] for episode in recorded(conn)] == [[0, 1], [0, 1]]


def test_the_champion_plays_live_and_its_groups_can_be_trained_on(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path, weak_policy: Path
):
    from rl_assets.agents.neural import Conversations, NeuralPolicy

    register_base(conn, LINE, weak_policy, checkpoint_digest(weak_policy), metrics={})
    url = serve().url
    for number in range(2):
        enrol(conn, f"model-{number}", "model")
    for minute in (0, 5, 10):
        assert {r.outcome for r in tick(conn, url, tmp_path, minute).values()} == {"played"}
    episodes = recorded(conn)
    assert {str(episode.policy) for episode in episodes} == {f"{LINE}@0"}
    groups = build_groups(episodes, window_id=WINDOW, group_size=8)
    (open_group,) = hold_back(groups, WINDOW, settles_at(WINDOW) - timedelta(seconds=1), 8)
    (settled,) = hold_back(groups, WINDOW, settles_at(WINDOW), 8)
    assert (open_group.reason, settled.reason, len(settled.trajectory_ids)) == ("window_open", None, 2)
    # What a process says from the record of a conversation is what one that never stopped would say.
    neural, days = NeuralPolicy(weak_policy), dict(rows(conn, "SELECT trajectory_id, day FROM rl_assets.live_ticks"))
    for episode in episodes:
        seed = int(digest([episode.agent_id, days[episode.trajectory_id]])[:8], 16) >> 1
        table = Conversations(neural, [episode.system], 1.0)
        for step in episode.steps:
            draws = np.random.default_rng((seed, step.tick + 1)).random((1, neural.max_tokens))
            (reply,) = table.reply([step.observation], draws)
            assert reply.token_ids == step.token_ids
            assert reply.logprobs == pytest.approx(step.logprobs, abs=1e-4)


def test_an_agent_whose_model_is_missing_is_refused_and_pays_nothing(
    conn: psycopg.Connection, serve: Servers, tmp_path: Path
):
    enrol(conn, "model-1", "model")
    enrol(conn, "rule", "reference", {"name": "hold"})
    reports = tick(conn, serve().url, tmp_path)
    assert (reports["rule"].outcome, reports["model-1"].outcome) == ("played", "refused")
    assert "has no model yet" in str(reports["model-1"].reason)
    assert {agent.name: agent.points for agent in live_agents(conn)} == {"model-1": 100, "rule": 99}
