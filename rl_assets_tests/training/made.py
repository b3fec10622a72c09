"""A small policy, what it played, and the manifest of a batch, for tests of training."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rl_assets.agents.neural import NeuralAgent
from rl_assets.agents.runner import Assignment, play
from rl_assets.episodes import Episode, Policy
from rl_assets.grouping import build_groups
from rl_assets.judging import OutcomeJudge
from rl_assets.market.generate import generate
from rl_assets.training.base import WarmStart
from rl_assets.training.manifest import Manifest, ManifestGroup
from rl_assets.training.options import CpuTraining, Grpo
from rl_assets.training.service import GRPOTrainingService

LINE = "tiny"
BATCH = "batch-0123456789abcdef"
WEAK = WarmStart(episodes=32, passes=1)
QUICK = Grpo(cpu=CpuTraining(passes=2, sequences=16, holdout=0.25))
_numbers = itertools.count()


def ids(count: int) -> list[str]:
    return [f"{next(_numbers):012d}" for _ in range(count)]


def played(checkpoint: Path, seeds: Sequence[int], siblings: int = 8, step: int = 0) -> list[Episode]:
    """What a checkpoint plays on train snapshots."""
    agent = NeuralAgent(checkpoint, Policy(LINE, step))
    return play([Assignment(agent, "agent", siblings)], [generate("train", s) for s in seeds], seed=3, new_ids=ids)


def judged(episodes: Sequence[Episode], base_step: int = 0, batch_id: str = BATCH) -> Manifest:
    """Grouped by eight and judged by outcome, as the pipeline does."""
    by_id = {episode.trajectory_id: episode for episode in episodes}
    window = str(episodes[0].window_id)
    judge = OutcomeJudge()
    groups = []
    for group in build_groups(episodes, window_id=window, group_size=8):
        ranking = judge.rank(group, by_id)
        members = tuple(verdict.trajectory_id for verdict in ranking.verdicts)
        groups.append(ManifestGroup(group.group_id, members, tuple(verdict.score for verdict in ranking.verdicts)))
    return Manifest(batch_id, LINE, base_step, ("judgements-1",), (window,), tuple(groups))


def rewarded(manifest: Manifest, rewards: dict[str, float]) -> Manifest:
    """The same groups with other rewards, by trajectory id."""
    groups = tuple(replace(g, rewards=tuple(rewards[i] for i in g.trajectory_ids)) for g in manifest.groups)
    return replace(manifest, groups=groups)


def by_id(episodes: Sequence[Episode]) -> dict[str, Episode]:
    return {episode.trajectory_id: episode for episode in episodes}


if __name__ == "__main__":  # for a test that kills trainings: forks one per line of JSON, and says which process it is
    import torch

    from rl_assets.training import cpu  # with ART, once for all of them

    torch.set_num_threads(1)
    for line in sys.stdin:
        data, batch, keep_seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # answers are all that the one who asks may read
            cpu.KEEP_SECONDS = keep_seconds
            manifest, episodes = pickle.loads(Path(batch).read_bytes())
            GRPOTrainingService(Path(data), LINE, grpo=QUICK).train(manifest, episodes)
            os._exit(0)
        print(child, flush=True)  # noqa: T201
        os.waitpid(child, 0)
