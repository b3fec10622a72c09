"""Which step earned it: a trajectory's group-relative advantage, spread over its steps.

GRPO gives every token of a trajectory the same advantage. Where each step's own contribution is known (`Step.credit`),
the advantage is redistributed so that its sum over steps stays what the judge gave (return redistribution,
Arjona-Medina et al. 2019; step-wise group baselines as in DeepSeekMath, 2024, section 4.1.3):

    A[i, t] = k * (c[i, t] - mean_j c[j, t]) + ((R[i] - mean R) - k * (x[i] - mean x)) / T,   x[i] = sum_t c[i, t]

k is the slope of judged reward on credit within the group, so that a judge who cares for something else than money gets
plain GRPO: k = 0, every step alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from art.preprocessing.pack import PackedTensors

from rl_assets.episodes import Episode
from rl_assets.training.manifest import Manifest

StepAdvantages = dict[bytes, np.ndarray]
"""From what was said (see `spoken_key`) to the advantage of each step, float64 (steps,)."""


def step_advantages(manifest: Manifest, episodes: Mapping[str, Episode]) -> StepAdvantages:
    """Advantages per step of every episode whose group has credits for all steps; other groups are left out."""
    advantages: StepAdvantages = {}
    for group in manifest.groups:
        members = [episodes[i] for i in group.trajectory_ids]
        credits = [[step.credit for step in member.steps] for member in members]
        if len({len(c) for c in credits}) != 1 or any(c is None for row in credits for c in row):
            continue
        spread = redistribute(np.array(group.rewards), np.array(credits, dtype=float))
        for member, row in zip(members, spread, strict=True):
            tokens = [t for step in member.steps for t in step.token_ids]
            logprobs = [p for step in member.steps for p in step.logprobs]
            advantages[spoken_key(np.array(tokens), np.array(logprobs))] = row
    return advantages


def redistribute(rewards: np.ndarray, credits: np.ndarray) -> np.ndarray:
    """float64 (members, steps): advantages whose sum over steps is reward less the group's mean.

    rewards: (members,). credits: (members, steps), dollars.
    """
    reward = rewards - rewards.mean()
    total = credits.sum(axis=1)
    total = total - total.mean()
    variance = float(total @ total)
    slope = max(float(total @ reward) / variance, 0.0) if variance > 0 else 0.0
    rest = (reward - slope * total) / credits.shape[1]
    return slope * (credits - credits.mean(axis=0)) + rest[:, None]


def spoken_key(tokens: np.ndarray, logprobs: np.ndarray) -> bytes:
    """What a policy said in an episode, as a dictionary key: its token ids and their logprobs."""
    return tokens.astype(np.int64).tobytes() + logprobs.astype(np.float32).tobytes()


def spread_advantages(tensors: PackedTensors, advantages: StepAdvantages) -> None:
    """Replace, in place, one advantage per trajectory by one per step, in ART's scale: mean |advantage * weight| is 1.

    Raises KeyError where a packed trajectory has no entry although others of its batch have.
    """
    if not advantages:
        return
    spoken = tensors["assistant_mask"].numpy()
    tokens, logprobs = tensors["tokens"].numpy(), tensors["logprobs"].numpy()
    groups, target = tensors["group_ids"].numpy(), np.zeros(spoken.shape)
    for row in range(len(tokens)):
        places = np.flatnonzero(spoken[row])
        for group in np.unique(groups[row, places]):
            own = places[groups[row, places] == group]
            steps = np.concatenate([[0], np.cumsum(np.diff(own) != 1)])
            target[row, own] = advantages[spoken_key(tokens[row, own], logprobs[row, own])][steps]
    mask = tensors["assistant_mask"]
    values = torch.from_numpy(target).float()
    values[mask] /= (values[mask].abs() * tensors["weights"][mask]).mean()
    tensors["advantages"] = values
