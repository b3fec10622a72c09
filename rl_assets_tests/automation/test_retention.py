from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from rl_assets.automation.retention import deletable, run_retention_job

HOURS = ["08", "09"]


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(HOURS))
def hourly() -> None: ...


@dg.asset
def single() -> None: ...


@dg.op
def nothing() -> None: ...


@dg.job
def an_operation() -> None:
    nothing()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as one:
        yield one


def made(instance: dg.DagsterInstance, asset: dg.AssetsDefinition, partition: str | None = None) -> str:
    return dg.materialize([asset], partition_key=partition, instance=instance).run_id


def test_only_runs_on_which_no_assets_state_stands_are_deleted(instance: dg.DagsterInstance):
    first, other, again = (made(instance, hourly, key) for key in ("08", "09", "08"))
    before, now = made(instance, single), made(instance, single)
    operation = an_operation.execute_in_process(instance=instance).run_id
    later = datetime.now(UTC) + timedelta(days=91)
    assert set(deletable(instance, later, 90)) == {first, before, operation}
    assert list(deletable(instance, datetime.now(UTC), 90)) == []
    assert {other, again, now}.isdisjoint(deletable(instance, later, 90))


def test_runs_that_must_stay_hide_none_that_may_go(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch):
    stays = [made(instance, hourly, key) for key in HOURS]
    operations = [an_operation.execute_in_process(instance=instance).run_id for _ in range(3)]
    monkeypatch.setattr("rl_assets.automation.retention.PAGE", 1)
    later = datetime.now(UTC) + timedelta(days=91)
    assert sorted(deletable(instance, later, 90)) == sorted(operations)
    assert set(stays).isdisjoint(operations)


def test_the_job_leaves_every_partition_materialized(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch):
    old = made(instance, hourly, "08")
    made(instance, hourly, "08")
    made(instance, hourly, "09")
    monkeypatch.setattr("rl_assets.automation.retention.timedelta", lambda days: timedelta(days=-1))
    assert run_retention_job.execute_in_process(instance=instance).success
    assert instance.get_run_by_id(old) is None
    assert instance.get_materialized_partitions(hourly.key) == set(HOURS)
