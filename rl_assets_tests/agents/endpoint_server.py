"""A model behind an OpenAI-compatible API on loopback. What it answers is up to its mode: a function of `Asked`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from rl_assets_tests.loopback import serving

HOLD = '{"do":"hold"}'


@dataclass(frozen=True)
class Asked:
    """A request. number: from 0. tick: of the episode that it belongs to, from 0."""

    number: int
    body: dict[str, Any]

    @property
    def tick(self) -> int:
        return sum(message["role"] == "assistant" for message in self.body["messages"])


@dataclass(frozen=True)
class Reply:
    content: Any = HOLD
    status: int = 200
    finish_reason: str = "stop"
    refusal: str | None = None
    tokens: list[dict[str, Any]] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    wait_for: threading.Event | None = None


Mode = Callable[[Asked], Reply]
SOON = {"retry-after-ms": "1"}


def good(asked: Asked) -> Reply:
    """Buys at the first tick, then holds; with logprobs where they are asked for."""
    text = '{"market":"A","do":"buy_yes","size":50}' if asked.tick == 0 else HOLD
    tokens = [{"token": "token_id:7", "logprob": -0.5}, {"token": "}", "logprob": -0.25}]
    return Reply(text, tokens=tokens if asked.body.get("logprobs") else None)


def says(content: Any, **rest: Any) -> Mode:
    return lambda asked: Reply(content, **rest)


def status(code: int, said: str = "no") -> Mode:
    return lambda asked: Reply(json.dumps({"error": {"message": said}}), status=code, headers=SOON)


def first(mode: Mode, times: int, then: Mode = good) -> Mode:
    return lambda asked: (mode if asked.number < times else then)(asked)


class LoopbackModel:
    """calls: bodies of the requests in order. keys: their Authorization headers. peak: most requests at once."""

    def __init__(self) -> None:
        self.mode: Mode = good
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.active = self.peak = 0
        self.url = ""
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://").removesuffix("/v1")

    def episodes(self) -> int:
        """Conversations that were begun."""
        return sum(len(call["messages"]) == 2 for call in self.calls)

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            number = len(self.calls)
            self.calls.append(body)
            self.keys.append(handler.headers.get("authorization"))
            self.active += 1
            self.peak = max(self.peak, self.active)
        reply = self.mode(Asked(number, body))
        if reply.wait_for is not None:
            reply.wait_for.wait(30)
        with self._lock:
            self.active -= 1
        _send(handler, reply)


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    message = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
    logprobs = None if reply.tokens is None else {"content": reply.tokens}
    completion = {
        "id": "one",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": reply.finish_reason, "message": message, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102},
    }
    data = json.dumps(completion).encode() if reply.raw is None else reply.raw
    if reply.status != 200:
        data = str(reply.content).encode()
    handler.send_response(reply.status)
    for name, value in {"content-type": "application/json", "content-length": str(len(data)), **reply.headers}.items():
        handler.send_header(name, value)
    with suppress(ConnectionError):  # who waited may have hung up
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def loopback_model() -> Iterator[LoopbackModel]:
    model = LoopbackModel()
    with serving(lambda handler: model.respond(handler)) as model.url:
        yield model
