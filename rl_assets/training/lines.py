"""What a model line begins with, and what trains it, as the settings say. What they load is loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl_assets.backends import CPU, LOCAL, SERVERLESS, SMOLLM2, check
from rl_assets.errors import ConfigurationError
from rl_assets.registry.archive import bring, keep
from rl_assets.registry.checkpoints import base_path
from rl_assets.settings import Settings
from rl_assets.training.options import GPU_GRPO, SMOLLM_GRPO, Grpo

if TYPE_CHECKING:
    import psycopg

    from rl_assets.training.base import BasePolicy
    from rl_assets.training.remote_models import RemoteBase
    from rl_assets.training.serverless import ServerlessTrainingService
    from rl_assets.training.service import GRPOTrainingService


def base_of(
    settings: Settings, data_dir: Path, on_progress: Callable[[int, int], None] | None = None
) -> BasePolicy | RemoteBase:
    """Step 0 of the line, made where neither this machine nor the store has it.

    `on_progress` is called with updates done and in all. Raises ConfigurationError where the backend
    cannot work here, and what making it raises.
    """
    check(settings)
    if settings.backend == SERVERLESS:
        from rl_assets.training.remote_models import ensure_remote_base

        return ensure_remote_base(settings.serverless, settings.model_line)
    bring(base_path(data_dir, settings.model_line))
    base = _base_here(settings, data_dir, on_progress)
    keep(base.path)
    return base


def _base_here(settings: Settings, data_dir: Path, on_progress: Callable[[int, int], None] | None) -> BasePolicy:
    if settings.backend == LOCAL:
        from rl_assets.training.local import ensure_local_base

        return ensure_local_base(data_dir, settings.model_line, settings.local)
    if settings.base_policy == SMOLLM2:
        from rl_assets.training.smollm import ensure_smollm2

        return ensure_smollm2(data_dir, settings.model_line)
    from rl_assets.training.base import ensure_base_policy

    return ensure_base_policy(data_dir, settings.model_line, on_progress)


def service_of(
    settings: Settings, data_dir: Path, conn: psycopg.Connection, *, recompute: bool = False, tiers: int = 1
) -> GRPOTrainingService | ServerlessTrainingService:
    """What trains the line. The connection is the ledger's. recompute: whether episodes without logprobs get those of
    the step that is trained. tiers: of difficulty (`CpuTraining`). Raises ConfigurationError where it cannot do so."""
    check(settings)
    if recompute and settings.backend != CPU:
        raise ConfigurationError(
            f"logprobs are recomputed on the backend cpu, not on {settings.backend}; leave recompute_logprobs off"
        )
    if tiers > 1 and settings.backend != CPU:
        raise ConfigurationError(
            f"a curriculum is kept on the backend cpu, not on {settings.backend}; leave curriculum_tiers at 1"
        )
    if settings.backend == SERVERLESS:
        from rl_assets.training.serverless import ServerlessTrainingService

        return ServerlessTrainingService(conn, settings.model_line, settings.serverless, settings.most_stale)
    from rl_assets.training.service import GRPOTrainingService

    if settings.backend == LOCAL:
        grpo = GPU_GRPO
    elif settings.base_policy == SMOLLM2:
        grpo = SMOLLM_GRPO
    else:
        grpo = Grpo()
    grpo = replace(grpo, recompute=recompute, most_stale=settings.most_stale, cpu=replace(grpo.cpu, tiers=tiers))
    return GRPOTrainingService(data_dir, settings.model_line, backend=settings.backend, grpo=grpo)
