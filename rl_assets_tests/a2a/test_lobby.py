from __future__ import annotations

import asyncio

import pytest
from a2a.client.errors import A2AClientHTTPError

from rl_assets.a2a.lobby import Limits
from rl_assets_tests.a2a.sdk import Servers, agent_at, play_out


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


def test_a_market_can_want_a_key(serve: Servers):
    async def play() -> None:
        async with agent_at(serve(key="a long enough secret").url) as agent:
            assert "wants a key" in await agent.refused("join", agent="one")
            assert "wants a key" in await agent.refused("join", agent="one", key="a long enough guess!")
            await agent.join("one", key="a long enough secret")

    asyncio.run(play())
