"""Agents that answer over a network: what one must be able to do, and an episode played with it.

Where answers are asked for belongs in `endpoint` (OpenAI-compatible APIs) and in `rl_assets.a2a.respondent`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from rl_assets.agents import prompt
from rl_assets.agents.reply import Reply
from rl_assets.agents.runner import Game, Player
from rl_assets.episodes import Episode, Policy, Sampling
from rl_assets.errors import RlAssetsError
from rl_assets.market.snapshot import World


class NoAnswer(RlAssetsError):
    """An agent gave nothing that counts as an answer: its episode has failed. An answer that cannot be read is one."""


class Conversation(Protocol):
    """One episode with an agent."""

    async def reply(self, observation: str) -> Reply:
        """The answer to the next observation, with the latency left to the caller. Raises NoAnswer."""
        ...


Begin = Callable[[str, int], Conversation]
"""Begins a conversation, from the system message and the seed of its draws."""


@runtime_checkable
class RemoteAgent(Protocol):
    """An agent that plays by being asked. concurrency: how many episodes of it may be in play at once."""

    policy: Policy
    sampling: Sampling | None
    concurrency: int

    def connected(self) -> AbstractAsyncContextManager[Begin]:
        """Ready to converse for as long as the block runs. Raises RlAssetsError where the agent cannot be reached."""
        ...


async def converse(begin: Begin, world: World, player: Player, seed: int) -> Episode:
    """Play an evaluation to its end. Raises NoAnswer; nothing is kept of an episode that is not whole."""
    game = Game([world])
    snapshot, _ = world
    drawn = np.random.SeedSequence((seed, snapshot.seed, player.sibling)).generate_state(1)[0]
    conversation = begin(prompt.system_message(snapshot.config), int(drawn) >> 1)
    while not game.engine.done:
        began = time.perf_counter()
        reply = await conversation.reply(game.observations()[0])
        game.take([replace(reply, latency_ms=round(1000 * (time.perf_counter() - began)))])
    (episode,) = game.episodes([player], is_evaluation=True)
    return episode
