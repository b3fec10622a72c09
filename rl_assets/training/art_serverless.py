"""ART's ServerlessBackend, watched: the ledger is told before a submission leaves and when its answer comes.

Importing this imports ART, and with it torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import art
from art.serverless.backend import ServerlessBackend
from art.serverless.client import Client, ExperimentalTrainingConfig, TrainingJob, TrainingJobs
from openai import AsyncOpenAI

from rl_assets.errors import ServiceError
from rl_assets.settings import ServerlessSettings
from rl_assets.training.untracked import untracked_model
from rl_assets.training.wandb_api import RemoteModel


class _Jobs(TrainingJobs):
    """ART's submissions, between two calls of ours."""

    def __init__(self, client: Client, before: Callable[[], None], after: Callable[[str], None]) -> None:
        super().__init__(cast(AsyncOpenAI, client))
        self._before, self._after = before, after

    async def create(
        self,
        *,
        model_id: str,
        trajectory_groups: list[art.TrajectoryGroup],
        experimental_config: ExperimentalTrainingConfig | None = None,
    ) -> TrainingJob:
        self._before()
        job = await super().create(
            model_id=model_id, trajectory_groups=trajectory_groups, experimental_config=experimental_config
        )
        identity: Any = getattr(job, "id", None)
        if not isinstance(identity, str) or not identity:
            raise ServiceError("W&B's answer to the submission names no job")
        self._after(identity)
        return job


def trainable(model: RemoteModel) -> art.TrainableModel:
    """The model as ART wants it, which W&B knows already."""
    return untracked_model(
        entity=model.entity, project=model.project, name=model.name, id=model.id, base_model=model.base_model
    )


def watched_backend(
    settings: ServerlessSettings, before: Callable[[], None], after: Callable[[str], None]
) -> ServerlessBackend:
    """ART's backend. `before` is called as a submission leaves, and keeps it by raising; `after` with the job's id."""
    backend = ServerlessBackend(api_key=settings.api_key, base_url=settings.base_url)
    client = cast(Client, backend._client)
    client.timeout = float(settings.request_seconds)
    vars(client)["training_jobs"] = _Jobs(client, before, after)  # where its cached property would keep its own
    return backend
