"""Definitions: the one place where assets, jobs, sensors, schedules and resources meet."""

from collections.abc import Mapping

import dagster as dg

from rl_assets.assets import (
    deployments,
    evaluations,
    groups,
    leaderboard,
    models,
    outcomes,
    rankings,
    snapshots,
    trajectories,
)
from rl_assets.automation.alerts import ALERT_SENSORS, Alerts
from rl_assets.automation.executors import executor
from rl_assets.automation.jobs import JOBS
from rl_assets.automation.retention import run_retention_job, run_retention_schedule
from rl_assets.automation.rollouts import prune_job, rollout_job, rollout_sensor, weekly_prune_schedule
from rl_assets.automation.schedules import SCHEDULES
from rl_assets.automation.sensors import SENSORS
from rl_assets.logs import install
from rl_assets.resources import Database, Judge, Lake, Tracking, Trainer
from rl_assets.settings import prepare_environment

ASSETS = [
    snapshots.benchmark_snapshots,
    trajectories.babylon_trajectories,
    trajectories.recorded_trajectories,
    outcomes.babylon_markets,
    outcomes.market_outcomes,
    groups.grpo_groups,
    rankings.judged_rankings,
    models.base_policy,
    models.training_batches,
    models.trained_models,
    evaluations.benchmark_evaluations,
    deployments.deployed_model,
    leaderboard.benchmark_leaderboard,
]


def default_resources() -> dict[str, dg.ConfigurableResource]:
    """Resources that take everything from the environment."""
    return {
        "database": Database(),
        "lake": Lake(),
        "judge": Judge(),
        "trainer": Trainer(),
        "tracking": Tracking(),
        "alerts": Alerts(),
    }


def build_defs(*, resource_overrides: Mapping[str, dg.ConfigurableResource] | None = None) -> dg.Definitions:
    """A fresh `Definitions`; a resource named in `resource_overrides` replaces the default one of that name."""
    return dg.Definitions(
        assets=ASSETS,
        jobs=[*JOBS, run_retention_job, rollout_job, prune_job],
        sensors=[*SENSORS, *ALERT_SENSORS, rollout_sensor],
        schedules=[*SCHEDULES, run_retention_schedule, weekly_prune_schedule],
        resources={**default_resources(), **(resource_overrides or {})},
        executor=executor(),
    )


prepare_environment()
install()
defs = build_defs()
