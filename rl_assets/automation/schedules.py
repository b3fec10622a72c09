"""What happens by the clock: the daily look, which decides as the training sensor does, the leaderboard, what markets
came to, and ticks of live agents."""

import os
from datetime import UTC, datetime

import dagster as dg

from rl_assets.automation.jobs import leaderboard_job, live_tick_job, outcomes_job, training_job
from rl_assets.automation.partitions import BATCHES
from rl_assets.automation.runs import failures, next_training, unfinished_partitions
from rl_assets.resources import Database, Trainer
from rl_assets.turns import MARKET_URL
from rl_assets.wording import counted, moment


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


@dg.schedule(
    job=leaderboard_job,
    cron_schedule="0 4 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every day at 04:00 UTC: rank the model line anew if a batch has been decided upon since.",
)
def daily_leaderboard_schedule(
    context: dg.ScheduleEvaluationContext, database: Database, trainer: Trainer
) -> dg.RunRequest | dg.SkipReason:
    from rl_assets.store.ledger import DECIDED, batches

    with database.connect() as conn:
        decided = batches(conn, model_line=trainer.line, states=DECIDED, limit=1)
    if not decided:
        return dg.SkipReason(f"no batch of {trainer.line} has been decided upon yet")
    (batch,) = decided
    last = context.instance.get_latest_materialization_event(dg.AssetKey("benchmark_leaderboard"))
    if last is not None and last.timestamp >= batch.updated_at.timestamp():
        at = moment(datetime.fromtimestamp(last.timestamp, UTC))
        return dg.SkipReason(f"no batch has been decided upon since the leaderboard of {at}")
    return dg.RunRequest(run_key=f"{batch.id}:{context.scheduled_execution_time:%Y-%m-%d}")


@dg.schedule(
    job=live_tick_job,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING
    if os.environ.get(MARKET_URL, "").strip()
    else dg.DefaultScheduleStatus.STOPPED,
    description="Every five minutes: each registered live agent with enough points takes one turn at the market in "
    f"{MARKET_URL}. It is on where that is set, and off elsewhere.",
)
def live_tick_schedule(context: dg.ScheduleEvaluationContext, database: Database) -> dg.RunRequest | dg.SkipReason:
    from rl_assets.agents.coordinator import tick_of, why_nothing_to_do
    from rl_assets.store.live import live_agents

    if not os.environ.get(MARKET_URL, "").strip():
        return dg.SkipReason(f"no live market is named; set {MARKET_URL} to the URL of one that `rl-assets serve` runs")
    with database.connect() as conn:
        reason = why_nothing_to_do(live_agents(conn))
    if reason is not None:
        return dg.SkipReason(reason)
    tick = tick_of(context.scheduled_execution_time).strftime("%Y-%m-%dT%H:%M")
    config = {"ops": {"tick_live_agents": {"config": {"tick": tick}}}}
    return dg.RunRequest(run_key=f"live:{tick}", run_config=config)


@dg.schedule(
    job=outcomes_job,
    cron_schedule="10 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Ten minutes past each hour: what the markets of the hour before came to, and of hours of the last "
    "days that were missed or whose markets have been resolved since.",
)
def market_outcomes_schedule(
    context: dg.ScheduleEvaluationContext, database: Database
) -> list[dg.RunRequest] | dg.SkipReason:
    from rl_assets.store.outcomes import due_windows
    from rl_assets.windows import ATTEMPTS

    now = context.scheduled_execution_time
    with database.connect() as conn:
        due = due_windows(conn, now)
    if not due:
        return dg.SkipReason("no price was seen in the hour before, and nothing of the last days waits to be written")
    # What was due an hour ago may still be queued: dozens would pile up behind a queue that stands still.
    busy = unfinished_partitions(context.instance, outcomes_job.name)
    failed = failures(context.instance, outcomes_job.name, due)
    given_up = [window for window in due if failed[window] >= ATTEMPTS]
    if given_up:
        context.log.warning(
            f"{ATTEMPTS} runs have failed on each of {', '.join(given_up)}; read their error, then materialize "
            "market_outcomes of these hours by hand"
        )
    due = [window for window in due if window not in busy and window not in given_up]
    if not due:
        return dg.SkipReason(
            f"{counted(len(given_up), 'hour')} {'needs' if len(given_up) == 1 else 'need'} a person, as the tick's log "
            "says; what else is due is being written now"
            if given_up
            else "what is due is being written now"
        )
    return [dg.RunRequest(run_key=f"{window}:{now:%Y-%m-%dT%H}", partition_key=window) for window in due]


SCHEDULES = [daily_training_schedule, daily_leaderboard_schedule, market_outcomes_schedule, live_tick_schedule]
