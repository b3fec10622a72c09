"""A remote A2A agent that plays our market: it is sent what it sees at each tick, and what it says is its order.

One conversation is one episode. A market that is served over A2A is played the other way round, by `player`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rl_assets.a2a.client import Remote, RemoteError, RemoteRefusal, Said, connect, read_url
from rl_assets.agents.remote import Begin, NoAnswer
from rl_assets.agents.reply import Reply
from rl_assets.episodes import Policy, Sampling
from rl_assets.text import whole


class A2AAgent:
    """An agent under a URL, asked by `message/send`. The rules come with the first observation of an episode.

    Raises ConfigurationError for a URL that cannot be used.
    """

    def __init__(self, url: str, *, concurrency: int = 8) -> None:
        base = read_url(url)
        path = base.path.rstrip("/")
        self.policy = Policy(f"a2a@{base.netloc.decode('ascii')}{path}")
        self.sampling: Sampling | None = None
        self.concurrency = concurrency
        self._url = url

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Begin]:
        async with connect(self._url) as remote:
            if remote.is_market:
                raise RemoteError(f"{self._url} is a market and no agent; play it with `rl-assets play`")
            yield lambda system, seed: _Conversation(remote, system)


class _Conversation:
    def __init__(self, remote: Remote, system: str) -> None:
        self._remote = remote
        self._rules: str | None = system
        self._last: Said | None = None

    async def reply(self, observation: str) -> Reply:
        text = observation if self._rules is None else f"{self._rules}\n\n{observation}"
        try:
            self._last = await self._remote.say(text, self._last)
        except (RemoteError, RemoteRefusal) as error:
            raise NoAnswer(str(error)) from error
        self._rules = None
        return Reply(whole(self._last.text))
