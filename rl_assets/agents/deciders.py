"""Who decides in a live turn: a rule, a model behind an API, or a checkpoint of the model line.

Each is asked once per process, with the conversation so far. What it was told and said comes back as a `Reply`, so that
every kind is recorded alike.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rl_assets.a2a.client import Remote
from rl_assets.a2a.market_client import Clock
from rl_assets.a2a.player import RuleDecider
from rl_assets.agents import prompt
from rl_assets.agents.line_player import served
from rl_assets.agents.reply import Reply
from rl_assets.episodes import Policy, Sampling
from rl_assets.errors import ConfigurationError, MalformedInput
from rl_assets.market.config import WorldConfig
from rl_assets.registry.checkpoints import ADAPTER, RemoteCheckpoint, located
from rl_assets.turns import Job, Said

if TYPE_CHECKING:
    from rl_assets.agents.endpoint import EndpointAgent

KEY_NAME = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")
"""Names of variables that an endpoint may be sent: no other secret of the environment."""


class TurnDecider(Protocol):
    """policy: what its episodes are recorded under. sampling: None where nothing is drawn from a distribution."""

    policy: Policy
    sampling: Sampling | None

    async def decide(
        self, market: Remote, config: WorldConfig, clock: Clock, system: str, past: Sequence[Said], seed: int
    ) -> Reply:
        """The answer to the clock's observation. Raises RlAssetsError where there is none."""
        ...


def decider_of(job: Job) -> TurnDecider:
    """Who decides for a job. Raises MalformedInput or ConfigurationError where that cannot be read or had."""
    if job.kind == "reference":
        return _Rule(_text(job, "name"))
    if job.kind == "endpoint":
        agent = _endpoint(job)
        return _Api(agent, agent.policy)
    if job.line is None or job.step is None or job.checkpoint is None:
        raise MalformedInput(f"the turn of {job.name} names no checkpoint; this is a fault of the coordinator")
    policy, checkpoint = Policy(job.line, job.step), located(job.checkpoint)
    if isinstance(checkpoint, RemoteCheckpoint):
        return _Api(served(checkpoint, policy), policy)
    if (checkpoint / ADAPTER).is_file():
        raise ConfigurationError(
            f"{policy} is an adapter for a GPU's server: serve it with vLLM, and register {job.name} as an endpoint"
        )
    return _Local(checkpoint, policy)


def _endpoint(job: Job) -> EndpointAgent:
    from rl_assets.agents.endpoint import EndpointAgent

    key = job.policy.get("key")
    if key is not None and (KEY_NAME.fullmatch(str(key)) is None or not os.environ.get(str(key))):
        raise ConfigurationError(
            f"{job.name} sends the key in {str(key)[:80]!r}, which is no variable of that kind that is set here; set "
            "it, or register the agent with another --key-env"
        )
    return EndpointAgent.at_market(
        _text(job, "base_url"),
        _text(job, "model"),
        api_key=os.environ[str(key)] if key is not None else None,
        temperature=float(job.policy.get("temperature", 1.0)),
        timeout=float(job.seconds),
    )


def _text(job: Job, name: str) -> str:
    value = job.policy.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedInput(
            f"the registration of {job.name} lacks its {name}; register it again with `rl-assets live`"
        )
    return value


class _Rule:
    sampling: Sampling | None = None

    def __init__(self, name: str) -> None:
        self.policy = Policy(name)

    async def decide(
        self, market: Remote, config: WorldConfig, clock: Clock, system: str, past: Sequence[Said], seed: int
    ) -> Reply:
        async with RuleDecider(self.policy.name, (seed,)).begun(config, system) as decide:
            orders = await decide(market, clock)
        return Reply(prompt.render_orders(orders, config)[0])


class _Api:
    """A model behind an API, which reads the conversation as messages."""

    def __init__(self, agent: EndpointAgent, policy: Policy) -> None:
        self.policy, self.sampling, self._agent = policy, agent.sampling, agent

    async def decide(
        self, market: Remote, config: WorldConfig, clock: Clock, system: str, past: Sequence[Said], seed: int
    ) -> Reply:
        began = time.perf_counter()
        async with self._agent.client() as client:
            said = messages(system, past, clock.observation)
            # One seed for all ticks would draw the same numbers at each of them.
            reply = await self._agent.answer(client, said, (seed + clock.tick) % 2**31)
        return replace(reply, latency_ms=round(1000 * (time.perf_counter() - began)))


class _Local:
    """A checkpoint in this process. What it has said before is fed to it token by token, as it was drawn."""

    def __init__(self, path: Path, policy: Policy) -> None:
        from rl_assets.agents.neural import NeuralPolicy

        self._neural = NeuralPolicy(path)
        self.policy = policy
        self.sampling: Sampling | None = Sampling(temperature=1.0, max_tokens=self._neural.max_tokens)

    async def decide(
        self, market: Remote, config: WorldConfig, clock: Clock, system: str, past: Sequence[Said], seed: int
    ) -> Reply:
        from rl_assets.agents.neural import Conversations

        neural = self._neural
        context, render = [], neural.opening_of([system])
        for said in past:
            context += [*neural.encode(render(said.observation, 0)), *said.token_ids]
            context += [neural.end_id] if context[-1] != neural.end_id else []
            render = neural.following
        context += neural.encode(render(clock.observation, 0))
        draws = np.random.default_rng((seed, clock.tick)).random((1, neural.max_tokens))
        (reply,) = Conversations(neural, [system], 1.0).continue_with([context], [clock.observation], draws)
        return reply


def messages(system: str, past: Sequence[Said], observation: str) -> list[dict[str, str]]:
    """A conversation as chat completions take it."""
    told = [{"role": "system", "content": system}]
    for said in past:
        told += [{"role": "user", "content": said.observation}, {"role": "assistant", "content": said.response}]
    return [*told, {"role": "user", "content": observation}]
