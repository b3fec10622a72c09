import contextlib
from collections.abc import Iterator
from datetime import datetime, tzinfo
from typing import Any, Self

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange

from rl_assets.alerts import Alert
from rl_assets.automation.alerts import ALERT, Alerts, alert_backlog_sensor, run_failure_alert_sensor
from rl_assets.definitions import build_defs
from rl_assets.errors import MalformedInput, ServiceError

HOUR = "2026-11-23T08:00"
sent: list[Alert] = []
broken: list[bool] = []
refused: set[str] = set()
"""Runs and assets of which no alert is taken."""


class Mailbox(Alerts):
    """A notifier of somebody else's: it keeps what it gets, and takes nothing while it is broken."""

    def notifier(self) -> Any:
        return self

    def notify(self, alert: Alert) -> None:
        if broken:
            raise ServiceError("the mailbox is shut")
        if refused & {alert.subject, alert.run_id}:
            raise ServiceError("the mailbox does not take this one")
        sent.append(alert)


@dg.asset(partitions_def=dg.HourlyPartitionsDefinition("2026-11-23-00:00"))
def hourly() -> None:
    try:
        raise MalformedInput("row 7 has no steps; correct its recorder")
    except MalformedInput as error:
        raise dg.Failure("the window is not whole") from error


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    sent.clear()
    broken.clear()
    refused.clear()
    with dg.DagsterInstance.ephemeral() as one:
        yield one


def failed_run(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    result = dg.materialize([hourly], partition_key="2026-11-23-08:00", instance=instance, raise_on_error=False)
    assert not result.success
    return result


def react(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> None:
    """What the daemon has the sensor do about a run that failed."""
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    context = dg.build_run_status_sensor_context(
        sensor_name=run_failure_alert_sensor.name,
        dagster_instance=instance,
        dagster_run=run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    run_failure_alert_sensor(context, alerts=Mailbox())


def look(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    with dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        repository_def=build_defs().get_repository_def(),
        resources={"alerts": Mailbox()},
    ) as context:
        result = alert_backlog_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def mark(instance: dg.DagsterInstance, run_id: str) -> str | None:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.tags.get(ALERT)


def enter(instance: dg.DagsterInstance, asset: str, state: FreshnessState) -> None:
    """What the freshness daemon enters."""
    change = FreshnessStateChange(
        key=dg.AssetKey(asset),
        new_state=state,
        previous_state=FreshnessState.UNKNOWN,
        state_change_timestamp=1_700_000_000.0,
    )
    instance._report_runless_asset_event(change)


def test_a_failed_run_is_told_with_its_cause_and_where_to_look(instance: dg.DagsterInstance):
    result = failed_run(instance)
    react(instance, result)
    (alert,) = sent
    assert alert.error == "row 7 has no steps; correct its recorder"
    assert (alert.partition, alert.run_id) == ("2026-11-23-08:00", result.run_id)
    assert alert.url == f"http://127.0.0.1:3000/runs/{result.run_id}"
    assert mark(instance, result.run_id) == "sent"
    look(instance)
    assert len(sent) == 1


def test_an_alert_that_did_not_get_out_fails_the_tick_and_is_sent_later(instance: dg.DagsterInstance):
    result = failed_run(instance)
    broken.append(True)
    with pytest.raises(ServiceError, match="mailbox is shut"):
        react(instance, result)
    with pytest.raises(ServiceError, match="mailbox is shut"):
        look(instance)
    assert mark(instance, result.run_id) == "undelivered"
    broken.clear()
    look(instance)
    assert [alert.error for alert in sent] == ["row 7 has no steps; correct its recorder"]
    assert mark(instance, result.run_id) == "sent"


def test_an_asset_that_goes_stale_is_told_once(instance: dg.DagsterInstance):
    cursor = look(instance).cursor
    enter(instance, "judged_rankings", FreshnessState.FAIL)
    enter(instance, "recorded_trajectories", FreshnessState.WARN)
    found = look(instance, cursor)
    assert [(alert.kind, alert.subject) for alert in sent] == [("stale", "judged_rankings")]
    assert "judged_rankings" in str(found.skip_reason)
    look(instance, found.cursor)
    assert len(sent) == 1
    enter(instance, "judged_rankings", FreshnessState.PASS)
    again = look(instance, found.cursor)
    enter(instance, "judged_rankings", FreshnessState.FAIL)
    look(instance, again.cursor)
    assert len(sent) == 2


def test_an_alert_that_is_refused_for_good_keeps_no_other(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    results = [failed_run(instance) for _ in range(4)]
    broken.append(True)
    for result in results:
        with pytest.raises(ServiceError):
            react(instance, result)
    broken.clear()
    refused.update(result.run_id for result in results[1:])
    enter(instance, "judged_rankings", FreshnessState.FAIL)
    enter(instance, "recorded_trajectories", FreshnessState.FAIL)
    refused.add("judged_rankings")
    monkeypatch.setattr("rl_assets.automation.alerts.MOST_SENT", 2)
    cursor = None
    for minute in range(6):
        monkeypatch.setattr("rl_assets.automation.alerts.datetime", clock(60.0 * minute))
        with contextlib.suppress(ServiceError):
            cursor = look(instance, cursor).cursor
    assert [alert.run_id for alert in sent if alert.run_id] == [results[0].run_id]
    assert [alert.subject for alert in sent].count("recorded_trajectories") == 1
    refused.clear()
    for minute in range(6):
        monkeypatch.setattr("rl_assets.automation.alerts.datetime", clock(60.0 * minute))
        cursor = look(instance, cursor).cursor
    assert [alert.subject for alert in sent].count("judged_rankings") == 1
    assert {alert.run_id for alert in sent if alert.run_id} == {result.run_id for result in results}


def test_a_tick_that_is_repeated_sends_nothing_twice(instance: dg.DagsterInstance):
    result = failed_run(instance)
    react(instance, result)
    react(instance, result)
    assert len(sent) == 1


def clock(seconds: float) -> type:
    """A datetime by which it is always the same moment."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(seconds, tz)

    return Stopped


def test_both_sensors_are_on_and_watch_every_job():
    sensors = {sensor.name: sensor for sensor in build_defs().get_repository_def().sensor_defs}
    for name in (run_failure_alert_sensor.name, alert_backlog_sensor.name):
        assert sensors[name].default_status is dg.DefaultSensorStatus.RUNNING
