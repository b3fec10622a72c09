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
from dataclasses import dataclass, replace

import numpy as np
import torch
from art.preprocessing.pack import PackedTensors

from rl_assets.agents.prompt import Means, means_of
from rl_assets.episodes import Episode
from rl_assets.training.manifest import Manifest, ManifestGroup
from rl_assets.training.packed import trajectories

LARGEST = 1.0
"""Times the mean |advantage| that one step may count. Money has heavy tails: without a bound a few leveraged positions
that were lucky outweigh hundreds of sound decisions."""


@dataclass(frozen=True)
class Note:
    """What the trainer knows of a trajectory beside ART's tensors, per step.

    advantages: float64 (steps,). means: what the agent had to act with, where its observations tell. trades, invalid:
    bool (steps,), whether the step was an order, and whether it was refused. held_out: nothing is learnt from it; it
    tells when to stop. difficulty: 1 less the mean reward of all who played its snapshot.
    """

    advantages: np.ndarray
    means: tuple[Means | None, ...]
    trades: np.ndarray
    invalid: np.ndarray
    held_out: bool
    difficulty: float


Notes = Mapping[bytes, Note]
"""From what was said (see `spoken_key`) to what is known of it."""


@dataclass(frozen=True)
class Marks:
    """Notes, laid over packed tensors. means: by sequence and place of an answer's first token. trades, invalid: bool
    (sequences, length), true at all tokens of such an answer. held_out: bool (sequences,). difficulty: float64
    (sequences,), the greatest of a sequence's trajectories."""

    means: Mapping[tuple[int, int], Means | None]
    trades: torch.Tensor
    invalid: torch.Tensor
    held_out: torch.Tensor
    difficulty: np.ndarray


def take_notes(manifest: Manifest, episodes: Mapping[str, Episode], holdout: float) -> dict[bytes, Note]:
    """A note on every episode of a manifest. holdout: the share of snapshots (of groups, in live play) to learn nothing
    from; which ones follows from their names.

    Siblings that said the same share a note with the mean of their advantages: each of them is trained with that, which
    comes to the gradient that both together ask for, where a judge scored them differently.
    """
    notes: dict[bytes, list[Note]] = {}
    apart = _apart(manifest, episodes, holdout)
    difficulty = _difficulty(manifest, episodes)
    for group in manifest.groups:
        members = [episodes[i] for i in group.trajectory_ids]
        for member, advantages in zip(members, _advantages(group, members), strict=True):
            tokens = [t for step in member.steps for t in step.token_ids]
            logprobs = [p for step in member.steps for p in step.logprobs]
            note = Note(
                advantages=advantages,
                means=tuple(means_of(step.observation) for step in member.steps),
                trades=np.array([step.action.get("do", "hold") != "hold" for step in member.steps]),
                invalid=np.array([not step.valid for step in member.steps]),
                held_out=_common(group, member) in apart,
                difficulty=difficulty[_common(group, member)],
            )
            notes.setdefault(spoken_key(np.array(tokens), np.array(logprobs)), []).append(note)
    return {
        said: replace(same[0], advantages=np.mean([n.advantages for n in same], axis=0)) for said, same in notes.items()
    }


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


def lay_over(tensors: PackedTensors, notes: Notes) -> Marks:
    """Replace, in place, ART's one advantage per trajectory by one per step, and return the other notes.

    None is larger than LARGEST times the mean one, and a refused answer gets the lowest: where it costs less than an
    average bad trade, a policy learns to be refused. The scale is ART's: over what is learnt from, the mean of
    |advantage * weight| is 1.

    Raises KeyError where a packed trajectory has no note.
    """
    shape = tensors["tokens"].shape
    tokens, logprobs = tensors["tokens"].numpy(), tensors["logprobs"].numpy()
    advantages, trades, invalid = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
    held_out, difficulty = np.zeros(shape[0], bool), np.zeros(shape[0])
    means: dict[tuple[int, int], Means | None] = {}
    for row, places in trajectories(tensors):
        note = notes[spoken_key(tokens[row, places], logprobs[row, places])]
        steps = np.concatenate([[0], np.cumsum(np.diff(places) != 1)])
        first = places[np.searchsorted(steps, np.arange(len(note.means)))]
        means.update({(row, int(place)): had for place, had in zip(first, note.means, strict=True)})
        advantages[row, places] = note.advantages[steps]
        trades[row, places] = note.trades[steps]
        invalid[row, places] = note.invalid[steps]
        held_out[row] |= note.held_out
        difficulty[row] = max(difficulty[row], note.difficulty)
    values, weights = torch.from_numpy(advantages).float(), tensors["weights"]
    learnt = tensors["assistant_mask"] & ~torch.from_numpy(held_out)[:, None]
    most = LARGEST * float(values[learnt].abs().mean())
    values = values.clamp(-most, most).masked_fill(torch.from_numpy(invalid), -most)
    scale = (values[learnt].abs() * weights[learnt]).mean()
    tensors["advantages"] = values / scale if scale > 0 else values
    return Marks(means, torch.from_numpy(trades), torch.from_numpy(invalid), torch.from_numpy(held_out), difficulty)


def _advantages(group: ManifestGroup, members: list[Episode]) -> list[np.ndarray]:
    """float64 (steps,) per member: by credit where all steps have one, else its advantage in equal parts."""
    rewards = np.array(group.rewards)
    credits = [[step.credit for step in member.steps] for member in members]
    if len({len(row) for row in credits}) == 1 and all(c is not None for row in credits for c in row):
        return list(redistribute(rewards, np.array(credits, dtype=float)))
    steps = [len(member.steps) for member in members]
    return [np.full(n, a / n) for n, a in zip(steps, rewards - rewards.mean(), strict=True)]


def _difficulty(manifest: Manifest, episodes: Mapping[str, Episode]) -> dict[str, float]:
    """By what ties episodes together: 1 less the mean reward."""
    rewards: dict[str, list[float]] = {}
    for group in manifest.groups:
        rewards.setdefault(_common(group, episodes[group.trajectory_ids[0]]), []).extend(group.rewards)
    return {name: 1.0 - float(np.mean(values)) for name, values in rewards.items()}


def _apart(manifest: Manifest, episodes: Mapping[str, Episode], holdout: float) -> set[str]:
    common = sorted({_common(group, episodes[group.trajectory_ids[0]]) for group in manifest.groups})
    count = round(len(common) * holdout)
    return set(np.random.default_rng(len(common)).permutation(common)[:count].tolist()) if count else set()


def _common(group: ManifestGroup, member: Episode) -> str:
    """What ties episodes together: luck on a snapshot is shared by all who play it."""
    return member.snapshot_id or group.group_id
