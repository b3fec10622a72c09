"""The training service: a manifest and its episodes in, the next checkpoint of the model line out."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import art
import numpy as np

from rl_assets.backends import CPU, LOCAL
from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput, MissingCheckpoint
from rl_assets.registry.archive import bring, bring_newest, keep
from rl_assets.registry.checkpoints import ADAPTER, PROJECT, checkpoint_digest, checkpoints_of
from rl_assets.training.codec import staleness, to_groups
from rl_assets.training.cpu import CpuBackend, CpuTraining
from rl_assets.training.credit import Notes, take_notes
from rl_assets.training.manifest import Manifest
from rl_assets.training.quiet import printed_to
from rl_assets.training.recompute import with_logprobs, without_logprobs
from rl_assets.training.record import TrainingRecord, has_record, read_record
from rl_assets.training.result import TrainingResult
from rl_assets.training.untracked import untracked_model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grpo:
    """learning_rate: AdamW's. epsilon, epsilon_high: how far an importance ratio may fall under and rise above 1 before
    PPO clips it; wide, since a batch is all that a step learns from. most_stale: policy steps that an episode may be
    behind. recompute: whether episodes without logprobs get those of the step that is trained, on the CPU. cpu: what
    only the CPU backend knows. Advantages are not scaled by their group's spread."""

    learning_rate: float = 1e-3
    epsilon: float = 0.9
    epsilon_high: float = 5.0
    most_stale: int = 0
    recompute: bool = False
    cpu: CpuTraining = field(default_factory=CpuTraining)


GPU = Grpo(learning_rate=5e-6, epsilon=0.2, epsilon_high=0.2)
"""For an LLM that learns by an adapter, batch after batch."""


