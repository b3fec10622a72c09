"""Calling a remote A2A 0.3 server through the official SDK, with what a stranger's server may do kept within bounds.

Requests go to the host that the user typed and nowhere else: a card that names another is refused, redirects are not
followed and a name's answers are judged (`rl_assets.outbound`), so a server cannot point this client at an address
inside somebody's network. Answers are bounded in size and
time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError, A2AClientHTTPError
from a2a.types import AgentCard, DataPart, Message, Part, Role, Task, TaskQueryParams, TaskState, TextPart

from rl_assets import outbound
from rl_assets.a2a.card import EXTENSION
from rl_assets.errors import ConfigurationError, RlAssetsError
from rl_assets.text import printable

MOST_BYTES = 4 * 2**20
"""Of an answer."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 75.0
"""Longer than a server of ours waits for other agents."""
TRIES = 8
"""How often a call is made that the server has no time for."""
PROTOCOL = "0.3"
ASKING = {TaskState.input_required, TaskState.auth_required}
"""States in which an agent waits for us."""
ENDED = {TaskState.completed, TaskState.failed, TaskState.rejected, TaskState.canceled} | ASKING

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Said:
    """An agent's words, and what the next message names to go on: its context, and its task if that waits for us."""

    text: str
    context_id: str | None
    task_id: str | None


class RemoteError(RlAssetsError):
    """The server cannot be reached or does not keep to the protocol."""


class RemoteRefusal(RlAssetsError):
    """The server understood a call and did not carry it out; the message is the server's, made printable."""


class Remote:
    """A server to call. card: what it says it is. client, http: what it is called through. is_market: whether it has
    sessions and a clock, as ours do."""

    def __init__(self, card: AgentCard, client: Client, http: httpx.AsyncClient) -> None:
        self.card = card
        self.client = client
        self.http = http

    @property
    def is_market(self) -> bool:
        return any(extension.uri == EXTENSION for extension in self.card.capabilities.extensions or [])

    def send_header(self, name: str, value: str) -> None:
        """Send a header with every call from now on. Raises RemoteError if HTTP has no room for the value."""
        if not (value.isascii() and value.isprintable()):
            raise RemoteError(f"what the header {name} is to carry has other characters than printable ASCII")
        self.http.headers[name] = value

    async def call(self, operation: str, params: dict[str, Any] | None = None) -> Any:
        """The result of an operation. Raises RemoteRefusal or RemoteError."""
        part = Part(root=DataPart(data={"operation": operation, "params": params or {}}))
        message = Message(role=Role.user, message_id=str(uuid4()), parts=[part])
        return await self._answered(message, lambda answer: _result(operation, answer))

    async def say(self, text: str, after: Said | None = None) -> Said:
        """What an agent says to a text, in the conversation of what it said before. Raises as `call` does."""
        message = Message(
            role=Role.user,
            message_id=str(uuid4()),
            parts=[Part(root=TextPart(text=text))],
            context_id=after and after.context_id,
            task_id=after and after.task_id,
        )
        return await self._answered(message, _said)

    async def _answered(self, message: Message, read: Callable[[Task | Message], T]) -> T:
        for attempt in range(1, TRIES + 1):
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return read(await self._send(message))
            except A2AClientHTTPError as error:
                if error.status_code != 429 or attempt == TRIES:
                    raise RemoteError(_trouble(self.card.url, error)) from error
                await asyncio.sleep(1.0)
            except (A2AClientError, TimeoutError, ValueError) as error:
                raise RemoteError(_trouble(self.card.url, error)) from error
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, message: Message) -> Task | Message:
        answer: Task | Message | None = None
        async for event in self.client.send_message(message):
            answer = event if isinstance(event, Message) else event[0]
        while isinstance(answer, Task) and answer.status.state not in ENDED:
            await asyncio.sleep(0.2)
            answer = await self.client.get_task(TaskQueryParams(id=answer.id))
        if answer is None:
            raise ValueError("it gave no answer")
        return answer


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Remote]:
    """Read the agent card under a URL and be ready to call. Raises ConfigurationError for a URL that cannot be used,
    RemoteError if what answers is not an A2A 0.3 server on that host."""
    base = read_url(url)
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    transport = _Bounded(outbound.AsyncTransport())
    async with httpx.AsyncClient(timeout=timeout, follow_redirects=False, transport=transport) as http:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                card = await A2ACardResolver(http, str(base)).get_agent_card()
        except (A2AClientError, TimeoutError, ValueError) as error:
            raise RemoteError(_trouble(url, error)) from error
        if not (card.protocol_version or "").startswith(f"{PROTOCOL}."):
            said = printable(card.protocol_version or "no version")
            raise RemoteError(f"{base} speaks A2A {said}; this client speaks {PROTOCOL}: play a server that does")
        if _origin(_parsed(card.url)) != _origin(base):
            raise RemoteError(
                f"the agent card of {base} sends requests to another host ({printable(card.url)}); if you trust "
                "that one, play its own URL"
            )
        try:
            client = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)
        except ValueError as error:
            raise RemoteError(f"{base} does not speak JSON-RPC, which this client does ({error})") from error
        yield Remote(card, client, http)


