"""An agent of the official SDK, as a stranger would write one, and a market served on loopback for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.types import AgentCard, DataPart, Message, Part, Role, Task, TextPart

from rl_assets.a2a.guard import RateLimit
from rl_assets.a2a.lobby import Lobby
from rl_assets.a2a.server import MarketServer, build_app
from rl_assets.a2a.session import Room
from rl_assets.episodes import Episode
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import World

WORLD: World = generate("train", 5)


@dataclass
class Served:
    """A running server. rooms: those whose episodes it has handed over to be recorded."""

    url: str
    lobby: Lobby
    rooms: list[Room] = field(default_factory=list)

    @property
    def episodes(self) -> list[Episode]:
        return [e for room in self.rooms for e in room.episodes({s.agent: s.agent for s in room.sessions})]


class Servers:
    """Markets served for a test."""

    def __init__(self) -> None:
        self._running: list[MarketServer] = []

    def __call__(
        self,
        record: Callable[[Room], None] | None = None,
        rate: RateLimit | None = None,
        worlds: Sequence[World] = (WORLD,),
        **lobby: Any,
    ) -> Served:
        served = Served("", Lobby(worlds, **lobby))
        server = MarketServer(
            lambda url: build_app(
                served.lobby,
                record or served.rooms.append,
                url=url,
                hosts=["127.0.0.1"],
                rate=rate or RateLimit(per_second=1000.0, burst=1000),
            )
        )
        server.start()
        self._running.append(server)
        served.url = server.url
        return served

    def stop(self) -> None:
        while self._running:
            self._running.pop().stop()


@dataclass
class Answer:
    """result: of a completed task. said: why a task failed. states: as they were streamed."""

    task: Task
    states: list[str]

    @property
    def result(self) -> Any:
        (artifact,) = self.task.artifacts or []
        (part,) = artifact.parts
        assert isinstance(part.root, DataPart)
        return part.root.data["result"]

    @property
    def said(self) -> str:
        assert self.task.status.message is not None
        (part,) = self.task.status.message.parts
        assert isinstance(part.root, TextPart)
        return part.root.text


class SdkAgent:
    def __init__(self, client: Client, http: httpx.AsyncClient, card: AgentCard) -> None:
        self.client = client
        self.http = http
        self.card = card

    async def send(self, command: Any, *, as_text: bool = False, context_id: str | None = None) -> Answer:
        """Send a command and follow its task to the end."""
        task, states = None, []
        async for task in self.follow(command, as_text, context_id):
            states.append(task.status.state.value)
        assert task is not None
        return Answer(task, states)

    async def follow(self, command: Any, as_text: bool = False, context_id: str | None = None) -> AsyncIterator[Task]:
        """A command's task, each time that something of it changes."""
        if as_text or isinstance(command, str):
            part = Part(root=TextPart(text=command if isinstance(command, str) else json.dumps(command)))
        else:
            part = Part(root=DataPart(data=command))
        message = Message(role=Role.user, message_id=str(uuid4()), parts=[part], context_id=context_id)
        async for event in self.client.send_message(message):
            assert not isinstance(event, Message)
            yield event[0]

    async def ask(self, operation: str, **params: Any) -> Any:
        """The result of an operation that must succeed."""
        answer = await self.send({"operation": operation, "params": params})
        assert answer.task.status.state == "completed", answer.said
        return answer.result

    async def refused(self, operation: str, **params: Any) -> str:
        """Why an operation that must fail did."""
        answer = await self.send({"operation": operation, "params": params})
        assert answer.task.status.state == "failed", answer.result
        return answer.said

    async def join(self, name: str, **params: Any) -> Any:
        told = await self.ask("join", agent=name, **params)
        self.http.headers["Authorization"] = f"Bearer {told['token']}"
        return told


@asynccontextmanager
async def agent_at(url: str, streaming: bool = False) -> AsyncIterator[SdkAgent]:
    async with httpx.AsyncClient(timeout=30.0) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)
        yield SdkAgent(client, http, card)


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
