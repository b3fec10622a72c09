"""A judge behind a real HTTP server on loopback that speaks OpenAI's chat completions.

It rates an episode by the mean size of its actions, so that a test decides by sizes who is best. What it answers with
is up to the mode: any function from `Asked` to `Reply`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from rl_assets_tests.loopback import serving

_EPISODE = re.compile(r'<(?:episode \w+|trajectory) id="(\w+)">(.*?)</(?:episode|trajectory)', re.S)
_SIZE = re.compile(r"size\W{1,4}(\d+)")


@dataclass(frozen=True)
class Asked:
    """A request. number: from 0. scores: quality in [0, 1] by id, in the order shown."""

    number: int
    body: dict[str, Any]
    scores: dict[str, float]

    @property
    def prompt(self) -> str:
        return "\n".join(message["content"] for message in self.body["messages"])


@dataclass(frozen=True)
class Reply:
    content: str | None = None
    status: int = 200
    finish_reason: str = "stop"
    refusal: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    wait_for: threading.Event | None = None


Mode = Callable[[Asked], Reply]


def answer(scores: dict[str, Any]) -> str:
    entries = [{"trajectory_id": name, "explanation": f"it is {name}", "score": s} for name, s in scores.items()]
    return json.dumps({"scores": entries})


def by_quality(asked: Asked) -> Reply:
    return Reply(answer(asked.scores))


def best_first(asked: Asked) -> Reply:
    return Reply(answer(dict(sorted(asked.scores.items(), key=lambda item: -item[1]))))


def says(content: str | None, **rest: Any) -> Mode:
    return lambda asked: Reply(content, **rest)


def score(value: Any) -> Mode:
    """Gives the first episode that is shown this score, and rates the others well."""
    return lambda asked: Reply(answer({**asked.scores, next(iter(asked.scores)): value}))


def first(mode: Mode, then: Mode = by_quality, times: int = 1) -> Mode:
    return lambda asked: (mode if asked.number < times else then)(asked)


def status(code: int, **headers: str) -> Mode:
    words = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda asked: Reply(json.dumps({"error": {"message": "no: sk-secret"}}), status=code, headers=words)


class LoopbackJudge:
    """calls: bodies of the requests in order. keys: their Authorization headers. peak: most requests at once."""

    def __init__(self) -> None:
        self.mode: Mode = by_quality
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.active = self.peak = 0
        self.url = ""
        self._lock = threading.Lock()

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            number = len(self.calls)
            self.calls.append(body)
            self.keys.append(handler.headers.get("authorization"))
            self.active += 1
            self.peak = max(self.peak, self.active)
        shown = _EPISODE.findall("\n".join(message["content"] for message in body["messages"]))
        reply = self.mode(Asked(number, body, {name: quality(text) for name, text in shown}))
        if reply.wait_for is not None:
            reply.wait_for.wait(30)
        with self._lock:
            self.active -= 1
        _send(handler, reply)


def quality(text: str) -> float:
    sizes = [int(size) for size in _SIZE.findall(text)]
    return round(min(sum(sizes) / len(sizes) / 100, 1.0), 4) if sizes else 0.0


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    message = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
    completion = {
        "id": "one",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [{"index": 0, "finish_reason": reply.finish_reason, "message": message}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }
    data = reply.raw if reply.raw is not None else json.dumps(completion).encode()
    if reply.status != 200:
        data = (reply.content or "").encode()
    handler.send_response(reply.status)
    for name, value in {"content-type": "application/json", "content-length": str(len(data)), **reply.headers}.items():
        handler.send_header(name, value)
    with suppress(ConnectionError):  # who waited may have hung up
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def loopback_judge() -> Iterator[LoopbackJudge]:
    judge = LoopbackJudge()
    with serving(lambda handler: judge.respond(handler)) as judge.url:
        yield judge


def ids_of(body: dict[str, Any]) -> Sequence[str]:
    """The ids of the episodes in a prompt, in the order shown."""
    return [name for name, _ in _EPISODE.findall(body["messages"][-1]["content"])]
