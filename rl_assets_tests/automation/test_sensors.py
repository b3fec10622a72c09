from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.utils import make_new_run_id
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.automation.runs import RUN_KEY
from rl_assets.automation.schedules import daily_training_schedule
from rl_assets.automation.sensors import (
    JUDGED_EVERY_HOURS,
    benchmark_snapshot_sensor,
    contiguous,
    judged_again,
    training_failure_sensor,
    training_sensor,
    trajectory_window_sensor,
)
from rl_assets.definitions import build_defs
from rl_assets.episodes import window_of
from rl_assets.errors import ConfigurationError, MissingCheckpoint
from rl_assets.logs import PARTITION
from rl_assets.market.generate import generate
from rl_assets.resources import Database, Judge, Trainer
from rl_assets.store.ledger import advance_batch, batches, get_batch
from rl_assets.store.snapshots import register_snapshots
from rl_assets_tests.store.waiting import LINE, a_champion, recorded, waiting


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as one:
        yield one


@pytest.fixture
def kept_instance() -> Iterator[dg.DagsterInstance]:
    """One that a schedule finds by a reference to it."""
    with dg.instance_for_test() as one:
        yield one


def tick(
    sensor: dg.SensorDefinition, instance: dg.DagsterInstance, url: str, cursor: str | None = None
) -> dg.SensorResult:
    """What a sensor answers at a tick on a database."""
    given_to_it = {"database": Database(url=url), "trainer": Trainer(), "judge": Judge()}
    needed = {name: value for name, value in given_to_it.items() if name in sensor.required_resource_keys}
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, definitions=build_defs(), resources=needed
    ) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def said(result: dg.SensorResult) -> str:
    assert result.skip_reason is not None
    return result.skip_reason.skip_message or ""


