"""The training service: a manifest and its episodes in, the next checkpoint of the model line out."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import art
import numpy as np

from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput, MissingCheckpoint
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.training.codec import to_groups
from rl_assets.training.cpu import CpuBackend, CpuTraining
from rl_assets.training.credit import StepAdvantages, step_advantages
from rl_assets.training.manifest import Manifest

PROJECT = "rl-assets"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grpo:
    """learning_rate: AdamW's. epsilon: how far an importance ratio may leave 1 before PPO clips it. cpu: what only the
    CPU backend knows. Advantages are rewards less their group's mean, without scaling by the group's spread."""

    learning_rate: float = 1e-3
    epsilon: float = 0.2
    cpu: CpuTraining = field(default_factory=CpuTraining)


@dataclass(frozen=True)
class TrainingResult:
    """step: the new checkpoint's. metrics: means over updates. curve: one point per update. seconds: wall time."""

    batch_id: str
    model_line: str
    base_step: int
    step: int
    checkpoint_path: Path
    checkpoint_digest: str
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    seconds: float
    backend: str


class GRPOTrainingService:
    """Trains through ART's Backend protocol. `train` may be called again for a batch: a step that it has saved already
    is returned and not trained twice."""

    def __init__(self, data_dir: Path, model_line: str, *, backend: str = "cpu", grpo: Grpo | None = None) -> None:
        if backend != "cpu":
            raise MalformedInput(f"backend {backend!r} is not available here; set it to cpu")
        self.art_path = data_dir / "art"
        self.model_line = model_line
        self.backend_name = backend
        self.grpo = grpo or Grpo()

    def checkpoint(self, step: int) -> Path:
        return self.art_path / PROJECT / "models" / self.model_line / "checkpoints" / f"{step:04d}"

    def train(self, manifest: Manifest, episodes: Mapping[str, Episode]) -> TrainingResult:
        """One step of GRPO from `manifest.base_step` on exactly the manifest's episodes.

        Raises MalformedInput where episodes are missing, stale or without logprobs, and MissingCheckpoint where the base
        step is gone. Nothing is written then.
        """
        if manifest.model_line != self.model_line:
            raise MalformedInput(f"{manifest.batch_id} is of line {manifest.model_line}, this service trains {self.model_line}")
        saved = self._saved(manifest.batch_id)
        if saved is not None:
            _log.info("batch %s is trained already: step %d", manifest.batch_id, saved)
            return self._result(manifest, saved, {}, 0.0)
        if not (self.checkpoint(manifest.base_step) / "config.json").is_file():
            raise MissingCheckpoint(
                f"checkpoint {self.checkpoint(manifest.base_step)} of step {manifest.base_step} is missing; restore it, or "
                "roll back to a kept step and free the batch"
            )
        groups = to_groups(manifest, episodes)
        longest = max(
            episodes[i].steps[-1].prompt_tokens + len(episodes[i].steps[-1].token_ids) for i in manifest.trajectory_ids
        )
        began = time.perf_counter()
        metrics = asyncio.run(self._train(manifest, groups, step_advantages(manifest, episodes), longest))
        step = self._saved(manifest.batch_id)
        if step is None:
            raise MalformedInput(
                f"{manifest.batch_id} holds nothing to learn from: in no group do rewards differ; free it and re-judge"
            )
        return self._result(manifest, step, metrics, time.perf_counter() - began)

    async def _train(
        self, manifest: Manifest, groups: list[art.TrajectoryGroup], advantages: StepAdvantages, longest: int
    ) -> dict[str, float]:
        seed = int(manifest.batch_id.split("-")[-1][:8], 16) if manifest.batch_id.startswith("batch-") else 0
        random.seed(seed)
        model = art.TrainableModel(
            name=self.model_line, project=PROJECT, base_model=str(self.checkpoint(0)), base_path=str(self.art_path)
        )
        backend = CpuBackend(path=str(self.art_path), training=self.grpo.cpu)
        try:
            await model.register(backend)
            service = backend.service(model)
            service.parent_step = manifest.base_step
            service.batch_id = manifest.batch_id
            service.step_advantages = advantages
            result = await backend.train(
                model,
                groups,
                learning_rate=self.grpo.learning_rate,
                loss_fn="ppo",
                epsilon=self.grpo.epsilon,
                scale_rewards=False,
                packed_sequence_length=longest + 1,
            )
        finally:
            await backend.close()
        return {name: float(value) for name, value in result.metrics.items() if np.isfinite(value)}

    def _saved(self, batch_id: str) -> int | None:
        root = self.checkpoint(0).parent
        for path in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:
            record = path / "training.json"
            if path.name.isdigit() and record.is_file() and self._record(record)["batch_id"] == batch_id:
                return int(path.name)
        return None

    def _record(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise MissingCheckpoint(f"{path} is damaged ({error}); restore the checkpoint or delete its directory") from error

    def _result(self, manifest: Manifest, step: int, metrics: dict[str, float], seconds: float) -> TrainingResult:
        path = self.checkpoint(step)
        curve = self._record(path / "training.json")["curve"]
        return TrainingResult(
            batch_id=manifest.batch_id,
            model_line=self.model_line,
            base_step=manifest.base_step,
            step=step,
            checkpoint_path=path,
            checkpoint_digest=checkpoint_digest(path),
            metrics=metrics or _means(curve),
            curve=curve,
            seconds=seconds,
            backend=self.backend_name,
        )


def _means(curve: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([point[name] for point in curve])) for name in curve[0]} if curve else {}
