"""What `rl-assets verify` says of operation: migrations, the role, who is told, what waits, and what has stopped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg

from rl_assets import alerts, logs, outbound
from rl_assets.errors import ConfigurationError, RlAssetsError
from rl_assets.settings import Settings
from rl_assets.store.database import MIGRATIONS
from rl_assets.store.live import live_agents
from rl_assets.turns import MARKET_URL
from rl_assets.verify import Finding

AREA = "operations"
MARKET_SECONDS = 10.0
MOST_NAMED = 3
"""Names in one finding; the UI has the rest."""


def operations(conn: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """The database's version and role, how people are told, and Dagster's instance."""
    yield from _database(conn, settings)
    yield from _settings(settings)
    yield _live(conn)
    yield from _instance()


def newest_migration(directory: Path = MIGRATIONS / "versions") -> str:
    """The revision that the code wants the database to have."""
    return max(path.name[1:5] for path in directory.glob("v[0-9][0-9][0-9][0-9]_*.py"))


def _database(conn: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    wanted = newest_migration()
    known = conn.execute("SELECT to_regclass('rl_assets.alembic_version')").fetchone()
    row = conn.execute("SELECT version_num FROM rl_assets.alembic_version").fetchone() if known and known[0] else None
    found = row[0] if row else "none"
    remedy = "" if found == wanted else "rl-assets db migrate, as the owner of the tables"
    yield Finding(
        AREA, "migrations", "pass" if found == wanted else "fail", f"at {found}, the code wants {wanted}", remedy
    )
    superuser = conn.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    if settings.database_url is not None and superuser is not None and superuser[0]:
        detail, remedy = (
            "a superuser, who may do anything to Babylon's tables",
            "rl-assets db role NAME prints a lesser",
        )
        yield Finding(AREA, "role", "warn", detail, remedy)
    else:
        yield Finding(AREA, "role", "pass", "no superuser" if settings.database_url else "the embedded server's own")


def _settings(settings: Settings) -> Iterator[Finding]:
    try:
        told = alerts.notifier()
        where = alerts.ui_url()
    except ConfigurationError as error:
        yield Finding(AREA, "alerts", "fail", str(error), "see the message")
    else:
        if isinstance(told, alerts.WebhookNotifier):
            yield Finding(AREA, "alerts", "pass", f"by the webhook, with links to {where}")
        else:
            state = "pass" if settings.database_url is None else "warn"
            remedy = f"set {alerts.WEBHOOK}" if state == "warn" else ""
            yield Finding(AREA, "alerts", state, "in the log alone", remedy)
    for name, read in (("private hosts", outbound.PrivateHosts.from_env), ("JSON log", logs.log_file)):
        try:
            found = read()
        except ConfigurationError as error:
            yield Finding(AREA, name, "fail", str(error), "see the message")
        else:
            yield Finding(AREA, name, "pass", str(found) if found is not None else "off")


def _live(conn: psycopg.Connection) -> Finding:
    """Whether the live agents have a market to play and points to play with."""
    url = os.environ.get(MARKET_URL, "").strip()
    if not url:
        return Finding(AREA, "live agents", "pass", f"off: {MARKET_URL} is unset")
    try:
        outbound.check_url(url, MARKET_URL)
    except ConfigurationError as error:
        return Finding(AREA, "live agents", "fail", str(error), "see the message")
    agents = live_agents(conn, active=True)
    if not agents:
        detail = f"{MARKET_URL} is set and no agent is active"
        return Finding(AREA, "live agents", "warn", detail, "rl-assets live register NAME")
    if (trouble := _no_market(url)) is not None:
        return Finding(
            AREA, "live agents", "fail", trouble, f"start it with `rl-assets serve`, or correct {MARKET_URL}"
        )
    resting = [reason for agent in agents if (reason := agent.rests)]
    detail = f"{len(agents)} active, {len(resting)} without points"
    return Finding(AREA, "live agents", "warn" if resting else "pass", detail, resting[0] if resting else "")


def _no_market(url: str) -> str | None:
    """Why no live market answers at a URL, or None where one does."""
    from rl_assets.agents.coordinator import check_market

    try:
        asyncio.run(asyncio.wait_for(check_market(url), MARKET_SECONDS))
    except TimeoutError:
        return f"nothing at {MARKET_URL} answers within {MARKET_SECONDS:.0f} s"
    except RlAssetsError as error:
        return str(error)
    return None


def _instance() -> Iterator[Finding]:
    """How Dagster's instance is set up, and what has stopped, failed or gone stale in it."""
    import dagster as dg

    from rl_assets.automation.alerts import ALERT
    from rl_assets.definitions import defs

    instance = dg.DagsterInstance.get()
    pools = instance.get_concurrency_config().pool_config
    for name, good in (
        ("pools", pools.default_pool_limit is not None),
        ("run monitoring", instance.run_monitoring_enabled and instance.run_monitoring_max_runtime_seconds > 0),
        ("freshness", instance.freshness_enabled),
        ("tick retention", bool(instance.get_settings("retention"))),
    ):
        detail = "set" if good else "not set in the instance's dagster.yaml"
        yield Finding(AREA, name, "pass" if good else "warn", detail, "" if good else "take it from dagster.yaml")
    repository = defs.get_repository_def()
    ours = {one.name for one in (*repository.sensor_defs, *repository.schedule_defs)}
    states = [state for state in instance.all_instigator_state() if state.instigator_name in ours]
    stopped = sorted(state.instigator_name for state in states if state.status.value == "STOPPED")
    yield _listed("sensors", stopped, "switched off", "switch it on in the UI, under Automation")
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
