"""Who may play: sessions and their tokens, how many there may be, and when one that is left alone ends.

A token is the only identity. It is told once, to the agent that joined, and kept as a hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from rl_assets.a2a.params import Params
from rl_assets.a2a.session import Refused, Room, Session
from rl_assets.agents import prompt
from rl_assets.market.snapshot import World
from rl_assets.names import fault_of

TOLD = (
    *("ticks", "tick_seconds", "markets", "perps", "start_cash", "fee", "leverage", "taker_fee", "maintenance"),
    *("chats", "paid_sources", "source_price", "post_influence"),
)
"""Settings of the world that an agent is told: those that say what it can do, and what that costs."""


class Join(Params):
    """agent: the name to be recorded under. fastForward: an order ends the agent's tick, without `advance`. key: what
    the server's owner has given to those who may join, if there is one."""

    agent: Annotated[str, Field(max_length=40)]
    fastForward: bool = False
    key: Annotated[str, Field(max_length=200)] | None = None


@dataclass(frozen=True)
class Limits:
    """sessions: at once. idle_seconds: how long a session may be silent."""

    sessions: int = 64
    idle_seconds: float = 600.0


class Lobby:
    """Rooms of some worlds, a market day each: whoever joins again plays the next one, and after the last the first.

    agents: how many share a clock. lines: names of model lines, which no agent may take. key: what to join with,
    None where anybody may. on_move: called after every tick of a room.
    """

    def __init__(
        self,
        worlds: Sequence[World],
        *,
        agents: int = 1,
        limits: Limits = Limits(),
        lines: frozenset[str] = frozenset(),
        key: str | None = None,
        now: Callable[[], float] = time.monotonic,
        on_move: Callable[[Room], None] = lambda room: None,
    ) -> None:
        self._worlds = worlds
        self._agents = agents
        self.on_move = on_move
        self._limits = limits
        self._lines = lines
        self._key = key
        self._now = now
        self._sessions: dict[str, tuple[Session, bytes]] = {}
        self._joined: Counter[str] = Counter()
        self._played: Counter[tuple[str, str]] = Counter()
        self._open: Room | None = None

    def join(self, params: Join, new_id: Callable[[], str]) -> tuple[Session, dict[str, Any]]:
        """A new session, and what its agent is told: its token and the rules. Raises Refused.

        new_id: gives the trajectory id of the episode to come.
        """
        if self._key is not None and not _same(params.key or "", self._key):
            raise Refused("this server wants a key to join; ask its owner, and send it as `key`")
        if (fault := fault_of(params.agent, self._lines)) is not None:
            raise Refused(fault)
        self.expire()
        if len(self._sessions) >= self._limits.sessions:
            self._forget_finished()
        if len(self._sessions) >= self._limits.sessions:
            raise Refused(f"all {self._limits.sessions} sessions are taken; try again later")
        world = self._worlds[self._joined[params.agent] % len(self._worlds)]
        room = self._open or Room(world, self._agents, now=self._now, on_move=lambda room: self.on_move(room))
        self._joined[params.agent] += 1
        played = params.agent, room.snapshot.id
        sibling = self._played[played]
        self._played[played] += 1
        session = Session(
            id=secrets.token_hex(8),
            agent=params.agent,
            room=room,
            row=len(room.sessions),
            fast_forward=params.fastForward,
            last_seen=self._now(),
            sibling=sibling,
            trajectory_id=new_id(),
        )
        room.sit(session)
        self._open = room if len(room.sessions) < room.seats else None
        secret = secrets.token_urlsafe(32)
        self._sessions[session.id] = (session, _hash(secret))
        config = room.config
        told = {
            "token": f"{session.id}.{secret}",
            "session": session.id,
            "agents": room.seats,
            "rules": prompt.system_message(config),
            "instruments": list(config.instruments),
            "market": {name: getattr(config, name) for name in TOLD},
        }
        return session, told

    def session_of(self, token: str) -> Session | None:
        """The session that a token was given for, or None. Comparing takes the same time whatever is wrong with it."""
        self.expire()
        identity, _, secret = token.partition(".")
        session, expected = self._sessions.get(identity, (None, _hash("")))
        if not hmac.compare_digest(_hash(secret), expected) or session is None:
            return None
        session.last_seen = self._now()
        return session

    def expire(self) -> None:
        """End the sessions that have been silent for too long. Those of an episode in play hold from now on."""
        for session, _ in list(self._sessions.values()):
            if self._now() - session.last_seen > self._limits.idle_seconds:
                self._forget(session)

    def _forget_finished(self) -> None:
        for session, _ in list(self._sessions.values()):
            if session.room.recorded:
                self._forget(session)

    def _forget(self, session: Session) -> None:
        del self._sessions[session.id]
        if not session.room.finished:
            session.room.leave(session)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(_hash(one), _hash(other))
