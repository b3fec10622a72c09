"""What `rl-assets verify` says of operation on a real instance of dagster.yaml, and that the runbook was tried."""

from __future__ import annotations

import re
import shutil
import socket
import time
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, SensorInstigatorData
from dagster._daemon.types import DaemonHeartbeat

from rl_assets.automation.alerts import ALERT
from rl_assets.registry.models import promote, reject
from rl_assets.settings import REPOSITORY, Settings
from rl_assets.store.database import connect
from rl_assets.store.live import give_points, register
from rl_assets.verify.areas import database, registry
from rl_assets.verify.automation import automation
from rl_assets.verify.finding import Finding
from rl_assets.verify.operations import newest_migration, operations
from rl_assets_tests.a2a.sdk import Servers
from rl_assets_tests.registry.made import LINE, a_base, a_batch, a_candidate, evaluated


@pytest.fixture
def instance(empty_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    """Dagster's instance as dagster.yaml has it, on a database of its own."""
    for name in (
        "RL_ASSETS_ALERT_WEBHOOK",
        "RL_ASSETS_JSON_LOG",
        "RL_ASSETS_PRIVATE_HOSTS",
        "RL_ASSETS_UI_URL",
        "LIVE_MARKET_URL",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("DAGSTER_HOME", str(REPOSITORY))
    monkeypatch.setenv("DAGSTER_PG_URL", empty_postgres_url)
    monkeypatch.setenv("RL_ASSETS_DAGSTER_DIR", str(tmp_path))
    return dg.DagsterInstance.get()


def found(conn: psycopg.Connection, settings: Settings) -> dict[str, Finding]:
    return {finding.check: finding for finding in (*automation(), *operations(conn, settings))}


def test_a_new_installation_is_in_order(conn: psycopg.Connection, instance: dg.DagsterInstance, tmp_path: Path):
    findings = found(conn, Settings(tmp_path))
    assert {name: one.state for name, one in findings.items() if one.state != "pass"} == {"daemon": "warn"}
    assert findings["daemon"].detail == "has never reported"
    assert findings["private hosts"].detail == "localhost, 127.0.0.0/8, ::1/128"
    assert set(findings) >= {"migrations", "role", "alerts", "private hosts", "JSON log", "pools", "run monitoring"}
    assert set(findings) >= {"freshness", "tick retention", "sensors", "ticks", "undelivered alerts", "stale assets"}


@pytest.mark.parametrize(("database_url", "state"), [("", "warn"), ("postgresql://me@host/babylon", "fail")])
def test_a_daemon_that_fell_silent_is_a_failure_where_the_database_is_ones_own(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, database_url: str, state: str
):
    long_ago = DaemonHeartbeat(time.time() - 3600, "SENSOR", "one", [])
    instance.add_daemon_heartbeat(long_ago)
    monkeypatch.setenv("DATABASE_URL", database_url)
    (daemon,) = [finding for finding in automation() if finding.check == "daemon"]
    assert (daemon.state, daemon.detail[:13]) == (state, "last reported")


def test_live_agents_need_a_market_and_points(
    conn: psycopg.Connection,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serve: Servers,
):
    def live() -> tuple[str, str, str]:
        one = found(conn, Settings(tmp_path))["live agents"]
        return one.state, one.detail, one.remedy

    assert live() == ("pass", "off: LIVE_MARKET_URL is unset", "")
    monkeypatch.setenv("LIVE_MARKET_URL", "ftp://market/")
    assert live()[0] == "fail"
    monkeypatch.setenv("LIVE_MARKET_URL", "http://127.0.0.1:3100/")
    assert live() == ("warn", "LIVE_MARKET_URL is set and no agent is active", "rl-assets live register NAME")
    register(conn, "steady", "reference", {"name": "hold"}, scenario="s", cost=5, seconds=60, memory_mb=512)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("LIVE_MARKET_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert live()[0] == "fail"
    assert "cannot be played" in live()[1]
    monkeypatch.setenv("LIVE_MARKET_URL", serve().url)
    assert live()[:2] == ("warn", "1 active, 1 without points")
    assert "rl-assets live points steady 100" in live()[2]
    give_points(conn, "steady", 100, "a test")
    assert live() == ("pass", "1 active, 0 without points", "")


def test_what_is_wrong_is_said_with_what_to_do(
    conn: psycopg.Connection, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    conn.execute("UPDATE rl_assets.alembic_version SET version_num = '0001'")
    monkeypatch.setenv("RL_ASSETS_PRIVATE_HOSTS", "10.0.0.0/99")
    monkeypatch.setenv("RL_ASSETS_JSON_LOG", "/no/such/directory/log")
    monkeypatch.setenv("RL_ASSETS_ALERT_WEBHOOK", "http://169.254.169.254/")
    failed = instance.create_run_for_job(an_operation)
    instance.add_run_tags(failed.run_id, {ALERT: "undelivered"})
    switch_off(instance, "training_sensor")
    production = Settings(tmp_path, database_url="postgresql://me@host/babylon")
    findings = found(conn, production)
    assert {name: one.state for name, one in findings.items() if one.state != "pass"} == {
        "daemon": "warn",
        "migrations": "fail",
        "role": "warn",  # the embedded server's own, which production would not use
        "alerts": "fail",
        "private hosts": "fail",
        "JSON log": "fail",
        "sensors": "warn",
        "undelivered alerts": "warn",
    }
    assert findings["migrations"].detail == f"at 0001, the code wants {newest_migration()}"
    assert "rl-assets db migrate" in findings["migrations"].remedy
    assert findings["sensors"].detail == "switched off: training_sensor"
    assert all(one.remedy for one in findings.values() if one.state != "pass")


def test_what_is_off_on_purpose_is_named_and_no_warning(
    conn: psycopg.Connection, instance: dg.DagsterInstance, tmp_path: Path
):
    left_off = ("pass", "none switched off; off until switched on: live_tick_schedule, weekly_prune_schedule", "")
    for name in ("nothing_yet", "weekly_prune_schedule"):
        switch_off(instance, name)
        looks = [one for one in automation() if "schedule" in f"{one.check} {one.detail}"]
        assert {one.check for one in looks} == {"definitions", "sensors"}
        assert [(one.state, one.detail, one.remedy) for one in looks if one.check == "sensors"] == [left_off]


def test_tables_in_a_schema_of_the_game_are_found_and_a_missing_index_is_told(postgres_url: str):
    with connect(postgres_url) as conn:
        conn.execute('DROP INDEX "rl_assets_trajectories_news_idx"')
        conn.execute("ALTER SCHEMA public RENAME TO game; CREATE SCHEMA public")
    with connect(f"{postgres_url}?schema=game") as conn:
        findings = {finding.check: finding for finding in database(conn)}
    assert {name: one.state for name, one in findings.items() if one.state != "pass"} == {"index on news": "warn"}
    assert "docs/production.md" in findings["index on news"].remedy


def test_a_champion_that_the_games_app_cannot_play_is_told(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    promoted = a_candidate(conn, tmp_path, 1)
    evaluated(conn, promoted, promote=True)
    promote(conn, LINE, promoted.step)
    for url, states in ((None, set()), ("postgresql://me@host/babylon", {"warn"})):
        settings = Settings(tmp_path, database_url=url, model_line=LINE)
        assert {f.state for f in registry(conn, settings) if f.check == "the game's app"} == states


def test_without_a_webhook_production_is_warned(
    conn: psycopg.Connection, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    production = Settings(tmp_path, database_url="postgresql://me@host/babylon")
    assert found(conn, production)["alerts"].state == "warn"
    monkeypatch.setenv("RL_ASSETS_ALERT_WEBHOOK", "https://hooks.example.org/T0/x1y2z3")
    alerts = found(conn, production)["alerts"]
    assert alerts.state == "pass"
    assert "x1y2z3" not in alerts.detail


def test_every_row_of_the_runbook_names_tests_that_exist():
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.split("| what one sees |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) >= 15
    for row in table:
        tests = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row.rsplit("|", 2)[1])
        assert tests, row
        for path, name in tests:
            source = (REPOSITORY / "rl_assets_tests" / path).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, f"{path}::{name}"


def test_the_threat_model_names_tests_that_exist():
    text = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`", text)
    assert len(named) >= 10
    assert [path for path in named if not (REPOSITORY / "rl_assets_tests" / path).is_file()] == []


@dg.op
def nothing() -> None: ...


@dg.job
def an_operation() -> None:
    nothing()


def switch_off(instance: dg.DagsterInstance, name: str) -> None:
    """What the UI does."""
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.remote_origin import (
        ManagedGrpcPythonEnvCodeLocationOrigin,
        RemoteInstigatorOrigin,
        RemoteRepositoryOrigin,
    )
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

    where = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="rl_assets.definitions"))
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(where, "__repository__"), name)
    instance.add_instigator_state(
        InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.STOPPED, SensorInstigatorData())
    )


def test_a_lost_checkpoint_is_told_where_somebody_may_want_it(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    for step, is_better in ((1, True), (2, True), (3, False)):
        evaluated(conn, a_candidate(conn, tmp_path, step), promote=is_better)
        (promote if is_better else reject)(conn, LINE, step)
    for lost in (1, 3):
        shutil.rmtree(tmp_path / LINE / f"{lost:04d}")
    # One that was turned down is deleted at W&B, whatever was trained on it.
    evaluated(conn, a_candidate(conn, tmp_path, 4), promote=False)
    reject(conn, LINE, 4)
    conn.execute("UPDATE rl_assets.models SET checkpoint_path = 'wandb-artifact:///team/p/line:step4' WHERE step = 4")
    a_batch(conn, "later", 4, state="rejected")
    told = [finding for finding in registry(conn, Settings(tmp_path, model_line=LINE)) if finding.state != "pass"]
    assert [(finding.check, finding.state) for finding in told if finding.check.startswith("step")] == [
        ("step 1", "warn")
    ]
