from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import psycopg
import pytest
from a2a.client.errors import A2AClientHTTPError, A2AClientJSONRPCError
from a2a.types import AgentCard, TaskIdParams, TaskQueryParams

from rl_assets.a2a.card import EXTENSION
from rl_assets.a2a.guard import MOST_BYTES, RateLimit
from rl_assets.a2a.lobby import Limits
from rl_assets.a2a.operations import OPERATIONS
from rl_assets.a2a.record import recorder
from rl_assets.a2a.session import Room, Session
from rl_assets.agents.runner import replay
from rl_assets.errors import DatabaseError
from rl_assets.store.episodes import read_episodes
from rl_assets_tests.a2a.sdk import WORLD, SdkAgent, Servers, agent_at

OLD_OPERATIONS = (
    *("getPredictions", "buyShares", "sellShares", "getPerpetuals", "openPosition", "closePosition", "getFeed"),
    *("createPost", "getChats", "joinGroup", "getBalance", "getPortfolio", "getPositions", "getDashboard"),
)


def rpc(url: str, method: str, params: Any, **headers: str) -> httpx.Response:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return httpx.post(url, json=body, headers=headers, timeout=30.0)


def send(url: str, command: Any, **headers: str) -> httpx.Response:
    part = {"kind": "data", "data": command}
    message = {"kind": "message", "messageId": "m", "role": "user", "parts": [part]}
    return rpc(url, "message/send", {"message": message}, **headers)


async def play_out(agent: SdkAgent) -> dict[str, Any]:
    while True:
        clock = (await agent.ask("advance"))["clock"]
        if clock["finished"]:
            return clock["result"]


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
        async with agent_at(serve(reserved=frozenset({"babylon-agent"})).url) as agent:
            assert "call join first" in await agent.refused("getBalance")
            for name in ("", "a b", "../../etc", "<script>", "-x"):
                assert "an agent's name has" in await agent.refused("join", agent=name)
            for name in ("oracle", "news_follower", "babylon-agent"):
                assert "choose another" in await agent.refused("join", agent=name)
            assert "at most 40 characters" in await agent.refused("join", agent="x" * 41)
            await agent.join("bad")
            assert "Unsupported operation: dropTables" in await agent.refused("drop_tables")
            assert "amount: Field required" in await agent.refused("buyShares", marketId="A", outcome="YES")
            assert await agent.ask("getBalance") == {"balance": 1000.0}

    asyncio.run(play())


def test_tasks_are_kept_for_whoever_made_them_alone(serve: Servers):
    served = serve()

    async def play() -> None:
        async with agent_at(served.url) as agent, agent_at(served.url) as thief:
            joined = await agent.send({"operation": "join", "params": {"agent": "owner"}}, context_id="shared")
            agent.http.headers["Authorization"] = f"Bearer {joined.result['token']}"
            mine = await agent.send({"action": "getBalance"}, context_id="shared")
            for answer in (joined, mine):
                kept = await agent.client.get_task(TaskQueryParams(id=answer.task.id))
                assert kept.status.state == "completed"
                assert kept.artifacts == answer.task.artifacts
            for name in (None, "thief"):
                if name:
                    await thief.join(name)
                for answer in (joined, mine):
                    with pytest.raises(A2AClientJSONRPCError, match="not found"):
                        await thief.client.get_task(TaskQueryParams(id=answer.task.id))
                    with pytest.raises(A2AClientJSONRPCError, match="not found"):
                        await thief.client.cancel_task(TaskIdParams(id=answer.task.id))
            taken = await thief.send({"action": "getDashboard"}, context_id="shared")
            assert taken.result["agent"] == "thief"

    asyncio.run(play())


