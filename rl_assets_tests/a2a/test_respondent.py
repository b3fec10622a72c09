"""A remote A2A agent plays our market, whichever of the protocol's ways of answering it has chosen."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rl_assets.a2a.card import agent_card
from rl_assets.a2a.client import RemoteError
from rl_assets.a2a.respondent import A2AAgent
from rl_assets.agents.comparison import Entrant, Results, play_missing
from rl_assets.agents.replay import replay
from rl_assets.errors import ConfigurationError
from rl_assets_tests.a2a.sdk import Servers
from rl_assets_tests.reports.pages import worlds

SMALL = worlds(2)
BUY = {"market": "A", "do": "buy_yes", "size": 50}
HOLD = {"do": "hold"}


class Responder:
    """An agent of somebody else. way: how it answers. asked: the messages it was sent."""

    def __init__(self) -> None:
        self.url, self.way = "", "message"
        self.asked: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    @property
    def card(self) -> dict[str, Any]:
        card = agent_card(f"{self.url}/").model_dump(mode="json", by_alias=True, exclude_none=True)
        return card | {"capabilities": {"streaming": False}}

    def answer(self, request: Any) -> dict[str, Any]:
        message = request["params"]["message"]
        with self._lock:
            number = len(self.asked)
            self.asked.append(message)
        context = message.get("contextId") or f"context-{number}"
        order = HOLD if "contextId" in message else BUY
        text, data = {"kind": "text", "text": json.dumps(order)}, {"kind": "data", "data": order}

        def said(part: dict[str, Any]) -> dict[str, Any]:
            return {
                "kind": "message",
                "role": "agent",
                "messageId": f"m-{number}",
                "contextId": context,
                "parts": [part],
            }

        def task(state: str, part: dict[str, Any] | None, made: list[dict[str, Any]]) -> dict[str, Any]:
            status = {"state": state} | ({"message": said(part)} if part else {})
            artifacts = [{"artifactId": "a", "parts": made}] if made else []
            identity = message.get("taskId") or f"task-{number}"
            return {"kind": "task", "id": identity, "contextId": context, "status": status, "artifacts": artifacts}

        result = {
            "message": lambda: said(text),
            "data": lambda: said(data),
            "artifact": lambda: task("completed", None, [text]),
            "asking": lambda: task("input-required", text, []),
            "failing": lambda: task("failed", {"kind": "text", "text": "I am \x1b[31mbroken"}, []),
        }[self.way]()
        return {"jsonrpc": "2.0", "id": request["id"], "result": result}


@pytest.fixture
def responder() -> Iterator[Responder]:
    it = Responder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(it.card)

        def do_POST(self) -> None:
            self._send(it.answer(json.loads(self.rfile.read(int(self.headers["content-length"])))))

        def _send(self, body: Any) -> None:
            raw = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    it.url = f"http://127.0.0.1:{server.server_port}"
    yield it
    server.shutdown()
    server.server_close()
    thread.join()


def played(url: str) -> Results:
    return play_missing(
        [Entrant(A2AAgent(url), {})],
        SMALL,
        seed=0,
        known=[],
        keep=lambda episodes: None,
        on_progress=lambda name, done, total: None,
    )


@pytest.mark.parametrize("way", ["message", "data", "artifact", "asking"])
def test_an_agent_plays_in_one_conversation_per_episode(responder: Responder, way: str):
    responder.way = way
    results = played(responder.url)
    assert results.failures == []
    (episodes,) = results.episodes.values()
    assert [[step.action for step in e.steps] for e in episodes] == [[BUY, *[HOLD] * 5]] * 2
    assert [replay(e, *world) for e, world in zip(episodes, SMALL, strict=True)] == [[], []]
    rules = [m["parts"][0]["text"] for m in responder.asked if "contextId" not in m]
    assert len(rules) == 2
    assert all("Answer each tick with one JSON action" in text for text in rules)
    contexts = [message["contextId"] for message in responder.asked if "contextId" in message]
    assert {contexts.count(context) for context in contexts} == {5}
    assert all(("taskId" in m) is (way == "asking") for m in responder.asked if "contextId" in m)


def test_an_agent_that_fails_fails_its_episode_in_printable_words(responder: Responder):
    responder.way = "failing"
    results = played(responder.url)
    assert [failure.reason for failure in results.failures] == ["I am \ufffd[31mbroken"] * 2


def test_what_is_not_there_or_is_a_market_fails_every_episode(serve: Servers):
    assert ["cannot be played" in f.reason for f in played("http://127.0.0.1:1").failures] == [True] * 2
    assert "is a market and no agent" in played(serve().url).failures[0].reason
    with pytest.raises(ConfigurationError, match="not the URL of a server"):
        A2AAgent("http://me:secret@host")


def test_a_market_is_told_apart_before_anything_is_said(serve: Servers):
    async def go() -> None:
        async with A2AAgent(serve().url).connected():
            raise AssertionError

    with pytest.raises(RemoteError, match="rl-assets play"):
        asyncio.run(go())
