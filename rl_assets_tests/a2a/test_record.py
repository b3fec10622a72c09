from __future__ import annotations

import asyncio

import psycopg

from rl_assets.a2a.record import recorder
from rl_assets.a2a.session import Room, Session
from rl_assets.errors import DatabaseError
from rl_assets_tests.a2a.sdk import WORLD, Servers, agent_at, play_out


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
