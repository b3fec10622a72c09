"""The training service: a manifest and its episodes in, the next checkpoint of the model line out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rl_assets.backends import CPU, LOCAL
from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput, MissingCheckpoint
from rl_assets.registry.archive import bring, bring_newest, keep
from rl_assets.registry.checkpoints import ADAPTER, checkpoint_digest, checkpoints_of
from rl_assets.training.manifest import Manifest
from rl_assets.training.options import GPU_GRPO, Grpo
from rl_assets.training.quiet import printed_to
from rl_assets.training.record import TrainingRecord, has_record, read_record
from rl_assets.training.result import TrainingResult

_log = logging.getLogger(__name__)


class GRPOTrainingService:
    """Trains through ART's Backend protocol. `train` may be called again for a batch: a step that it has saved already
    is returned and not trained twice."""

    def __init__(self, data_dir: Path, model_line: str, *, backend: str = "cpu", grpo: Grpo | None = None) -> None:
        if backend not in (CPU, LOCAL):
            raise MalformedInput(f"backend {backend!r} is not one that trains on this machine; set it to cpu or local")
        self.art_path, self._checkpoints = data_dir / "art", checkpoints_of(data_dir, model_line)
        self.model_line = model_line
        self.backend_name = backend
        self.grpo = grpo or (GPU_GRPO if backend == LOCAL else Grpo())

    def checkpoint(self, step: int) -> Path:
        return self._checkpoints / f"{step:04d}"

    def train(self, manifest: Manifest, episodes: Mapping[str, Episode]) -> TrainingResult:
        """One step of GRPO from `manifest.base_step` on exactly the manifest's episodes.

        Raises MalformedInput where the manifest cannot be trained on or episodes are missing, stale, too long or
        without logprobs, MissingCheckpoint where the base step is gone or the record of a step is damaged, and
        CollapsedPolicy where a limit of training is passed. No checkpoint is written then. A run that was killed goes
        on after the last update that it kept.
        """
        manifest.check_trainable(self.model_line)
        bring_newest(self._checkpoints)
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
        from rl_assets.training.step import take_step  # loads torch and ART, which what is saved does without

        with printed_to(_log):
            seconds = take_step(
                manifest,
                episodes,
                self.grpo,
                backend=self.backend_name,
                base=base,
                first=self.checkpoint(0),
                art_path=self.art_path,
            )
        step = self._saved(manifest.batch_id)
        assert step is not None
        return self._result(manifest, step, seconds, episodes)

    def _saved(self, batch_id: str) -> int | None:
        root = self._checkpoints
        for path in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:
            if path.name.isdigit() and has_record(path) and read_record(path).batch_id == batch_id:
                return int(path.name)
        return None

    def _result(self, manifest: Manifest, step: int, seconds: float, episodes: Mapping[str, Episode]) -> TrainingResult:
        path = self.checkpoint(step)
        record = read_record(path)
        stale = [manifest.staleness(episodes[i]) for i in manifest.trajectory_ids if i in episodes]
        mean = {"data/staleness": float(np.mean(stale))} if stale else {}
        highest = {"data/staleness_max": float(max(stale))} if stale else {}
        silent = {"data/recomputed": float(len(manifest.without_logprobs(episodes)))}
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
