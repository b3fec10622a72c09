"""What `rl-assets verify` says of operation: migrations, the role, who is told, and whether live agents can play."""

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
from rl_assets.verify.finding import Finding

AREA = "operations"
MARKET_SECONDS = 10.0


def operations(conn: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """The database's version and role, how people are told, and the live agents."""
    yield from _database(conn, settings)
    yield from _settings(settings)
    yield _live(conn)


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
