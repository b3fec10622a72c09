"""Jobs: which assets are materialized together, and two operations that are no assets (forcing, rolling back)."""

import dagster as dg
from pydantic import Field

from rl_assets.resources import Database, Trainer

ONE_AT_A_TIME = "rl_assets/one_at_a_time"
"""Tag of runs of which the queue lets one run at a time per value (dagster.yaml)."""
MAX_RUNTIME = "dagster/max_runtime"
"""Tag: seconds after which run monitoring ends a run; without it, what dagster.yaml says."""

snapshots_job = dg.define_asset_job(
    "snapshots",
    selection=["benchmark_snapshots"],
    description="Generate a range of registered benchmark snapshots in one step.",
    tags={ONE_AT_A_TIME: "snapshots", MAX_RUNTIME: "1800"},
)

window_job = dg.define_asset_job(
    "pipeline_window",
    selection=["recorded_trajectories", "grpo_groups", "judged_rankings"],
    description="Read an hour of episodes, group them and judge the groups. Repeatable at any time, for any range.",
    tags={MAX_RUNTIME: "7200"},
)

training_job = dg.define_asset_job(
    "training",
    selection=["base_policy", "training_batches", "trained_models", "benchmark_evaluations", "deployed_model"],
    description="Train on one claimed batch, measure the candidate against the champion, deploy it if the gate opens.",
    # The ledger counts the attempts of a batch; a second retry mechanism would train it twice.
    # Longer than a training at W&B may take (SERVERLESS_TRAINING_SECONDS), for the gate is played after it.
    tags={"dagster/max_retries": "0", MAX_RUNTIME: "28800"},
)

base_policy_job = dg.define_asset_job(
    "build_base_policy",
    selection=["base_policy"],
    description="Build and warm-start step 0 of the model line, once.",
    tags={MAX_RUNTIME: "3600"},
)

leaderboard_job = dg.define_asset_job(
    "leaderboard",
    selection=["benchmark_leaderboard"],
    description="Rank every version of the model line and the reference agents on the gate; plays what is missing.",
    tags={ONE_AT_A_TIME: "leaderboard", MAX_RUNTIME: "7200"},
)


class Forcing(dg.Config):
    """Why the threshold is overridden, and by whom."""

    forced_by: str = Field(description="Who or what overrides the threshold; it is kept with the batch.")


@dg.op(description="Claim the fresh episodes, whatever the threshold; the training sensor then starts the run.")
def claim_below_threshold(
    context: dg.OpExecutionContext, config: Forcing, database: Database, trainer: Trainer
) -> None:
    from rl_assets.training.trigger import claim

    trainer.check()
    with database.connect() as conn:
        outcome = claim(conn, model_line=trainer.line, minimum=trainer.minimum, forced_by=config.forced_by)
    context.log.info(outcome.reason)


@dg.job(
    name="force_training",
    description="Train below the threshold: claim what is there now and leave the rest to the training sensor.",
    tags={MAX_RUNTIME: "600"},
    executor_def=dg.in_process_executor,
)
def force_training_job() -> None:
    claim_below_threshold()


class RollingBack(dg.Config):
    """Why the champion is taken back."""

    reason: str = Field(description="Why the champion is taken back; it is kept in the history of champions.")


@dg.op(description="Point the champion back at the model before it and archive the row that Babylon reads as live.")
def roll_back_champion(
    context: dg.OpExecutionContext, config: RollingBack, database: Database, trainer: Trainer
) -> None:
    from rl_assets.registry.models import rollback

    with database.connect() as conn:
        change = rollback(conn, trainer.line, config.reason)
    context.log.info("the champion is back at %s", change)


@dg.job(
    name="rollback",
    description="Make the previous champion live again; its checkpoint has been kept.",
    tags={MAX_RUNTIME: "600"},
    executor_def=dg.in_process_executor,
)
def rollback_job() -> None:
    roll_back_champion()


JOBS = [snapshots_job, window_job, training_job, base_policy_job, leaderboard_job, force_training_job, rollback_job]
