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
    with dg.DagsterInstance.ephemeral() as one:
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


def test_a_run_that_cannot_be_deleted_keeps_no_other_and_is_told(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    stuck, other = (an_operation.execute_in_process(instance=instance).run_id for _ in range(2))
    delete = dg.DagsterInstance.delete_run

    def refuse(self: dg.DagsterInstance, run_id: str) -> None:
        if run_id == stuck:
            raise OSError("the log directory is gone")
        delete(self, run_id)

    monkeypatch.setattr(dg.DagsterInstance, "delete_run", refuse)
    monkeypatch.setattr("rl_assets.automation.retention.timedelta", lambda days: timedelta(days=-1))
    with pytest.raises(dg.Failure, match=f"1 of 2 old runs cannot be deleted, such as {stuck}"):
        run_retention_job.execute_in_process(instance=instance)
    assert instance.get_run_by_id(other) is None
    assert instance.get_run_by_id(stuck) is not None
