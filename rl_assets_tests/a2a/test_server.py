from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import psycopg
import pytest
from a2a.types import AgentCard

from rl_assets.a2a.card import EXTENSION
from rl_assets.a2a.operations import OPERATIONS
from rl_assets.a2a.record import recorder
from rl_assets.agents.replay import replay
from rl_assets.market.generate import generate
from rl_assets.store.episodes import read_episodes
from rl_assets_tests.a2a.sdk import WORLD, Servers, agent_at, play_out

OLD_OPERATIONS = (
    *("getPredictions", "buyShares", "sellShares", "getPerpetuals", "openPosition", "closePosition", "getFeed"),
    *("createPost", "getChats", "joinGroup", "getBalance", "getPortfolio", "getPositions", "getDashboard"),
)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_sdks_client_plays_an_episode_that_is_recorded_and_replays(
    serve: Servers, postgres_url: str, conn: psycopg.Connection, streaming: bool
):
    served = serve(recorder(postgres_url))

    async def play() -> dict[str, Any]:
        async with agent_at(served.url, streaming) as agent:
            told = await agent.join("stranger")
            assert told["clock"]["observation"].startswith("t 1 cash 1000\n")
            assert told["rules"].startswith("You trade for 12 ticks")
            bought = await agent.ask("buyShares", marketId="A", outcome="YES", amount=50)
            assert bought["clock"]["order"] == '{"market":"A","do":"buy_yes","size":50}'
            await agent.ask("advance")
            await agent.ask("openPosition", ticker="P", side="SHORT", amount=25)
            await agent.ask("advance")
            answer = await agent.send({"action": "close_position", "positionId": "P"})
            expected = ["submitted", "working", "working", "completed"] if streaming else ["completed"]
            assert answer.states == expected
            return await play_out(agent)

    result = asyncio.run(play())
    episode = read_episodes(conn, [result["episode"]])[result["episode"]]
    assert replay(episode, *WORLD) == []
    assert [step.response for step in episode.steps[:4]] == [
        '{"market":"A","do":"buy_yes","size":50}',
        '{"market":"P","do":"short","size":25}',
        '{"market":"P","do":"close"}',
        '{"do":"hold"}',
    ]
    assert (str(episode.policy), episode.trades, episode.breaches) == ("stranger", 3, 0)
    assert (episode.realised_pnl, episode.expected_pnl) == (result["realisedPnl"], result["expectedPnl"])
    (username,) = conn.execute('SELECT "username" FROM "User" WHERE "id" = %s', [episode.agent_id]).fetchone() or ("",)
    assert username == "rl-harness-a2a-stranger"


def test_agents_are_isolated_and_episodes_of_one_name_are_numbered(serve: Servers):
    served = serve()

    async def play() -> None:
        async with agent_at(served.url) as one, agent_at(served.url) as other:
            await one.join("same")
            await other.join("same")
            await one.ask("buyShares", marketId="A", outcome="YES", amount=500)
            await one.ask("advance")
            assert await one.ask("getBalance") == {"balance": 500.0}
            assert await other.ask("getBalance") == {"balance": 1000.0}
            assert (await other.ask("getClock"))["clock"]["tick"] == 1
            await asyncio.gather(play_out(one), play_out(other))

    asyncio.run(play())
    assert sorted((e.sibling, e.trades) for e in served.episodes) == [(0, 1), (1, 0)]


def test_who_joins_again_plays_the_next_market_day(serve: Servers):
    worlds = [WORLD, generate("train", 6)]
    served = serve(worlds=worlds)

    async def play() -> None:
        for _ in range(3):
            async with agent_at(served.url) as one:
                await one.join("same")
                await play_out(one)

    asyncio.run(play())
    first, second = (snapshot.id for snapshot, _ in worlds)
    assert [(e.snapshot_id, e.sibling) for e in served.episodes] == [(first, 0), (second, 0), (first, 1)]


def test_the_card_is_one_of_a2a_and_names_every_operation(serve: Servers):
    served = serve()
    raw = httpx.get(f"{served.url}.well-known/agent-card.json").json()
    card = AgentCard.model_validate(raw)
    assert (card.protocol_version, card.preferred_transport, card.url) == ("0.3.0", "JSONRPC", served.url)
    assert (card.capabilities.streaming, card.capabilities.push_notifications) == (True, False)
    (extension,) = card.capabilities.extensions or []
    assert extension.uri == EXTENSION
    assert extension.params == {"operations": ["join", *OPERATIONS]}
    assert set(OLD_OPERATIONS) < set(OPERATIONS)
    assert raw["securitySchemes"]["session"]["scheme"] == "bearer"
    for skill in card.skills:
        for example in skill.examples or []:
            command = json.loads(example)
            assert command.get("operation", command.get("action"))


def test_commands_come_as_data_or_text_in_both_forms(serve: Servers):
    async def play() -> None:
        async with agent_at(serve().url) as agent:
            await agent.join("forms")
            for command in (
                {"operation": "getBalance", "params": {}},
                {"action": "getBalance"},
                {"action": "get_balance", "params": {}},
            ):
                for as_text in (False, True):
                    assert (await agent.send(command, as_text=as_text)).result == {"balance": 1000.0}
            for text in ("List all active prediction markets", "[" * 30_000, "null", '"getBalance"'):
                answer = await agent.send(text, as_text=True)
                assert answer.said.startswith("Error: Structured command required")

    asyncio.run(play())


def test_what_is_refused_is_a_failed_task_that_says_why(serve: Servers):
    async def play() -> None:
        async with agent_at(serve(lines=frozenset({"babylon-agent"})).url) as agent:
            assert "call join first" in await agent.refused("getBalance")
            for name in ("", "a b", "../../etc", "<script>", "-x"):
                assert "an agent's name has" in await agent.refused("join", agent=name)
            for name in ("oracle", "news_follower", "model", "babylon-agent"):
                assert "choose another" in await agent.refused("join", agent=name)
            assert "at most 40 characters" in await agent.refused("join", agent="x" * 41)
            await agent.join("bad")
            assert "Unsupported operation: dropTables" in await agent.refused("drop_tables")
            assert "amount: Field required" in await agent.refused("buyShares", marketId="A", outcome="YES")
            assert await agent.ask("getBalance") == {"balance": 1000.0}

    asyncio.run(play())


def test_a_fault_of_ours_is_not_shown_to_agents(serve: Servers, monkeypatch: pytest.MonkeyPatch):
    def broken(session, params):
        raise RuntimeError("postgresql://me:hunter2@db")

    monkeypatch.setitem(OPERATIONS, "getBalance", replace(OPERATIONS["getBalance"], run=broken))

    async def play() -> None:
        async with agent_at(serve().url) as agent:
            await agent.join("unlucky")
            said = await agent.refused("getBalance")
            assert "hunter2" not in said
            assert "its log says why" in said

    asyncio.run(play())