def read_url(text: str) -> httpx.URL:
    """A server's URL as a person typed it. Raises ConfigurationError, without repeating a password."""
    url = _parsed(text)
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        given = "this" if "@" in text else repr(printable(text))
        raise ConfigurationError(
            f"{given} is not the URL of a server; write it like http://127.0.0.1:41241 or https://example.org, "
            "without a password or query"
        )
    outbound.check_url(text, "the server's URL")
    return url


def _parsed(text: str) -> httpx.URL:
    """The URL as requests will be made with it, or an empty one if it is broken."""
    try:
        strict = urlsplit(text)
        _ = strict.port  # checked when it is read
        return httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        return httpx.URL("")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _result(operation: str, answer: Task | Message) -> Any:
    """The `result` of what a server answered. Raises RemoteRefusal, or ValueError where there is none."""
    if isinstance(answer, Message):
        raise ValueError(f"{operation} was answered with a message in place of a task")
    if answer.status.state is not TaskState.completed:
        said = _texts(answer.status.message.parts) if answer.status.message is not None else ""
        raise RemoteRefusal(
            printable(said.removeprefix("Error: "), 400) or f"{operation} ended as {answer.status.state.value}"
        )
    for artifact in answer.artifacts or []:
        for part in artifact.parts:
            if isinstance(part.root, DataPart) and "result" in part.root.data:
                return part.root.data["result"]
    raise ValueError(f"{operation} was completed without a result")


def _said(answer: Task | Message) -> Said:
    """The words of an answer. Raises RemoteRefusal where the agent did not do what it was asked."""
    if isinstance(answer, Message):
        return Said(_words(answer.parts), answer.context_id, None)
    state, message = answer.status.state, answer.status.message
    told = message.parts if message is not None else []
    if state not in (TaskState.completed, TaskState.input_required):
        raise RemoteRefusal(printable(_texts(told), 400) or f"the agent's task ended as {state.value}")
    made = [part for artifact in answer.artifacts or [] for part in artifact.parts]
    asking = state is TaskState.input_required
    return Said(_words(told if asking or not made else made), answer.context_id, answer.id if asking else None)


def _words(parts: list[Part]) -> str:
    """Text as it stands, and data as JSON."""
    roots = [part.root for part in parts]
    return " ".join(
        root.text if isinstance(root, TextPart) else json.dumps(root.data)
        for root in roots
        if isinstance(root, (TextPart, DataPart))
    )


def _texts(parts: list[Part]) -> str:
    return " ".join(part.root.text for part in parts if isinstance(part.root, TextPart))


def _trouble(url: str, error: Exception) -> str:
    reason = "no answer in time" if isinstance(error, TimeoutError) else printable(str(error) or repr(error), 300)
    return f"{printable(url)} cannot be played: {reason}; see whether a server runs there and speaks A2A {PROTOCOL}"


class _Bounded(httpx.AsyncBaseTransport):
    """Ends an answer that is too long."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if not isinstance(response.stream, httpx.AsyncByteStream):
            raise httpx.ReadError("the answer cannot be read as a stream", request=request)
        response.stream = _BoundedStream(response.stream, request)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, request: httpx.Request) -> None:
        self._inner = inner
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > MOST_BYTES:
                raise httpx.ReadError(f"the answer has more than {MOST_BYTES} bytes", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
