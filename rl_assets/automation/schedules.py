"""The daily look: the same decision as the training sensor's, at an hour that a person can rely on."""

import dagster as dg

from rl_assets.automation.jobs import training_job
from rl_assets.automation.partitions import BATCHES
from rl_assets.automation.runs import next_training
from rl_assets.resources import Database, Trainer


@dg.schedule(
    job=training_job,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every day at 02:00 UTC: train if enough fresh episodes wait, even where the sensor is switched off.",
)
def daily_training_schedule(
    context: dg.ScheduleEvaluationContext, database: Database, trainer: Trainer
) -> dg.RunRequest | dg.SkipReason:
    found = next_training(context.instance, database, trainer)
    if found.run_key is None or found.batch is None:
        return dg.SkipReason(found.reason)
    context.log.info(found.reason)
    context.instance.add_dynamic_partitions(str(BATCHES.name), [found.batch.id])
    return dg.RunRequest(run_key=found.run_key, partition_key=found.batch.id)


SCHEDULES = [daily_training_schedule]
