"""Where secrets could show: in what the UI shows of the configuration, in errors, and in what a failed run records."""

import json
import re
import traceback
from datetime import UTC, datetime

import dagster as dg
import psycopg
import pytest

from rl_assets.assets.shown import plainly
from rl_assets.automation.rollouts import rollout_sensor
from rl_assets.automation.schedules import (
    daily_leaderboard_schedule,
    daily_training_schedule,
    live_tick_schedule,
    market_outcomes_schedule,
)
from rl_assets.automation.sensors import benchmark_snapshot_sensor, training_sensor, trajectory_window_sensor
from rl_assets.definitions import defs
from rl_assets.errors import DatabaseError
from rl_assets.resources import Database, Judge, Trainer
from rl_assets.settings import Settings
from rl_assets.store.database import connect

CANARIES = {
    "WANDB_API_KEY": "canary-wandb-0123456789",
    "RULER_JUDGE_API_KEY": "canary-judge-0123456789",
    "OPENAI_API_KEY": "canary-openai-0123456789",
    "RL_ASSETS_ALERT_WEBHOOK": "https://hooks.example.org/canary-hook-0123456789",
    "DATABASE_URL": "postgresql://me:canary-password-1@127.0.0.1:1/babylon",
    "DAGSTER_PG_URL": "postgresql://me:canary-password-2@127.0.0.1:1/dagster",
    "RULER_JUDGE_MODEL": "openai/judge",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def shown(text: object) -> list[str]:
    return re.findall(r"canary-[a-z]+", str(text))


@dg.asset
def reaching() -> None:
    with plainly(), connect(CANARIES["DATABASE_URL"]):
        pass


@dg.asset
def quoting() -> None:
    with plainly():
        raise RuntimeError(f"401 for {CANARIES['WANDB_API_KEY']} at {CANARIES['RL_ASSETS_ALERT_WEBHOOK']}")


@dg.asset
def wrapping() -> None:
    with plainly():
        try:
            raise RuntimeError(f"401 for {CANARIES['WANDB_API_KEY']}")
        except RuntimeError as error:
            raise DatabaseError("the database cannot be reached; start it") from error


@dg.asset
def together() -> None:
    with plainly():
        raise ExceptionGroup("two requests failed", [ValueError(f"401 for {CANARIES['WANDB_API_KEY']}")])


@dg.asset
def annotated() -> None:
    with plainly():
        error = ValueError("a request failed")
        error.add_note(f"it was sent with {CANARIES['WANDB_API_KEY']}")
        raise error


def test_no_resource_has_a_field_for_a_secret():
    for name, resource in (defs.resources or {}).items():
        for field in type(resource).model_fields:
            assert not re.search(r"(key|token|secret|password|webhook)$", field), f"{name}.{field}"


def test_what_is_configured_holds_no_secret(environment: None):
    settings = Settings.from_env()
    assert settings.ruler.api_key == CANARIES["RULER_JUDGE_API_KEY"]
    assert shown([settings.ruler, settings.serverless]) == []
    assert (
        shown(json.dumps({n: r.model_dump(mode="json") for n, r in (defs.resources or {}).items()}, default=str)) == []
    )


@pytest.mark.parametrize(
    "asset", [reaching, quoting, wrapping, together, annotated], ids=lambda asset: asset.key.to_user_string()
)
def test_a_failed_run_records_no_secret(environment: None, asset: dg.AssetsDefinition):
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([asset], instance=instance, raise_on_error=False)
        assert not result.success
        recorded = [entry.to_json() for entry in instance.all_logs(result.run_id)]
    assert recorded
    assert shown(recorded) == []


def test_an_error_without_a_secret_keeps_its_kind_and_traceback(environment: None):
    with pytest.raises(ZeroDivisionError), plainly():
        _ = 1 / 0


def test_a_connection_that_fails_tells_no_password(environment: None):
    for url in (CANARIES["DATABASE_URL"], "postgresql://me:canary-password-3@no.such.host.invalid/x?sslmode=bogus"):
        with pytest.raises(Exception) as caught:
            connect(url)
        assert shown(caught.value) == []
        assert not isinstance(caught.value, psycopg.Error)


def test_a_tick_that_fails_tells_no_password(monkeypatch: pytest.MonkeyPatch, environment: None):
    """Of every sensor and schedule, whatever a driver says."""

    def refuse(*_: object) -> None:
        raise RuntimeError(f"no route to {CANARIES['DATABASE_URL']}")

    monkeypatch.setattr("rl_assets.store.database.connect", refuse)
    monkeypatch.setenv("LIVE_MARKET_URL", "http://127.0.0.1:1")
    given = {"database": Database(), "trainer": Trainer()}
    ticks = [
        lambda: benchmark_snapshot_sensor(dg.build_sensor_context(), database=given["database"]),
        lambda: trajectory_window_sensor(dg.build_sensor_context(), database=given["database"], judge=Judge()),
        lambda: training_sensor(dg.build_sensor_context(), **given),
        lambda: rollout_sensor(dg.build_sensor_context(), **given),
        lambda: live_tick_schedule(dg.build_schedule_context(), database=given["database"]),
        lambda: market_outcomes_schedule(
            dg.build_schedule_context(scheduled_execution_time=datetime.now(UTC)), database=given["database"]
        ),
        lambda: daily_training_schedule(dg.build_schedule_context(), **given),
        lambda: daily_leaderboard_schedule(dg.build_schedule_context(), **given),
    ]
    with dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setattr(dg.SensorEvaluationContext, "instance", instance)
        monkeypatch.setattr(dg.ScheduleEvaluationContext, "instance", instance)
        for tick in ticks:
            with pytest.raises(dg.Failure) as caught:
                tick()
            assert shown("".join(traceback.format_exception(caught.value))) == []