class GRPOTrainingService:
    """Trains through ART's Backend protocol. `train` may be called again for a batch: a step that it has saved already
    is returned and not trained twice."""

    def __init__(self, data_dir: Path, model_line: str, *, backend: str = "cpu", grpo: Grpo | None = None) -> None:
        if backend not in (CPU, LOCAL):
            raise MalformedInput(f"backend {backend!r} is not one that trains on this machine; set it to cpu or local")
        self.art_path, self._checkpoints = data_dir / "art", checkpoints_of(data_dir, model_line)
        self.model_line = model_line
        self.backend_name = backend
        self.grpo = grpo or (GPU if backend == LOCAL else Grpo())

    def checkpoint(self, step: int) -> Path:
        return self._checkpoints / f"{step:04d}"

    def train(self, manifest: Manifest, episodes: Mapping[str, Episode]) -> TrainingResult:
        """One step of GRPO from `manifest.base_step` on exactly the manifest's episodes.

        Raises MalformedInput where the manifest cannot be trained on or episodes are missing, stale or without
        logprobs, MissingCheckpoint where the base step is gone or the record of a step is damaged, and CollapsedPolicy
        where a limit of training is passed. No checkpoint is written then. A run that was killed goes on after the last
        update that it kept.
        """
        manifest.check_trainable(self.model_line)
        bring_newest(self.checkpoint(0).parent)
        saved = self._saved(manifest.batch_id)
        if saved is not None:
            _log.info("batch %s is trained already: step %d", manifest.batch_id, saved)
            return self._result(manifest, saved, 0.0, episodes)
        base = self.checkpoint(manifest.base_step)
        bring(base)
        bring(self.checkpoint(0))
        if not (base / ("config.json" if self.backend_name == CPU else ADAPTER)).is_file():
            raise MissingCheckpoint(
                f"checkpoint {base} is missing; restore it, or roll back to a kept step and free the batch"
            )
        played = dict(episodes)
        if self.grpo.recompute:
            silent = without_logprobs(episodes, manifest.trajectory_ids)
            played |= with_logprobs([episodes[i] for i in silent], base)
        groups = to_groups(manifest, played, self.grpo.most_stale)
        notes = take_notes(manifest, played, self.grpo.cpu.holdout)
        members = [played[i] for i in manifest.trajectory_ids]
        longest = max(e.steps[-1].prompt_tokens + len(e.steps[-1].token_ids) for e in members)
        began = time.perf_counter()
        with printed_to(_log):
            if self.backend_name == LOCAL:
                self._train_on_gpu(manifest, groups, base, longest)
            else:
                asyncio.run(self._train(manifest, groups, notes, longest))
        step = self._saved(manifest.batch_id)
        assert step is not None
        return self._result(manifest, step, time.perf_counter() - began, episodes)

    async def _train(self, manifest: Manifest, groups: list[art.TrajectoryGroup], notes: Notes, longest: int) -> None:
        random.seed(manifest.batch_id)  # ART shuffles with the global generator
        model = untracked_model(
            name=self.model_line, project=PROJECT, base_model=str(self.checkpoint(0)), base_path=str(self.art_path)
        )
        backend = CpuBackend(path=str(self.art_path), training=self.grpo.cpu)
        try:
            await model.register(backend)
            service = backend.service(model)
            service.parent_step = manifest.base_step
            service.batch_id = manifest.batch_id
            service.notes = notes
            await backend.train(
                model,
                groups,
                packed_sequence_length=longest + 1,
                **self._options,
            )
        finally:
            await backend.close()

    def _train_on_gpu(self, manifest: Manifest, groups: list[art.TrajectoryGroup], base: Path, longest: int) -> None:
        from rl_assets.training.local import MOST_TOKENS, train_adapter

        if longest > MOST_TOKENS:
            raise MalformedInput(
                f"{manifest.batch_id} holds an episode of {longest} tokens, more than the {MOST_TOKENS} that ART "
                "trains on; free it, and play shorter ones"
            )
        train_adapter(self.art_path, base, self.model_line, manifest.batch_id, groups, self._options)

    @property
    def _options(self) -> dict[str, Any]:
        """What ART's `train` is told. Advantages are not scaled by their group's spread."""
        return {
            "learning_rate": self.grpo.learning_rate,
            "loss_fn": "ppo",
            "epsilon": self.grpo.epsilon,
            "epsilon_high": self.grpo.epsilon_high,
            "scale_rewards": False,
        }

    def _saved(self, batch_id: str) -> int | None:
        root = self.checkpoint(0).parent
        for path in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:
            if path.name.isdigit() and has_record(path) and read_record(path).batch_id == batch_id:
                return int(path.name)
        return None

    def _result(self, manifest: Manifest, step: int, seconds: float, episodes: Mapping[str, Episode]) -> TrainingResult:
        path = self.checkpoint(step)
        record = read_record(path)
        stale = [staleness(manifest, episodes[i]) for i in manifest.trajectory_ids if i in episodes]
        mean = {"data/staleness": float(np.mean(stale))} if stale else {}
        highest = {"data/staleness_max": float(max(stale))} if stale else {}
        silent = {"data/recomputed": float(len(without_logprobs(episodes, manifest.trajectory_ids)))}
        keep(path)
        return TrainingResult(
            batch_id=manifest.batch_id,
            model_line=self.model_line,
            base_step=manifest.base_step,
            step=step,
            checkpoint_path=path,
            checkpoint_digest=checkpoint_digest(path),
            metrics={**_metrics(record), **mean, **highest, **silent},
            curve=[{**point, **mean} for point in record.curve],
            seconds=seconds,
            backend=self.backend_name,
        )


def _metrics(record: TrainingRecord) -> dict[str, float]:
    """Means over updates, and what is known of the passes."""
    curve, passes = record.curve, record.passes
    means = {name: float(np.mean([point[name] for point in curve])) for name in curve[0] if "/" in name}
    gains = {f"held_out/gain_pass_{n + 1}": p["held_out_gain"] for n, p in enumerate(passes) if "held_out_gain" in p}
    return {**means, **gains, "data/passes": float(len(passes)), "data/best_pass": float(record.best_pass + 1)}
