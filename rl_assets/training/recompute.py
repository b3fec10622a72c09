"""Logprobs for episodes that were recorded without: those that the policy which is trained gives to what was said.

Its importance ratios then begin at 1, as if it had sampled the episode itself. That is so where it did, and an
assumption where another policy spoke, which is why nothing is recomputed unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from rl_assets.agents.neural import NeuralPolicy
from rl_assets.agents.prompt import means_of
from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput
from rl_assets.training.forward import masked_logprobs

EPISODES_AT_ONCE = 32


def with_logprobs(episodes: Sequence[Episode], checkpoint: Path) -> dict[str, Episode]:
    """The episodes by id, with token ids and logprobs (nats, at temperature 1) as the checkpoint would have said them.

    Raises MissingCheckpoint, and MalformedInput where an answer is not one that the checkpoint may give.
    """
    policy = NeuralPolicy(checkpoint)
    read: dict[str, Episode] = {}
    for start in range(0, len(episodes), EPISODES_AT_ONCE):
        some = _read(policy, episodes[start : start + EPISODES_AT_ONCE])
        read.update({episode.trajectory_id: episode for episode in some})
    return read


@torch.inference_mode()
def _read(policy: NeuralPolicy, episodes: Sequence[Episode]) -> list[Episode]:
    told = [_conversation(policy, episode) for episode in episodes]
    width = max(len(tokens) for tokens, _, _ in told)
    ids = torch.tensor([tokens + [policy.end_id] * (width - len(tokens)) for tokens, _, _ in told])
    nodes = torch.tensor([node + [-1] * (width - len(node)) for _, node, _ in told])
    allowed = torch.from_numpy(policy.grammar.allowed) if policy.grammar is not None else None
    found, _ = masked_logprobs(policy.model, ids, nodes, allowed)
    done = []
    for row, (episode, (tokens, _, answers)) in enumerate(zip(episodes, told, strict=True)):
        steps = []
        for step, (begin, end) in zip(episode.steps, answers, strict=True):
            logprobs = tuple(round(float(p), 6) + 0.0 for p in found[row, begin - 1 : end - 1])
            steps.append(replace(step, token_ids=tuple(tokens[begin:end]), logprobs=logprobs, prompt_tokens=begin))
        done.append(replace(episode, steps=tuple(steps)))
    return done


def _conversation(policy: NeuralPolicy, episode: Episode) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Token ids of an episode, the grammar node before each (-1 where the policy does not speak, 0 without a grammar),
    and where each answer begins and ends."""
    tokens: list[int] = []
    nodes: list[int] = []
    answers = []
    render = policy.opening_of([episode.system])
    for step in episode.steps:
        heard = policy.encode(render(step.observation, 0))
        said = policy.encode(step.response + policy.tokenizer.eos_token)
        render = policy.following
        nodes += [-1] * len(heard) + _nodes(policy, episode, step.observation, said)
        answers.append((len(tokens) + len(heard), len(tokens) + len(heard) + len(said)))
        tokens += heard + said
    return tokens, nodes, answers


def _nodes(policy: NeuralPolicy, episode: Episode, observation: str, said: list[int]) -> list[int]:
    if policy.grammar is None:
        return [0] * len(said)
    try:
        return policy.grammar.walk(said, policy.grammar.start(means_of(observation)))
    except ValueError as error:
        raise MalformedInput(
            f"an answer of trajectory {episode.trajectory_id} is not one that step {policy.path.name} may give, so it "
            "has no logprobs; free the batch and train without recompute_logprobs"
        ) from error
