"""What must hold before the protocol sees a request: the rate, the token, the size and that it is JSON.

Answers are JSON-RPC errors with the HTTP status that says the same: 401 (-32000), 408, 413 and 415 (-32600), 429
(-32006, Babylon's code for it).
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rl_assets.a2a.lobby import Lobby

MOST_BYTES = 32 * 1024
"""Of a request's body: a command is a few hundred."""
MOST_LEVELS = 32
"""Of objects and lists in each other: a command has eight."""
BODY_SECONDS = 10.0
KNOWN_CALLERS = 4096
"""Sessions and addresses whose rate is remembered; the one that has been silent longest is forgotten first."""
INVALID_REQUEST, PARSE_ERROR, NOT_AUTHENTICATED, RATE_LIMITED = -32600, -32700, -32000, -32006


@dataclass(frozen=True)
class RateLimit:
    """per_second: requests that may follow each other for ever. burst: how many more may come at once."""

    per_second: float = 50.0
    burst: int = 300


class Guard:
    """Pure ASGI middleware. It leaves the caller's session, or None, in the request's state as `session`."""

    def __init__(self, app: ASGIApp, lobby: Lobby, rate: RateLimit, now: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._lobby = lobby
        self._rate = rate
        self._now = now
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        address = (scope.get("client") or ("unknown",))[0]
        session = None
        if (given := headers.get("authorization")) is not None:
            scheme, _, token = given.partition(" ")
            session = self._lobby.session_of(token.strip()) if scheme.lower() == "bearer" else None
        wait = self._wait_for(session.id if session is not None else address)
        if wait > 0:
            seconds = str(math.ceil(wait))
            answer = _error(429, RATE_LIMITED, "rate limit: slow down", {"Retry-After": seconds})
        elif given is not None and session is None:
            text = "the token is not that of a session here; it may have expired: join again"
            answer = _error(401, NOT_AUTHENTICATED, text, {"WWW-Authenticate": "Bearer"})
        elif scope["method"] == "POST":
            answer, receive = await _read(headers, receive)
        else:
            answer = None
        scope.setdefault("state", {})["session"] = session
        await (answer or self._app)(scope, receive, send)

    def _wait_for(self, caller: str) -> float:
        """Take a request from a caller's allowance. Returns the seconds until there is one again, 0 if there is now."""
        now = self._now()
        left, since = self._callers.get(caller, (float(self._rate.burst), now))
        left = min(self._rate.burst, left + (now - since) * self._rate.per_second)
        allowed = left >= 1.0
        self._callers[caller] = (left - allowed, now)
        self._callers.move_to_end(caller)
        if len(self._callers) > KNOWN_CALLERS:
            self._callers.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate.per_second


async def _read(headers: Headers, receive: Receive) -> tuple[JSONResponse | None, Receive]:
    """The body, read whole within its bounds: an error to answer, or what gives it to the application again."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # A page in a browser can send anything else to a server on loopback without asking first.
        return _error(415, INVALID_REQUEST, "send JSON, with the content type application/json"), receive
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return _error(400, INVALID_REQUEST, "the request ended early"), receive
                body += message.get("body", b"")
                if len(body) > MOST_BYTES:
                    return _error(413, INVALID_REQUEST, f"a request has at most {MOST_BYTES} bytes"), receive
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        return _error(408, INVALID_REQUEST, f"a request's body must come within {BODY_SECONDS:.0f} seconds"), receive
    if not _can_be_passed_on(bytes(body)):
        return _error(200, PARSE_ERROR, "the body is not JSON of numbers, Unicode text and few levels"), receive
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return None, again


def _can_be_passed_on(body: bytes) -> bool:
    """Whether a body is JSON that can also be written again, as tasks repeat it: Python reads more than JSON is."""
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    return not level


def _error(status: int, code: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": text}}
    return JSONResponse(body, status_code=status, headers=headers)