def test_a_wrong_token_is_turned_away(serve: Servers):
    served = serve()
    joined = send(served.url, {"operation": "join", "params": {"agent": "one"}})
    token = joined.json()["result"]["artifacts"][0]["parts"][0]["data"]["result"]["token"]
    identity = token.split(".")[0]
    right = send(served.url, {"action": "getBalance"}, Authorization=f"Bearer {token}")
    assert right.json()["result"]["status"]["state"] == "completed"
    for wrong in (f"Bearer {token}x", f"Bearer {identity}.", f"Bearer {identity}", "Bearer", f"Basic {token}", token):
        answer = send(served.url, {"action": "getBalance"}, Authorization=wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, -32000)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_sessions_end_when_idle_and_there_are_only_so_many(serve: Servers):
    moment = [0.0]
    served = serve(limits=Limits(sessions=2, idle_seconds=60.0), now=lambda: moment[0])

    async def play() -> None:
        async with agent_at(served.url) as one, agent_at(served.url) as two, agent_at(served.url) as three:
            await one.join("one")
            await two.join("two")
            assert "all 2 sessions are taken" in await three.refused("join", agent="three")
            moment[0] = 50.0
            await one.ask("getBalance")
            moment[0] = 100.0
            await three.join("three")
            assert await one.ask("getBalance") == {"balance": 1000.0}
            with pytest.raises(A2AClientHTTPError, match="401"):
                await two.ask("getBalance")
            await play_out(one)
            async with agent_at(served.url) as four:
                await four.join("four")

    asyncio.run(play())


def test_nobody_waits_for_an_agent_that_has_gone_silent(serve: Servers):
    moment = [0.0]
    served = serve(agents=2, limits=Limits(idle_seconds=60.0), now=lambda: moment[0])

    async def play() -> None:
        async with agent_at(served.url) as one, agent_at(served.url) as two:
            await one.join("one")
            await two.join("two")
            moment[0] = 50.0
            assert (await one.ask("advance", wait=0))["clock"]["tick"] == 1
            moment[0] = 70.0
            assert (await one.ask("getClock"))["clock"]["tick"] == 2
            await play_out(one)

    asyncio.run(play())
    assert [e.policy.name for e in served.episodes] == ["one"]


def test_a_client_that_polls_gets_its_token_and_its_results(serve: Servers):
    served = serve()
    message = {"kind": "message", "messageId": "m", "role": "user"}
    configuration = {"blocking": False}

    def begin(command: Any, **headers: str) -> Any:
        part = {"kind": "data", "data": command}
        params = {"message": message | {"parts": [part]}, "configuration": configuration}
        return rpc(served.url, "message/send", params, **headers).json()["result"]

    joined = begin({"operation": "join", "params": {"agent": "poller"}})
    bearer = {"Authorization": "Bearer " + joined["artifacts"][0]["parts"][0]["data"]["result"]["token"]}
    task = begin({"operation": "advance"}, **bearer)
    while task["status"]["state"] in ("submitted", "working"):
        task = rpc(served.url, "tasks/get", {"id": task["id"]}, **bearer).json()["result"]
    assert task["status"]["state"] == "completed"
    assert task["artifacts"][0]["parts"][0]["data"]["result"]["clock"]["tick"] == 2


def test_a_waiting_advance_can_be_cancelled_and_is_one_at_a_time(serve: Servers):
    served = serve(agents=2)

    async def play() -> None:
        async with agent_at(served.url, streaming=True) as one, agent_at(served.url) as two:
            await one.join("one")
            await two.join("two")
            waiting = one.follow({"operation": "advance", "params": {"wait": 60}})
            begun = [await anext(waiting) for _ in range(2)]
            assert begun[-1].status.state == "working"
            assert "is waiting already" in await one.refused("advance", tick=1)
            cancelled = await one.client.cancel_task(TaskIdParams(id=begun[0].id))
            assert cancelled.status.state == "canceled"
            assert [task.status.state async for task in waiting] == ["canceled"]
            assert (await two.ask("advance"))["clock"]["tick"] == 2

    asyncio.run(play())


def test_an_episode_whose_recording_went_through_unheard_is_recorded_once(postgres_url: str, conn: psycopg.Connection):
    room = Room(WORLD)
    session = Session("id", "heard", room, 0, False, 0.0, trajectory_id="t-1")
    room.sit(session)
    while not room.finished:
        session.act()
    record = recorder(postgres_url)
    record(room)
    record(room)
    assert conn.execute("SELECT count(*) FROM trajectories").fetchone() == (1,)


def test_a_market_can_want_a_key(serve: Servers):
    async def play() -> None:
        async with agent_at(serve(key="a long enough secret").url) as agent:
            assert "wants a key" in await agent.refused("join", agent="one")
            assert "wants a key" in await agent.refused("join", agent="one", key="a long enough guess!")
            await agent.join("one", key="a long enough secret")

    asyncio.run(play())


