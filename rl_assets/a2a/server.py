"""The market as an A2A 0.3 server: JSON-RPC over HTTP, with the official SDK doing the protocol.

What the operations do is in `operations`, who may call them in `lobby`, and what must hold before the SDK sees a
request in `guard`. Here: the way from a message to an operation, and from its result to a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import uvicorn
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.apps import A2AStarletteApplication, CallContextBuilder
from a2a.server.context import ServerCallContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import TaskStore, TaskUpdater
from a2a.types import Artifact, DataPart, Message, Part, Task, TaskState, TaskStatus, TextPart
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request

from rl_assets.a2a.card import agent_card
from rl_assets.a2a.command import Command, read_command
from rl_assets.a2a.guard import MOST_BYTES, Guard, RateLimit
from rl_assets.a2a.lobby import Join, Lobby
from rl_assets.a2a.operations import ADVANCE, JOIN, find, run
from rl_assets.a2a.params import Advance, parse
from rl_assets.a2a.session import Refused, Room, Session
from rl_assets.a2a.views import clock
from rl_assets.errors import DatabaseError, RlAssetsError
from rl_assets.store.episodes import new_ids

logger = logging.getLogger(__name__)

KEPT_TASKS = 1024
"""Tasks that can be asked for again; the oldest go first."""
SLICE_SECONDS = 1.0
"""How often whoever waits for other agents looks whether one of them has gone silent."""


class Referee(AgentExecutor):
    """Carries out the operations, wakes those who wait for the clock, and has finished episodes recorded.

    record is called in a thread with a room that has finished. Where it fails, the room is kept, and tried again with
    the next one and when the server stops.
    """

    def __init__(self, lobby: Lobby, record: Callable[[Room], None]) -> None:
        self._lobby = lobby
        self._record = record
        self._moved: WeakKeyDictionary[Room, asyncio.Event] = WeakKeyDictionary()
        self._waiting: set[Session] = set()
        self._unrecorded: list[Room] = []
        self._recording = asyncio.Lock()
        lobby.on_move = self._on_move

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer one message with a task: completed with the artifact `result.json`, or failed with the reason."""
        call = context.call_context
        if call is None or context.message is None or context.task_id is None or context.context_id is None:
            raise ValueError("the SDK gave no call context, message or ids")
        task = Task(
            id=context.task_id,
            context_id=context.context_id,
            status=TaskStatus(state=TaskState.submitted),
            history=[context.message],
        )
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        began = False
        try:
            command = read_command(_payload(context.message))
            if command.operation == JOIN:
                # A caller that does not wait for the end of a task cannot ask for it without the token that is in it.
                result = self._join(command, call)
            else:
                await event_queue.enqueue_event(task)
                began = True
                await updater.start_work()
                result = await self._answer(command, call.state["session"])
        except asyncio.CancelledError:
            await updater.cancel()  # what `cancel` says reaches the caller that cancels, and not the one that waits
            raise
        except Refused as refusal:
            failure = f"Error: {refusal}"
        except Exception:
            logger.exception("an operation failed")
            failure = "Error: the server failed at this operation; its log says why"
        else:
            artifact = Artifact(artifact_id=str(uuid4()), name="result.json", parts=[_data({"result": result})])
            if not began:
                task.status, task.artifacts = TaskStatus(state=TaskState.completed), [artifact]
                await event_queue.enqueue_event(task)
                return
            await updater.add_artifact(artifact.parts, artifact.artifact_id, artifact.name)
            await updater.complete()
            return
        if not began:
            await event_queue.enqueue_event(task)
        await updater.failed(updater.new_agent_message([Part(root=TextPart(text=failure))]))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Stop waiting for the clock. What was decided in the tick stays decided."""
        if context.task_id is not None and context.context_id is not None:
            await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()

    async def finish(self) -> None:
        """Record what has not been recorded."""
        async with self._recording:
            for room in list(self._unrecorded):
                try:
                    await asyncio.to_thread(self._record, room)
                except RlAssetsError as error:
                    logger.error("finished episodes wait to be recorded: %s", error)
                    if isinstance(error, DatabaseError):
                        return  # the others would fare no better
                    continue
                room.recorded = True
                self._unrecorded.remove(room)

    def _join(self, command: Command, call: ServerCallContext) -> dict[str, Any]:
        session, told = self._lobby.join(parse(Join, command.params), lambda: new_ids(1)[0])
        call.state["owner"] = session.id
        return told | {"clock": clock(session)}

    async def _answer(self, command: Command, session: Session | None) -> dict[str, Any]:
        operation = find(command)
        if session is None:
            raise Refused("no session: call join first, then send its token as `Authorization: Bearer <token>`")
        tick = session.room.tick
        result = run(session, command)
        if command.operation == ADVANCE and session.acted and session.room.tick == tick:
            await self._wait(session, tick, parse(Advance, command.params).wait)
        if session.room.finished:
            await self.finish()
        return result | {"clock": clock(session)} if operation.tells_clock else result

    async def _wait(self, session: Session, tick: int, seconds: float) -> None:
        """Until the clock moves, for at most so long. A session waits once at a time, and so holds one connection."""
        if session in self._waiting:
            raise Refused("another advance of this session is waiting already; let it end")
        self._waiting.add(session)
        try:
            await self._moves(session.room, tick, seconds)
        finally:
            self._waiting.remove(session)

    async def _moves(self, room: Room, tick: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while room.tick == tick and (left := deadline - time.monotonic()) > 0:
            moved = self._moved.setdefault(room, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(moved.wait(), min(left, SLICE_SECONDS))
            self._lobby.expire()

    def _on_move(self, room: Room) -> None:
        if event := self._moved.pop(room, None):
            event.set()
        if room.finished:
            self._unrecorded.append(room)


class OwnedTasks(TaskStore):
    """Tasks in memory, each for the session that made it alone. Those without a session are not kept."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, tuple[str, Task]] = OrderedDict()

    async def save(self, task: Task, context: ServerCallContext | None = None) -> None:
        owner = context.state["owner"] if context is not None else None
        if owner is not None:
            self._tasks[task.id] = (owner, task)
            self._tasks.move_to_end(task.id)
            while len(self._tasks) > KEPT_TASKS:
                self._tasks.popitem(last=False)

    async def get(self, task_id: str, context: ServerCallContext | None = None) -> Task | None:
        owner, task = self._tasks.get(task_id, (None, None))
        return task if owner is not None and context is not None and owner == context.state["owner"] else None

    async def delete(self, task_id: str, context: ServerCallContext | None = None) -> None:
        if await self.get(task_id, context) is not None:
            del self._tasks[task_id]


