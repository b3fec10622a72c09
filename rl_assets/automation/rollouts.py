"""Rollouts and retention: the sensor that watches a candidate, the job that takes it on, and pruning by the week."""

import dagster as dg
from pydantic import Field

from rl_assets.automation.jobs import MAX_RUNTIME
from rl_assets.registry.checkpoints import KEEP, checkpoints_of
from rl_assets.resources import Database, Lake, Trainer

rollout_job = dg.define_asset_job(
    "rollout",
    selection=["deployed_model"],
    description="Take a candidate that is on its way to its next stage, if its episodes allow that, after a health "
    "check; or only look at what is live.",
    tags={MAX_RUNTIME: "3600"},
)


@dg.sensor(
    job=rollout_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at the episodes of a candidate that is on its way and of the champion beside it: takes the "
    "candidate back at once where it does harm, and requests its next stage where it is shown to do none.",
)
def rollout_sensor(context: dg.SensorEvaluationContext, database: Database, trainer: Trainer) -> dg.SensorResult:
    from rl_assets.registry.rollout import open_rollout
    from rl_assets.registry.stages import look

    with database.connect() as conn:
        rollout = open_rollout(conn, trainer.line)
        verdict = look(conn, trainer.line)
    if rollout is None or verdict is None:
        return dg.SensorResult(skip_reason=f"no candidate of {trainer.line} is on its way")
    if verdict.decision == "wait":
        return dg.SensorResult(skip_reason=verdict.reason)
    context.log.info(verdict.reason)
    # A run that failed is requested again once more episodes have come.
    key = f"rollout-{rollout.id}:{rollout.stage}:{verdict.decision}:{verdict.figures['pairs']}"
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=key)])


class Pruning(dg.Config):
    """Which checkpoints are deleted."""

    keep: int = Field(default=KEEP, ge=1, description="Newest steps that are kept whatever became of them.")
    dry_run: bool = Field(default=False, description="Say what would be deleted, and delete nothing.")


@dg.op(description="Delete checkpoints that nothing needs, and directories that a killed save left.")
def prune_checkpoints(
    context: dg.OpExecutionContext, config: Pruning, database: Database, lake: Lake, trainer: Trainer
) -> None:
    from rl_assets.registry.retention import prune, shown

    directory = checkpoints_of(lake.disk, trainer.line)
    with database.connect() as conn:
        gone = prune(conn, trainer.line, directory, keep=config.keep, dry_run=config.dry_run)
    context.log.info(shown(gone, dry_run=config.dry_run))
    context.add_output_metadata({"checkpoints": len(gone), "bytes": sum(one.bytes for one in gone)})


@dg.job(
    name="prune",
    description="Delete the checkpoints of models that are not live, were not live before, are not on their way and "
    "are referenced by nothing.",
    tags={MAX_RUNTIME: "3600"},
    executor_def=dg.in_process_executor,
)
def prune_job() -> None:
    prune_checkpoints()


weekly_prune_schedule = dg.ScheduleDefinition(
    name="weekly_prune_schedule",
    job=prune_job,
    cron_schedule="0 3 * * 0",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every Sunday at 03:00 UTC, once switched on: delete checkpoints that nothing needs.",
)
