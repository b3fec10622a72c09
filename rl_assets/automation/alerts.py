"""What is worth an alert: a run that failed, and an asset that has gone stale. How it is sent is `rl_assets.alerts`'.

A failing webhook fails the tick, where the UI shows it. The run keeps the tag `rl_assets/alert: undelivered` until the
alert has gone out, so an alert comes late rather than never.
"""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.automation.runs import error_of
from rl_assets.errors import ServiceError
from rl_assets.logs import partition_of
from rl_assets.wording import counted

if TYPE_CHECKING:
    from rl_assets.alerts import Alert, Notifier

ALERT = "rl_assets/alert"
"""Tag of runs that failed: `undelivered`, or `sent`."""
MOST_SENT = 5
"""Alerts that a tick sends, as many as Dagster hands a failure sensor: each may take a tenth of its minute."""
MOST_LEFT = 100
"""Runs among which a tick chooses these."""


class Alerts(dg.ConfigurableResource):
    """How people are told. Replace it by a subclass with another `notifier` to reach them in another way."""

    def notifier(self) -> "Notifier":
        """By the webhook that RL_ASSETS_ALERT_WEBHOOK names, or in the log. Raises ConfigurationError."""
        from rl_assets.alerts import notifier

        return notifier()


@dg.run_failure_sensor(
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends an alert for each run that failed: job, partition, run, the first line of its error, and where "
    "to look. A tick fails if the alert could not be sent; alert_backlog_sensor sends it later.",
)
def run_failure_alert_sensor(context: dg.RunFailureSensorContext, alerts: Alerts) -> None:
    run = context.dagster_run
    if run.tags.get(ALERT) == "sent":  # a tick that took too long is repeated
        return
    context.instance.add_run_tags(run.run_id, {ALERT: "undelivered"})
    _send(context.instance, alerts, run)


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends alerts that could not be sent before, and one for each asset that its freshness policy has "
    "found stale since the last look.",
)
def alert_backlog_sensor(context: dg.SensorEvaluationContext, alerts: Alerts) -> dg.SensorResult:
    instance, now = context.instance, int(datetime.now(UTC).timestamp() // 60)
    known: dict[str, str] = json.loads(context.cursor or "{}")
    states = _freshness(context)
    stale = sorted(name for name, state in states.items() if state == "FAIL" and known.get(name) != "FAIL")
    left = instance.get_runs(dg.RunsFilter(tags={ALERT: "undelivered"}), limit=MOST_LEFT)
    waiting = [*stale, *left]
    # In turns, for one that is refused for good must not keep the others.
    chosen = [waiting[(now * MOST_SENT + place) % len(waiting)] for place in range(min(MOST_SENT, len(waiting)))]
    delivered, failures = [], []
    for one in chosen:
        try:
            if isinstance(one, dg.DagsterRun):
                _send(instance, alerts, one)
                delivered.append(f"run {one.run_id}")
            else:
                alerts.notifier().notify(_stale(one))
                delivered.append(one)
        except ServiceError as error:
            failures.append(error)
    for name in set(stale).difference(delivered):
        states[name] = known.get(name, "UNKNOWN")  # so that it is news again
    if failures and not delivered:
        raise failures[0]
    told = "no alert is left to send, and nothing has gone stale since the last look"
    if delivered:
        told = f"alerts are sent for {', '.join(delivered)}"
    if failures:
        lost = f"{counted(len(failures), 'alert')} did not get out and will be sent later: {failures[0]}"
        context.log.error(lost)
        told += f"; {lost}"
    return dg.SensorResult(skip_reason=told, cursor=json.dumps(states, sort_keys=True))


def _send(instance: dg.DagsterInstance, alerts: Alerts, run: dg.DagsterRun) -> None:
    from rl_assets.alerts import Alert, ui_url

    url = f"{ui_url()}/runs/{run.run_id}"
    said = error_of(instance, run.run_id)
    alert = Alert.now("run_failed", run.job_name, said, url, partition=partition_of(run.tags), run_id=run.run_id)
    alerts.notifier().notify(alert)
    instance.add_run_tags(run.run_id, {ALERT: "sent"})


def _stale(name: str) -> "Alert":
    from rl_assets.alerts import Alert, ui_url

    said = "nothing was materialized within the time that its freshness policy allows"
    return Alert.now("stale", name, said, f"{ui_url()}/assets/{name}")


def _freshness(context: dg.SensorEvaluationContext) -> dict[str, str]:
    """By name of asset, the state that the freshness daemon has last entered for it."""
    repository = context.repository_def
    assert repository is not None  # a sensor of a code location always has one
    nodes = repository.asset_graph.asset_nodes
    keys = [node.key for node in nodes if node.freshness_policy is not None]
    records = context.instance.get_freshness_state_records(keys)
    return {key.to_user_string(): record.freshness_state.value for key, record in records.items()}


ALERT_SENSORS = [run_failure_alert_sensor, alert_backlog_sensor]
