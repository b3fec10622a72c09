"""Models at W&B as the registry knows them: step 0 of a line there, and the digest of each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rl_assets.episodes import digest
from rl_assets.errors import ConfigurationError, MissingCheckpoint
from rl_assets.registry.checkpoints import RemoteCheckpoint
from rl_assets.settings import ServerlessSettings
from rl_assets.training.submission import Checkpoint
from rl_assets.training.wandb_api import ASKING_SECONDS, RemoteModel, WandbApi


@dataclass(frozen=True)
class RemoteBase:
    """Step 0 of a line at W&B: the base model before any training."""

    path: RemoteCheckpoint
    digest: str
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


def ensure_remote_base(settings: ServerlessSettings, model_line: str) -> RemoteBase:
    """The model of a line at W&B, made where there is none. Raises ServiceError, and ConfigurationError where there is
    one on another base model."""
    with WandbApi(settings, seconds=ASKING_SECONDS) as api:
        model = api.model(settings.entity, settings.project, model_line, settings.base_model)
    if model.base_model != settings.base_model:
        raise ConfigurationError(
            f"{model.path} at W&B stands on {model.base_model}; set SERVERLESS_BASE_MODEL to it, or name a new "
            "line with TRAINING_MODEL_LINE"
        )
    path = reference(model, 0)
    return RemoteBase(path, identity(path, model, []))


def remote_digest(path: RemoteCheckpoint) -> str:
    """The digest of a checkpoint at W&B as it is now. Raises MissingCheckpoint where it is gone, and ServiceError."""
    settings = ServerlessSettings.from_env()
    entity, project, name, _ = path.parts
    with WandbApi(settings, seconds=ASKING_SECONDS) as api:
        model = api.model(entity, project, name, settings.base_model)
        return identity(path, model, api.checkpoints(model.id))


def reference(model: RemoteModel, step: int) -> RemoteCheckpoint:
    return RemoteCheckpoint(f"wandb-artifact:///{model.path}:step{step}")


def identity(path: RemoteCheckpoint, model: RemoteModel, checkpoints: Sequence[Checkpoint]) -> str:
    """What the registry knows a checkpoint at W&B by: its name, and the id that W&B gave it. Step 0 is the base model.

    Raises MissingCheckpoint where there is none of that step.
    """
    step = path.parts[-1]
    if step == 0:
        return digest([path, f"base {model.base_model}"])
    for checkpoint in checkpoints:
        if checkpoint.step == step:
            return digest([path, checkpoint.id])
    raise MissingCheckpoint(f"{path} is not at W&B any more; take a kept step with `rl-assets models rollback`")