class _Calls(CallContextBuilder):
    """What the guard found out about a request, for whoever handles it."""

    def build(self, request: Request) -> ServerCallContext:
        session: Session | None = request.state.session
        return ServerCallContext(state={"session": session, "owner": session.id if session is not None else None})


def build_app(
    lobby: Lobby,
    record: Callable[[Room], None],
    *,
    url: str,
    hosts: list[str] | None = None,
    rate: RateLimit = RateLimit(),
) -> Starlette:
    """The server as an ASGI application. url: what the agent card says. hosts: Host headers that are answered, None for
    all. rate: per session, and per address for what has no session."""
    referee = Referee(lobby, record)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await referee.finish()

    handler = DefaultRequestHandler(agent_executor=referee, task_store=OwnedTasks())
    application = A2AStarletteApplication(
        agent_card(url), handler, context_builder=_Calls(), max_content_length=MOST_BYTES
    )
    middleware = [Middleware(Guard, lobby=lobby, rate=rate)]
    if hosts is not None:
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False))
    return application.build(lifespan=lifespan, middleware=middleware)


class MarketServer:
    """The server on a thread. `build` gets the URL it listens on and returns the application."""

    def __init__(self, build: Callable[[str], Starlette], host: str = "127.0.0.1") -> None:
        self._build = build
        self._host = host
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    def start(self, port: int = 0) -> None:
        """Listen on a port (0: any free one). Returns when requests are answered. Raises OSError if it cannot."""
        socket = uvicorn.Config("", host=self._host, port=port, log_level="warning").bind_socket()
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{shown}:{socket.getsockname()[1]}/"
        config = uvicorn.Config(
            self._build(self.url),
            log_level="warning",
            server_header=False,
            limit_concurrency=512,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise OSError(f"the server on {self.url} did not start")
            time.sleep(0.01)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Answer what is being asked, record what has finished, and end."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=30)


def _payload(message: Message) -> Any:
    """The JSON of a message: its data part, or its text part read as JSON. Raises Refused."""
    if len(message.parts) != 1:
        raise Refused(f"a message has one part, the command; this one has {len(message.parts)}")
    part = message.parts[0].root
    if isinstance(part, DataPart):
        return part.data
    if not isinstance(part, TextPart):
        raise Refused("files are not read here; send the command as a data part")
    try:
        return json.loads(part.text)
    except (ValueError, RecursionError):
        return part.text


def _data(data: dict[str, Any]) -> Part:
    return Part(root=DataPart(data=data))
