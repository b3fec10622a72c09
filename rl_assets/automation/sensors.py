"""Sensors: each tick asks the database one bounded question and turns the answer into run requests or a reason.

What is decided, and how, is in `rl_assets.windows` and `rl_assets.training.trigger`; nothing here holds state but a
cursor.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from rl_assets.automation.jobs import snapshots_job, training_job, window_job
from rl_assets.automation.partitions import BATCHES, FIRST_WINDOW, SNAPSHOTS
from rl_assets.automation.runs import (
    ENDED,
    RUN_KEY,
    UNFINISHED,
    error_of,
    next_training,
    unfinished_partitions,
)
from rl_assets.logs import PARTITION, RANGE_END, RANGE_START
from rl_assets.resources import Database, Judge, Trainer
from rl_assets.wording import counted

MOST_SNAPSHOTS = 256
MOST_WINDOWS = 24
JUDGED_EVERY_HOURS, JUDGED_FOR = 6, timedelta(days=2)
"""How often an hour is requested again whose groups wait for an LLM, and for how long."""
OFTEN = 4
"""Least seconds between ticks of the sensors on which the loop waits. The daemon looks every 5 s; with an interval of 5
it would find every other tick a moment too early."""
PATIENCE_SECONDS, AGAIN_SECONDS = 4.0, 0.25
"""How long a tick of the training sensor goes on looking while too few episodes are judged and an hour is at work that
may bring the others, and how often: it would else wait for the daemon to come by again."""
RANGE_DIGEST = "rl_assets/range"
IF_FAILED = "rl_assets/if_failed"
"""Tag of the runs of hours that are requested here: `again` until one that has not read its hour is dealt with."""
UNREAD = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
"""How a run ends that has not read its hour."""
WILL_RETRY = "dagster/will_retry"
"""Tag of a failed run whose worker was lost, which Dagster's run monitoring runs again by itself."""


@dg.sensor(
    job=snapshots_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Registered snapshots that are not on disk yet, one run per contiguous range of partition keys.",
)
def benchmark_snapshot_sensor(context: dg.SensorEvaluationContext, database: Database) -> dg.SensorResult:
    from rl_assets.episodes import digest
    from rl_assets.store.snapshots import list_snapshots
    from rl_assets.training.trigger import ATTEMPTS

    with database.connect() as conn:
        wanted = sorted(row.id for row in list_snapshots(conn, unmaterialized=True))[:MOST_SNAPSHOTS]
    if not wanted:
        return dg.SensorResult(skip_reason="no registered snapshot waits to be generated")
    if context.instance.get_runs(dg.RunsFilter(job_name=snapshots_job.name, statuses=UNFINISHED), limit=1):
        waiting = counted(len(wanted), "more snapshot")
        return dg.SensorResult(skip_reason=f"{waiting} will be generated after the run that is generating others")
    known = list(context.instance.get_dynamic_partitions(str(SNAPSHOTS.name)))
    new = sorted(set(wanted) - set(known))
    requests, given_up = [], []
    for keys in contiguous(known + new, wanted):
        mark = digest(keys)[:16]
        ended = context.instance.get_runs(dg.RunsFilter(tags={RANGE_DIGEST: mark}, statuses=ENDED), limit=ATTEMPTS)
        if len(ended) >= ATTEMPTS:
            given_up.append(f"{keys[0]} to {keys[-1]}")
            continue
        tags = {RANGE_START: keys[0], RANGE_END: keys[-1], RANGE_DIGEST: mark}
        requests.append(dg.RunRequest(run_key=f"{mark}:{len(ended)}", tags=tags))
    if not requests:
        reason = (
            f"{ATTEMPTS} runs have failed to generate {'; '.join(given_up)}; read their error, then materialize "
            "benchmark_snapshots of that range by hand"
        )
        return dg.SensorResult(skip_reason=reason)
    additions = [SNAPSHOTS.build_add_request(new)] if new else []
    return dg.SensorResult(run_requests=requests, dynamic_partitions_requests=additions)


def contiguous(order: Sequence[str], wanted: Sequence[str]) -> list[list[str]]:
    """Split what is wanted into runs of neighbours in the order of the partitions, for a range names only its ends."""
    runs: list[list[str]] = []
    chosen, previous = set(wanted), None
    for position, key in enumerate(order):
        if key not in chosen:
            continue
        if previous is not None and position == previous + 1:
            runs[-1].append(key)
        else:
            runs.append([key])
        previous = position
    return runs