def test_too_many_requests_are_told_when_to_come_back(serve: Servers):
    served = serve(rate=RateLimit(per_second=0.001, burst=3))
    answers = [send(served.url, {"action": "getBalance"}) for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert answers[3].json()["error"]["code"] == -32006
    assert int(answers[3].headers["retry-after"]) > 900
    assert httpx.get(f"{served.url}.well-known/agent-card.json").status_code == 429


def test_one_sessions_rate_is_not_anothers(serve: Servers):
    async def play() -> None:
        async with agent_at(served.url) as one, agent_at(served.url) as two:
            await one.join("one")
            await two.join("two")
            for _ in range(5):
                await one.ask("getBalance")
            with pytest.raises(A2AClientHTTPError, match="429"):
                await one.ask("getBalance")
            await two.ask("getBalance")

    served = serve(rate=RateLimit(per_second=0.001, burst=5))
    asyncio.run(play())


def test_a_request_has_a_size_a_type_and_is_json(serve: Servers):
    url = serve().url
    kind = {"content-type": "application/json"}
    big = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"x": "y" * MOST_BYTES}}).encode()
    assert httpx.post(url, content=big, headers=kind).status_code == 413
    assert httpx.post(url, content=iter([big[:1000], big[1000:]]), headers=kind).status_code == 413
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    for broken in (b"{", b"", b"\xff", b"[" * 30_000):
        assert httpx.post(url, content=broken, headers=kind).json()["error"]["code"] == -32700
    for method, params, code in (
        ("nope", {}, -32601),
        ("a2a.getPredictions", {}, -32601),
        ("message/send", {}, -32602),
        ("tasks/get", {"id": "x"}, -32001),
    ):
        assert rpc(url, method, params).json()["error"]["code"] == code
    assert httpx.post(url, json=[1, 2]).json()["error"]["code"] == -32600
    assert httpx.get(f"{url}.well-known/agent-card.json", headers={"host": "evil.example"}).status_code == 400


def test_agents_of_one_clock_wait_for_each_other(serve: Servers):
    served = serve(agents=2)

    async def play() -> None:
        async with agent_at(served.url, streaming=True) as one, agent_at(served.url) as two:
            first = await one.join("one", fastForward=True)
            assert (first["agents"], first["clock"]["open"]) == (2, False)
            assert "opens when all 2" in await one.refused("advance")
            await two.join("two")
            bought = await one.ask("buyShares", marketId="A", outcome="NO", amount=50)
            assert (bought["clock"]["acted"], bought["clock"]["waitingFor"]) == (True, 1)
            assert (await one.ask("advance", tick=1, wait=0))["clock"]["tick"] == 1
            waiting = one.follow({"operation": "advance", "params": {"tick": 1, "wait": 30}})
            assert [(await anext(waiting)).status.state for _ in range(2)] == ["submitted", "working"]
            assert (await two.ask("advance"))["clock"]["tick"] == 2
            (done,) = [task.artifacts async for task in waiting if task.status.state == "completed"]
            assert done is not None
            while not served.rooms:
                await asyncio.gather(one.ask("advance"), two.ask("advance"))

    asyncio.run(play())
    assert [(e.policy.name, e.trades) for e in served.episodes] == [("one", 1), ("two", 0)]
    assert all(replay(e, *WORLD) == [] for e in served.episodes)


def test_an_episode_that_cannot_be_recorded_is_kept_and_tried_again(serve: Servers):
    down, recorded = [True], []

    def record(room) -> None:
        if down[0]:
            raise DatabaseError("the database does not answer")
        recorded.append(room)

    served = serve(record)

    async def play() -> None:
        async with agent_at(served.url) as agent:
            await agent.join("patient")
            assert (await play_out(agent))["episode"] is None
            down[0] = False
            assert (await agent.ask("getClock"))["clock"]["result"]["episode"] is not None

    asyncio.run(play())
    assert len(recorded) == 1


def test_what_could_not_be_recorded_is_tried_when_the_server_stops(serve: Servers):
    tries = []

    def record(room) -> None:
        tries.append(room)
        if len(tries) == 1:
            raise DatabaseError("the database does not answer")

    served = serve(record)

    async def play() -> None:
        async with agent_at(served.url) as agent:
            await agent.join("gone")
            await play_out(agent)

    asyncio.run(play())
    serve.stop()
    assert len(tries) == 2
    assert tries[0] is tries[1]


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
