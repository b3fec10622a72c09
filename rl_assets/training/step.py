"""One step of a line by ART: a batch's episodes, as ART takes them, trained on top of a checkpoint. Loads torch."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import art

from rl_assets.backends import LOCAL
from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput
from rl_assets.registry.checkpoints import PROJECT
from rl_assets.training.codec import to_groups
from rl_assets.training.cpu import CpuBackend
from rl_assets.training.credit import Notes, take_notes
from rl_assets.training.manifest import Manifest
from rl_assets.training.options import Grpo
from rl_assets.training.recompute import with_logprobs
from rl_assets.training.untracked import untracked_model


def take_step(
    manifest: Manifest,
    episodes: Mapping[str, Episode],
    grpo: Grpo,
    *,
    backend: str,
    base: Path,
    first: Path,
    art_path: Path,
) -> float:
    """Train the base step on the manifest's episodes; the next step is then among the checkpoints of the line. Returns
    how long ART took, in seconds.

    base, first: the checkpoints of the base step and of step 0. art_path: ART's root above them. Raises MalformedInput
    where episodes are missing, stale, too long or without logprobs, CollapsedPolicy, and what the backend does.
    """
    played = dict(episodes)
    if grpo.recompute:
        played |= with_logprobs([episodes[i] for i in manifest.without_logprobs(episodes)], base)
    groups = to_groups(manifest, played, grpo.most_stale)
    members = [played[i] for i in manifest.trajectory_ids]
    longest = max(e.steps[-1].prompt_tokens + len(e.steps[-1].token_ids) for e in members)
    if backend == LOCAL:
        from rl_assets.training.local import MOST_TOKENS, train_adapter

        if longest > MOST_TOKENS:
            raise MalformedInput(
                f"{manifest.batch_id} holds an episode of {longest} tokens, more than the {MOST_TOKENS} that ART "
                "trains on; free it, and play shorter ones"
            )
        began = time.perf_counter()
        train_adapter(art_path, base, manifest.model_line, manifest.batch_id, groups, _told(grpo))
        return time.perf_counter() - began
    notes = take_notes(manifest, played, grpo.cpu.holdout)
    began = time.perf_counter()
    asyncio.run(_on_the_cpu(manifest, groups, notes, grpo, first, art_path, longest))
    return time.perf_counter() - began


async def _on_the_cpu(
    manifest: Manifest,
    groups: list[art.TrajectoryGroup],
    notes: Notes,
    grpo: Grpo,
    first: Path,
    art_path: Path,
    longest: int,
) -> None:
    random.seed(manifest.batch_id)  # ART shuffles with the global generator
    model = untracked_model(name=manifest.model_line, project=PROJECT, base_model=str(first), base_path=str(art_path))
    backend = CpuBackend(path=str(art_path), training=grpo.cpu)
    try:
        await model.register(backend)
        service = backend.service(model)
        service.parent_step = manifest.base_step
        service.batch_id = manifest.batch_id
        service.notes = notes
        await backend.train(model, groups, packed_sequence_length=longest + 1, **_told(grpo))
    finally:
        await backend.close()


def _told(grpo: Grpo) -> dict[str, Any]:
    """What ART's `train` is told. Advantages are not scaled by their group's spread."""
    return {
        "learning_rate": grpo.learning_rate,
        "loss_fn": "ppo",
        "epsilon": grpo.epsilon,
        "epsilon_high": grpo.epsilon_high,
        "scale_rewards": False,
    }
