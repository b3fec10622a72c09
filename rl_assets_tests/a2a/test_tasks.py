from __future__ import annotations

import asyncio
from typing import Any

import pytest
from a2a.client.errors import A2AClientJSONRPCError
from a2a.types import TaskIdParams, TaskQueryParams

from rl_assets.agents.replay import replay
from rl_assets_tests.a2a.sdk import WORLD, Servers, agent_at, rpc


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
