"""A version of a model line as a player, wherever its checkpoint is: in this process, or at W&B behind its endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rl_assets.agents import prompt
from rl_assets.agents.remote import Conversation, RemoteAgent
from rl_assets.agents.reply import Reply
from rl_assets.agents.runner import Agent
from rl_assets.episodes import Policy, Sampling
from rl_assets.errors import ConfigurationError
from rl_assets.market.engine import Engine
from rl_assets.market.snapshot import Truth
from rl_assets.registry.checkpoints import ADAPTER, RemoteCheckpoint
from rl_assets.settings import LocalSettings, ServerlessSettings

if TYPE_CHECKING:
    from rl_assets.agents.endpoint import EndpointAgent

CONCURRENCY = 32
"""Requests to W&B at a time."""
MOST_TOKENS = 512
"""Of an answer of W&B's model; what is cut off there is played as it is, which is mostly an invalid action."""


def agent_of(checkpoint: Path | RemoteCheckpoint, policy: Policy) -> Agent:
    """The agent that a checkpoint plays as. Raises MissingCheckpoint, and ConfigurationError without a key for W&B."""
    remote = remote_of(checkpoint, policy)
    if remote is not None:
        return SeatedAgent(remote, policy)
    assert not isinstance(checkpoint, RemoteCheckpoint)
    from rl_assets.agents.neural import NeuralAgent

    return NeuralAgent(checkpoint, policy)


def remote_of(checkpoint: Path | RemoteCheckpoint, policy: Policy, temperature: float = 1.0) -> RemoteAgent | None:
    """The agent to ask where a checkpoint is served, at W&B or by vLLM; None for one that plays in this process.

    Raises ConfigurationError without a key for W&B.
    """
    if isinstance(checkpoint, RemoteCheckpoint):
        endpoint = served(checkpoint, policy, temperature)
        endpoint.policy = policy
        return endpoint
    if not (checkpoint / ADAPTER).is_file():
        return None
    from rl_assets.training.local import ServedAgent

    return ServedAgent(checkpoint, policy, LocalSettings.from_env(), temperature)


def served(checkpoint: RemoteCheckpoint, policy: Policy, temperature: float = 1.0) -> EndpointAgent:
    """A checkpoint at W&B behind its endpoint. Raises ConfigurationError without a key for it."""
    from rl_assets.agents.endpoint import EndpointAgent

    settings = ServerlessSettings.from_env()
    if settings.api_key is None:
        raise ConfigurationError(f"{policy} plays at W&B as {checkpoint}; set WANDB_API_KEY")
    return EndpointAgent(
        settings.base_url,
        checkpoint,
        api_key=settings.api_key,
        temperature=temperature,
        max_tokens=MOST_TOKENS,
        concurrency=CONCURRENCY,
        timeout=float(settings.request_seconds),
        cut_off_counts=True,
    )


class SeatedAgent:
    """A remote agent that takes turns as agents in this process do: at each tick all its episodes are asked at once.

    One that gives no answer ends the play with NoAnswer: an outage is not a bad action.
    """

    def __init__(self, remote: RemoteAgent, policy: Policy) -> None:
        self.policy = policy
        self.sampling: Sampling | None = remote.sampling
        self._remote = remote

    def sit(
        self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]
    ) -> _Conversations:
        drawn = [int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1 for seed in seeds]
        return _Conversations(self._remote, prompt.system_message(engine.config), drawn, engine.config.ticks)


class _Conversations:
    """Episodes in play. The connection is closed after the last tick, or with the first error."""

    def __init__(self, remote: RemoteAgent, system: str, seeds: Sequence[int], ticks: int) -> None:
        self._remote, self._system, self._seeds, self._left = remote, system, seeds, ticks
        self._runner, self._stack = asyncio.Runner(), AsyncExitStack()
        self._talks: list[Conversation] = []

    def reply(self, observations: Sequence[str]) -> list[Reply]:
        self._left -= 1
        whole = False
        try:
            replies = self._runner.run(self._all(observations))
            whole = self._left > 0
        finally:
            if not whole:
                self._runner.run(self._stack.aclose())
                self._runner.close()
        return replies

    async def _all(self, observations: Sequence[str]) -> list[Reply]:
        if not self._talks:
            begin = await self._stack.enter_async_context(self._remote.connected())
            self._talks = [begin(self._system, seed) for seed in self._seeds]
        at_once = asyncio.Semaphore(self._remote.concurrency)

        async def one(talk: Conversation, observation: str) -> Reply:
            async with at_once:
                began = time.perf_counter()
                reply = await talk.reply(observation)
                return replace(reply, latency_ms=round(1000 * (time.perf_counter() - began)))

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(*pair)) for pair in zip(self._talks, observations, strict=True)]
        except ExceptionGroup as errors:  # those after the first say the same
            raise errors.exceptions[0] from None
        return [task.result() for task in asked]