@dg.sensor(
    job=window_job,
    minimum_interval_seconds=OFTEN,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Hours whose rows have moved since they were last read, hours that have settled since, and hours whose "
    "run has failed or was cancelled: these once the database answers, in three attempts at most. Where an LLM judges, "
    "also hours with groups that it could not judge, every six hours for two days.",
)
def trajectory_window_sensor(context: dg.SensorEvaluationContext, database: Database, judge: Judge) -> dg.SensorResult:
    from rl_assets.episodes import window_of
    from rl_assets.store.episodes import changed_windows
    from rl_assets.store.judgements import unjudged_windows
    from rl_assets.windows import Watch, plan, why_quiet

    now = datetime.now(UTC)
    watch = Watch.from_json(context.cursor)
    busy = unfinished_partitions(context.instance, window_job.name)
    with database.connect() as conn:
        changes = changed_windows(conn, watch.horizon, FIRST_WINDOW)
        taken, after = plan(watch, changes, busy, now, MOST_WINDOWS)
        waiting = unjudged_windows(conn, window_of(now - JUDGED_FOR)) if judge.chosen.kind == "ruler" else []
    again = judged_again(context.instance, [window for window in waiting if window not in busy], now)
    taken = again | failed_windows(context.instance) | taken
    if not taken:
        return dg.SensorResult(skip_reason=why_quiet(after, len(busy)), cursor=after.to_json())
    requests = [
        dg.RunRequest(run_key=key, partition_key=window, tags={IF_FAILED: "again"}) for window, key in taken.items()
    ]
    return dg.SensorResult(run_requests=requests, cursor=after.to_json())


def judged_again(instance: dg.DagsterInstance, waiting: Sequence[str], now: datetime) -> dict[str, str]:
    """Those of the windows whose groups wait for a judge that have not been requested for that in these hours of the
    day, with the key. An LLM that was away or had used its budget up may be back; what it answered is not asked again.
    """
    part = f"{now:%Y-%m-%d}/{now.hour // JUDGED_EVERY_HOURS}"
    keys = {window: f"{window}:unjudged:{part}" for window in waiting}
    known = instance.get_runs(dg.RunsFilter(tags={RUN_KEY: list(keys.values())})) if keys else []
    asked = {run.tags[RUN_KEY] for run in known}
    return dict([(window, key) for window, key in keys.items() if key not in asked][:MOST_WINDOWS])


def failed_windows(instance: dg.DagsterInstance) -> dict[str, str]:
    """Windows whose newest run was requested here and has failed or was cancelled, with the key of the next attempt:
    in neither case was the hour read, and the cursor has moved past it.

    A run is looked at until it is known what is to become of it, which its tag then says.
    """
    from rl_assets.windows import next_attempt

    due: dict[str, str] = {}
    unsettled = dg.RunsFilter(job_name=window_job.name, statuses=UNREAD, tags={IF_FAILED: "again"})
    for run in instance.get_runs(unsettled, limit=MOST_WINDOWS):
        window = run.tags[PARTITION]
        key = next_attempt(run.tags[RUN_KEY]) if RUN_KEY in run.tags else None
        newest = instance.get_runs(dg.RunsFilter(job_name=window_job.name, tags={PARTITION: window}), limit=1)[0]
        if newest.run_id != run.run_id or run.tags.get(WILL_RETRY) == "true":
            instance.add_run_tags(run.run_id, {IF_FAILED: "another run followed"})
        elif key is None:
            instance.add_run_tags(run.run_id, {IF_FAILED: "a person is needed"})
        else:
            due[window] = key
    return due


@dg.sensor(
    job=training_job,
    minimum_interval_seconds=OFTEN,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Claims a batch once enough fresh judged episodes wait, and requests the run of a batch that has none.",
)
def training_sensor(context: dg.SensorEvaluationContext, database: Database, trainer: Trainer) -> dg.SensorResult:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        judging = _is_judging(context.instance)  # asked first, so that what it has just judged is seen
        found = next_training(context.instance, database, trainer)
        if not (judging and found.too_few) or time.monotonic() >= deadline:
            break
        time.sleep(AGAIN_SECONDS)
    if found.run_key is None or found.batch is None:
        return dg.SensorResult(skip_reason=found.reason)
    context.log.info(found.reason)
    request = dg.RunRequest(run_key=found.run_key, partition_key=found.batch.id)
    return dg.SensorResult(
        run_requests=[request], dynamic_partitions_requests=[BATCHES.build_add_request([found.batch.id])]
    )


def _is_judging(instance: dg.DagsterInstance) -> bool:
    """Whether a run of an hour works right now."""
    at_work = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    return bool(instance.get_run_ids(dg.RunsFilter(job_name=window_job.name, statuses=at_work), limit=1))


def _record_end(context: dg.RunStatusSensorContext, database: Database, error: str) -> None:
    from rl_assets.training.trigger import record_failure

    batch_id = context.dagster_run.tags.get(PARTITION)
    if batch_id is None:
        return
    with database.connect() as conn:
        run = context.dagster_run
        context.log.info(record_failure(conn, batch_id, run_id=run.run_id, run_key=run.tags.get(RUN_KEY), error=error))


@dg.run_failure_sensor(
    monitored_jobs=[training_job],
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Moves the batch of a failed training run to `failed`, with the error, so that the ledger decides on.",
)
def training_failure_sensor(context: dg.RunFailureSensorContext, database: Database) -> None:
    _record_end(context, database, error_of(context.instance, context.dagster_run.run_id))


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    monitored_jobs=[training_job],
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Moves the batch of a cancelled training run to `failed`; a cancelled run raises no failure.",
)
def training_cancelled_sensor(context: dg.RunStatusSensorContext, database: Database) -> None:
    _record_end(context, database, "the run was cancelled")


SENSORS = [
    benchmark_snapshot_sensor,
    trajectory_window_sensor,
    training_sensor,
    training_failure_sensor,
    training_cancelled_sensor,
]