def test_what_is_judged_during_a_tick_is_claimed_in_it(
    conn: psycopg.Connection,
    postgres_url: str,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TRAINING_MIN_TRAJECTORIES", "20")
    a_champion(conn)
    waiting(conn, 10, siblings=10)
    pauses: list[float] = []

    def meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            waiting(conn, 10, siblings=10, window="2026-11-23T09:00")

    monkeypatch.setattr("rl_assets.automation.sensors.time.sleep", meanwhile)
    assert said(tick(training_sensor, instance, postgres_url)) == "10 of 20 fresh episodes"
    assert pauses == []
    instance.add_run(
        dg.DagsterRun(job_name="pipeline_window", run_id=make_new_run_id(), status=dg.DagsterRunStatus.STARTED)
    )
    result = tick(training_sensor, instance, postgres_url)
    (request,) = result.run_requests or []
    assert len(pauses) == 2

    # A batch in flight is waited for by no look: each may ask W&B about it.
    instance.add_run(
        dg.DagsterRun(
            job_name="training",
            run_id=make_new_run_id(),
            status=dg.DagsterRunStatus.STARTED,
            tags={PARTITION: str(request.partition_key), RUN_KEY: str(request.run_key)},
        )
    )
    assert "is reserved, in run" in said(tick(training_sensor, instance, postgres_url))
    assert len(pauses) == 2


def test_at_999_the_sensor_skips_with_the_count_and_at_1000_it_requests_the_training(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance
):
    a_champion(conn)
    waiting(conn, 990, siblings=10)
    # A group of one cannot be trained on; so nine make the next group.
    waiting(conn, 9, siblings=10, window="2026-11-23T09:00")
    assert said(tick(training_sensor, instance, postgres_url)) == "999 of 1000 fresh episodes"
    assert batches(conn, model_line=LINE) == []

    waiting(conn, 2, siblings=10, window="2026-11-23T10:00")
    result = tick(training_sensor, instance, postgres_url)
    batch = batches(conn, model_line=LINE)[0]
    (request,) = result.run_requests or []
    assert (request.partition_key, request.run_key) == (batch.id, f"{batch.id}:1")
    assert (batch.state, batch.episodes >= 1000) == ("reserved", True)
    (added,) = result.dynamic_partitions_requests or []
    assert list(added.partition_keys) == [batch.id]


def test_exactly_1000_suffice(conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance):
    a_champion(conn)
    waiting(conn, 1000, siblings=10)
    tick(training_sensor, instance, postgres_url)
    assert [batch.episodes for batch in batches(conn, model_line=LINE)] == [1000]


def test_a_claim_whose_request_was_lost_is_requested_again_under_the_same_key(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance
):
    a_champion(conn)
    waiting(conn, 1000, siblings=10)
    first = tick(training_sensor, instance, postgres_url)
    again = tick(training_sensor, instance, postgres_url)
    assert [r.run_key for r in again.run_requests or []] == [r.run_key for r in first.run_requests or []]
    assert len(batches(conn, model_line=LINE)) == 1


def test_without_a_champion_the_sensor_says_what_is_missing(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance
):
    assert "has no champion yet" in said(tick(training_sensor, instance, postgres_url))


@pytest.mark.parametrize("wrong", ["0", "abc", "-5", "1.5"])
def test_a_threshold_that_is_none_fails_the_tick_with_one_sentence(
    postgres_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, wrong: str
):
    monkeypatch.setenv("TRAINING_MIN_TRAJECTORIES", wrong)
    with pytest.raises(ConfigurationError, match="TRAINING_MIN_TRAJECTORIES"):
        tick(training_sensor, instance, postgres_url)


@dg.op
def broken_training() -> None:
    try:
        json.loads("{")
    except json.JSONDecodeError as error:
        try:
            raise MissingCheckpoint("a-secret-key opens no training.json; restore it") from error
        except MissingCheckpoint as ours:
            raise dg.Failure("nothing was trained") from ours


@dg.job
def breaks() -> None:
    broken_training()


def test_a_batch_is_told_why_its_training_failed_in_our_words_without_secrets(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-key")
    monkeypatch.setenv("TRAINING_BACKEND", "cpu")
    a_champion(conn)
    waiting(conn, 1000, siblings=10)
    tick(training_sensor, instance, postgres_url)
    (batch,) = batches(conn, model_line=LINE)
    result = breaks.execute_in_process(instance=instance, tags={PARTITION: batch.id}, raise_on_error=False)
    context = dg.build_run_status_sensor_context(
        sensor_name=training_failure_sensor.name,
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    training_failure_sensor(context, database=Database(url=postgres_url))
    failed = get_batch(conn, batch.id)
    assert (failed.state, failed.error) == ("failed", "*** opens no training.json; restore it")


def test_the_daily_schedule_decides_like_the_sensor(
    conn: psycopg.Connection, postgres_url: str, kept_instance: dg.DagsterInstance
):
    def look() -> dg.RunRequest | dg.SkipReason:
        with dg.build_schedule_context(
            instance=kept_instance, resources={"database": Database(url=postgres_url), "trainer": Trainer()}
        ) as context:
            return daily_training_schedule(context)  # pyright: ignore[reportReturnType]

    a_champion(conn)
    waiting(conn, 90, siblings=10)
    skipped = look()
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "90 of 1000 fresh episodes"
    waiting(conn, 910, siblings=10, window="2026-11-23T09:00")
    request = look()
    assert isinstance(request, dg.RunRequest)
    assert kept_instance.has_dynamic_partition("batches", str(request.partition_key))


def test_a_window_is_taken_when_it_has_news_and_not_again(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance
):
    now = datetime.now(UTC)
    settled = window_of(now - timedelta(hours=3))
    a_champion(conn)
    waiting(conn, 10, siblings=10, window=settled)
    first = tick(trajectory_window_sensor, instance, postgres_url)
    # Judged rows alone are no news: the window is taken for its newest row, if at all, and then left alone.
    assert len(first.run_requests or []) <= 1
    waiting(conn, 10, siblings=10, window=window_of(now - timedelta(hours=2)))
    conn.execute('UPDATE trajectories SET "judgedAt" = NULL WHERE "windowId" = %s', [settled])
    taken = tick(trajectory_window_sensor, instance, postgres_url, first.cursor)
    assert settled in [r.partition_key for r in taken.run_requests or []]
    quiet = tick(trajectory_window_sensor, instance, postgres_url, taken.cursor)
    assert quiet.run_requests in (None, [])
    assert "no episode is new since" in said(quiet)


def test_on_a_new_installation_the_sensor_says_that_nothing_has_been_recorded(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance
):
    assert said(tick(trajectory_window_sensor, instance, postgres_url)) == (
        "no episode that waits for a judge has been recorded yet"
    )


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_an_hour_whose_run_failed_is_requested_again_and_then_left_to_a_person(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, end: str
):
    hour = window_of(datetime.now(UTC) - timedelta(hours=3))
    waiting(conn, 10, siblings=10, window=hour)
    conn.execute('UPDATE trajectories SET "judgedAt" = NULL')
    result = tick(trajectory_window_sensor, instance, postgres_url)
    keys = []
    for _ in range(4):
        requests = result.run_requests or []
        keys += [request.run_key for request in requests]
        for request in requests:
            launched = run_of(instance, request)
            launched.fail() if end == "failed" else launched.cancel()
        result = tick(trajectory_window_sensor, instance, postgres_url, result.cursor)
    first = str(keys[0])
    assert keys == [first, f"{first}:attempt-2", f"{first}:attempt-3"]
    assert "no episode is new since" in said(result)
    tags = [run.tags["rl_assets/if_failed"] for run in instance.get_runs()]
    assert sorted(tags) == ["a person is needed", "another run followed", "another run followed"]


def test_an_hour_that_an_llm_could_not_judge_is_requested_again_once_in_six_hours(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    now = datetime.now(UTC)
    hour, long_ago = window_of(now - timedelta(hours=3)), window_of(now - timedelta(days=3))
    for window in (hour, long_ago):
        waiting(conn, 10, siblings=10, window=window)
    cursor = tick(trajectory_window_sensor, instance, postgres_url).cursor
    conn.execute("UPDATE rl_assets.groups SET judged_in = NULL")
    assert not tick(trajectory_window_sensor, instance, postgres_url, cursor).run_requests  # nobody to ask again
    monkeypatch.setenv("RULER_JUDGE_MODEL", "openai/judge")
    again = tick(trajectory_window_sensor, instance, postgres_url, cursor)
    (request,) = again.run_requests or []
    assert request.partition_key == hour
    run_of(instance, request).start()
    assert not tick(trajectory_window_sensor, instance, postgres_url, cursor).run_requests
    later = judged_again(instance, [hour], now + timedelta(hours=JUDGED_EVERY_HOURS))
    assert later.keys() == {hour} and later[hour] != request.run_key
    assert judged_again(instance, [hour], now) == {}
    both = [window_of(now - timedelta(hours=age)) for age in (5, 4)]
    monkeypatch.setattr("rl_assets.automation.sensors.MOST_WINDOWS", 1)
    assert judged_again(instance, [hour, *both], now).keys() == {both[0]}  # what was asked keeps no other from its turn


@pytest.mark.parametrize("why_not", ["by hand", "retried by Dagster", "followed by another"])
def test_an_hour_that_somebody_else_sees_to_is_not_requested_again(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, why_not: str
):
    hour = window_of(datetime.now(UTC) - timedelta(hours=3))
    waiting(conn, 10, siblings=10, window=hour)
    conn.execute('UPDATE trajectories SET "judgedAt" = NULL')
    taken = tick(trajectory_window_sensor, instance, postgres_url)
    (request,) = taken.run_requests or []
    tags = {"by hand": {"rl_assets/if_failed": ""}, "retried by Dagster": {"dagster/will_retry": "true"}}
    run_of(instance, request, tags.get(why_not, {})).fail()
    if why_not == "followed by another":
        run_of(instance, request).start()
    assert "no episode is new since" in said(tick(trajectory_window_sensor, instance, postgres_url, taken.cursor))


class Launched:
    """A run as the daemon makes one of a request."""

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        self._instance, self._run = instance, run

    def fail(self) -> None:
        self._instance.report_run_failed(self._run)

    def cancel(self) -> None:
        self._instance.report_run_canceled(self._run)

    def start(self) -> None:
        self._instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.PIPELINE_START.value, self._run.job_name), self._run.run_id
        )


def run_of(instance: dg.DagsterInstance, request: dg.RunRequest, tags: dict[str, str] | None = None) -> Launched:
    partition = {"dagster/partition": str(request.partition_key), "dagster/run_key": str(request.run_key)}
    job = build_defs().resolve_job_def("pipeline_window")
    return Launched(instance, instance.create_run_for_job(job, tags={**partition, **request.tags, **(tags or {})}))


def test_registered_snapshots_are_requested_as_ranges(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance
):
    assert (
        said(tick(benchmark_snapshot_sensor, instance, postgres_url)) == "no registered snapshot waits to be generated"
    )
    worlds = [generate("train", seed)[0] for seed in range(6)]
    register_snapshots(conn, worlds)
    result = tick(benchmark_snapshot_sensor, instance, postgres_url)
    ids = sorted(world.id for world in worlds)
    (added,) = result.dynamic_partitions_requests or []
    assert list(added.partition_keys) == ids
    (request,) = result.run_requests or []
    assert request.tags["dagster/asset_partition_range_start"] == ids[0]
    assert request.tags["dagster/asset_partition_range_end"] == ids[-1]


def test_no_query_of_a_tick_reads_a_table_from_end_to_end(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    """Postgres explains each statement of the ticks. Small tables are read whole because that is quicker; told to
    avoid it, Postgres does so all the same only where no index answers."""
    a_champion(conn)
    waiting(conn, 20, siblings=10)
    recorded(conn, 4, window="2026-11-23T09:00")
    register_snapshots(conn, [generate("train", 5)[0]])
    plans: list[str] = []
    connecting = psycopg.connect

    def listening(*arguments: Any, **named: Any) -> psycopg.Connection:
        one = connecting(*arguments, **named)
        one.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        return one

    for setting in (
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_nested_statements = on",
        "client_min_messages = log",
        "enable_seqscan = off",
    ):
        conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {setting}")  # pyright: ignore
    monkeypatch.setattr(psycopg, "connect", listening)

    def explained(sensor: dg.SensorDefinition, cursor: str | None = None) -> dg.SensorResult:
        plans.clear()
        result = tick(sensor, instance, postgres_url, cursor)
        found = [plan for plan in plans if "Query Text" in plan]
        assert any("Index" in plan for plan in found)
        assert [plan for plan in found if "Seq Scan" in plan] == []
        return result

    explained(benchmark_snapshot_sensor)
    cursor = explained(trajectory_window_sensor).cursor
    assert cursor is not None
    explained(trajectory_window_sensor, cursor)
    assert said(explained(training_sensor)) == "20 of 1000 fresh episodes"
    monkeypatch.setenv("TRAINING_MIN_TRAJECTORIES", "20")
    claimed = explained(training_sensor).run_requests or []
    again = explained(training_sensor).run_requests or []
    assert [request.run_key for request in claimed] == [request.run_key for request in again] != []
    advance_batch(conn, batches(conn, model_line=LINE)[0].id, "failed", error="an accident")
    assert len(explained(training_sensor).run_requests or []) == 1


@given(st.lists(st.integers(0, 30), unique=True), st.sets(st.integers(0, 30)))
def test_ranges_cover_what_is_wanted_and_nothing_else(order: list[int], wanted: set[int]):
    keys = [f"{number:02d}" for number in order]
    chosen = [key for key in keys if int(key) in wanted]
    ranges = contiguous(keys, chosen)
    assert [key for one in ranges for key in one] == chosen
    for one in ranges:
        first, last = keys.index(one[0]), keys.index(one[-1])
        assert keys[first : last + 1] == one
