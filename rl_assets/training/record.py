"""What a checkpoint says of its training: `training.json`, whatever the backend. Part of what its digest covers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rl_assets.errors import MissingCheckpoint, reason_of

FILE = "training.json"


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """batch_id: what was learnt from. parent_step: what it was trained on top of. curve: the metrics of each update.
    passes: a summary per pass, of which `best_pass` (from 0) was kept. stopped: why there were no more, if not planned.
    """

    batch_id: str
    parent_step: int
    curve: list[dict[str, float]]
    passes: list[dict[str, float]]
    best_pass: int
    stopped: str | None = None


def write_record(checkpoint: Path, record: TrainingRecord) -> None:
    (checkpoint / FILE).write_text(json.dumps(asdict(record)), encoding="utf-8")


def has_record(checkpoint: Path) -> bool:
    """Whether a checkpoint came of a training; a line's step 0 did not."""
    return (checkpoint / FILE).is_file()


def read_record(checkpoint: Path) -> TrainingRecord:
    """Raises MissingCheckpoint where the file is not there, is not JSON or lacks something."""
    path = checkpoint / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return TrainingRecord(
            batch_id=str(raw["batch_id"]),
            parent_step=int(raw["parent_step"]),
            curve=[dict(point) for point in raw["curve"]],
            passes=[dict(summary) for summary in raw["passes"]],
            best_pass=int(raw["best_pass"]),
            stopped=raw.get("stopped"),
        )
    except KeyError as error:
        raise _damaged(path, f"it lacks {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, reason_of(error)) from error


def _damaged(path: Path, why: str) -> MissingCheckpoint:
    return MissingCheckpoint(f"{path} is damaged: {why}; restore the checkpoint, or delete its directory")
