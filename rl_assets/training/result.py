"""What a training gives back, whatever the backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_assets.registry.checkpoints import RemoteCheckpoint


@dataclass(frozen=True)
class TrainingResult:
    """step: the new checkpoint's. metrics: means over updates. curve: one point per update. seconds: wall time."""

    batch_id: str
    model_line: str
    base_step: int
    step: int
    checkpoint_path: Path | RemoteCheckpoint
    checkpoint_digest: str
    metrics: dict[str, float]
    curve: list[dict[str, float]]
    seconds: float
    backend: str

    def summary(self) -> dict[str, Any]:
        """What the ledger keeps, as JSON. A checkpoint here holds its curve; of one at W&B the ledger does."""
        summary = {
            "step": self.step,
            "checkpoint_path": str(self.checkpoint_path),
            "digest": self.checkpoint_digest,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "backend": self.backend,
        }
        return {**summary, "curve": self.curve} if isinstance(self.checkpoint_path, RemoteCheckpoint) else summary
