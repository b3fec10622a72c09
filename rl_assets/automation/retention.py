"""Old runs go, with their events and logs, once no asset's history stands on them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

import dagster as dg
from pydantic import Field

from rl_assets.assets.shown import plainly
from rl_assets.automation.jobs import MAX_RUNTIME
from rl_assets.automation.runs import ENDED

KEEP_DAYS = 90
MOST_RUNS = 500
"""Runs that one execution deletes; the oldest come first, and the next day goes on."""
PAGE = 500
"""Runs that are asked for at a time."""


class Keeping(dg.Config):
    """How long runs are kept."""

    days: int = Field(default=KEEP_DAYS, ge=1, description="Days for which every run is kept.")


def superseded(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether no asset partition's newest materialization is that of a run: deleting it loses no asset's state."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    for record in records:
        key, partition = record.event_log_entry.dagster_event.asset_key, record.partition_key  # pyright: ignore
        assert key is not None
        wanted = dg.AssetRecordsFilter(key, asset_partitions=None if partition is None else [partition])
        newest = instance.fetch_materializations(wanted, limit=1).records
        if newest and newest[0].run_id == run_id:
            return False
    return True


def deletable(instance: dg.DagsterInstance, now: datetime, days: int) -> Iterator[str]:
    """Ids of runs that ended more than `days` ago and on which nothing stands, the oldest first."""
    old = dg.RunsFilter(statuses=ENDED, updated_before=now - timedelta(days=days))
    cursor = None
    while page := instance.get_run_records(old, limit=PAGE, cursor=cursor, ascending=True):
        for record in page:
            if superseded(instance, record.dagster_run.run_id):
                yield record.dagster_run.run_id
        cursor = page[-1].dagster_run.run_id


@dg.op(description="Delete runs that ended long ago, but none that holds an asset partition's newest materialization.")
def delete_old_runs(context: dg.OpExecutionContext, config: Keeping) -> None:
    instance, kept = context.instance, list[str]()
    with plainly():
        old = list(islice(deletable(instance, datetime.now(UTC), config.days), MOST_RUNS))
    for run_id in old:
        try:
            with plainly():
                instance.delete_run(run_id)
        except Exception:  # one that cannot be deleted must not keep the others
            context.log.warning("run %s cannot be deleted", run_id, exc_info=True)
            kept.append(run_id)
    context.log.info("%d runs that ended more than %d days ago are deleted", len(old) - len(kept), config.days)
    context.add_output_metadata({"runs_deleted": len(old) - len(kept), "runs_not_deleted": kept})
    if kept:
        raise dg.Failure(f"{len(kept)} of {len(old)} old runs cannot be deleted, such as {kept[0]}; see the log")


@dg.job(
    name="run_retention",
    description="Delete the records of old runs. Assets, their newest metadata and the ledger stay as they are.",
    tags={MAX_RUNTIME: "1800"},
    executor_def=dg.in_process_executor,
)
def run_retention_job() -> None:
    delete_old_runs()


run_retention_schedule = dg.ScheduleDefinition(
    name="run_retention_schedule",
    job=run_retention_job,
    cron_schedule="30 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 03:30 UTC: delete the records of runs that ended more than 90 days ago.",
)
