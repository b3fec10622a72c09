"""What `rl-assets verify` says of Dagster: definitions, daemon, runs, and what has stopped, failed or gone stale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rl_assets import alerts
from rl_assets.settings import Settings
from rl_assets.verify.finding import Finding

if TYPE_CHECKING:
    import dagster as dg

AREA = "automation"
STALE = timedelta(minutes=2)
"""A daemon that has not reported for this long is taken to be down."""
MOST_NAMED = 3
"""Names in one finding; the UI has the rest."""


def automation() -> Iterator[Finding]:
    """The definitions, and the instance that runs them."""
    import dagster as dg

    from rl_assets.definitions import defs

    repository = defs.get_repository_def()
    sensors, schedules = repository.sensor_defs, repository.schedule_defs
    yield Finding(AREA, "definitions", "pass", f"{len(sensors)} sensors and {len(schedules)} schedules load")
    instance = dg.DagsterInstance.get()
    yield from _activity(instance)
    yield from _setup(instance)
    yield from _stopped(instance, repository)


def _activity(instance: dg.DagsterInstance) -> Iterator[Finding]:
    """The daemon, and runs that failed lately."""
    import dagster as dg

    now = datetime.now(UTC)
    beats = [datetime.fromtimestamp(beat.timestamp, UTC) for beat in instance.get_daemon_heartbeats().values()]
    if beats and now - max(beats) < STALE:
        yield Finding(AREA, "daemon", "pass", f"reported {(now - max(beats)).seconds} s ago")
    else:
        last = f"last reported {max(beats):%Y-%m-%d %H:%M} UTC" if beats else "has never reported"
        # An embedded database is often without one: it ends with the command that started it.
        kept = beats and Settings.from_env().database_url
        remedy = "start it again" if kept else "make ui, where new episodes are to be picked up by themselves"
        yield Finding(AREA, "daemon", "fail" if kept else "warn", last, remedy)
    chosen = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], created_after=now - timedelta(days=1))
    failed = instance.get_runs(chosen, limit=100)
    names = sorted({run.job_name for run in failed})
    yield Finding(
        AREA,
        "runs of the last day",
        "warn" if failed else "pass",
        f"{len(failed)} failed: {', '.join(names)}" if failed else "none failed",
        "read their errors: make ui" if failed else "",
    )


def _setup(instance: dg.DagsterInstance) -> Iterator[Finding]:
    pools = instance.get_concurrency_config().pool_config
    for name, good in (
        ("pools", pools.default_pool_limit is not None),
        ("run monitoring", instance.run_monitoring_enabled and instance.run_monitoring_max_runtime_seconds > 0),
        ("freshness", instance.freshness_enabled),
        ("tick retention", bool(instance.get_settings("retention"))),
    ):
        detail = "set" if good else "not set in the instance's dagster.yaml"
        yield Finding(AREA, name, "pass" if good else "warn", detail, "" if good else "take it from dagster.yaml")


def _stopped(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> Iterator[Finding]:
    """What is switched off, fails or waits. What the definitions leave off is no fault."""
    import dagster as dg

    from rl_assets.automation.alerts import ALERT

    instigators = (*repository.sensor_defs, *repository.schedule_defs)
    by_choice = {one.name for one in instigators if one.default_status.value == "STOPPED"}
    ours = {one.name for one in instigators}
    states = [state for state in instance.all_instigator_state() if state.instigator_name in ours]
    stopped = {state.instigator_name for state in states if state.status.value == "STOPPED"}
    on = {state.instigator_name for state in states if state.status.value == "RUNNING"}
    off = _listed("sensors", sorted(stopped - by_choice), "switched off", "switch it on in the UI, under Automation")
    if off.state == "pass" and by_choice - on:
        off = replace(off, detail=f"{off.detail}; off until switched on: {', '.join(sorted(by_choice - on))}")
    yield off
    failing = []
    for state in states:
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1):
            if tick.status.value == "FAILURE" and state.instigator_name not in stopped:
                said = alerts.first_line(tick.error.message if tick.error else "")
                failing.append(f"{state.instigator_name}: {said}")
    yield _listed("ticks", sorted(failing), "failing", "mend what it says")
    undelivered = instance.get_runs_count(dg.RunsFilter(tags={ALERT: "undelivered"}))
    yield Finding(
        AREA,
        "undelivered alerts",
        "warn" if undelivered else "pass",
        f"{undelivered} wait" if undelivered else "none",
        f"see the last tick of alert_backlog_sensor; correct {alerts.WEBHOOK}" if undelivered else "",
    )
    keys = [node.key for node in repository.asset_graph.asset_nodes if node.freshness_policy is not None]
    records = instance.get_freshness_state_records(keys)
    stale = sorted(key.to_user_string() for key, record in records.items() if record.freshness_state.value == "FAIL")
    yield _listed("stale assets", stale, "stale", "docs/operations.md says what to look at")


def _listed(check: str, names: list[str], what: str, remedy: str) -> Finding:
    if not names:
        return Finding(AREA, check, "pass", f"none {what}")
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return Finding(AREA, check, "warn", f"{what}: {', '.join(names[:MOST_NAMED])}{more}", remedy)
