from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from rl_assets.automation.jobs import live_tick_job
from rl_assets.automation.schedules import live_tick_schedule
from rl_assets.resources import Database, Lake, Trainer
from rl_assets.store.live import live_agents, stop
from rl_assets_tests.a2a.sdk import Servers
from rl_assets_tests.agents.live import enrol

AT = datetime(2026, 11, 25, 10, 5, tzinfo=UTC)


def looked(url: str) -> dg.RunRequest | dg.SkipReason:
    context = dg.build_schedule_context(scheduled_execution_time=AT, resources={"database": Database(url=url)})
    found = live_tick_schedule(context)
    assert isinstance(found, (dg.RunRequest, dg.SkipReason))
    return found


def ticked(postgres_url: str, data: Path, **config: Any) -> dg.ExecuteInProcessResult:
    return live_tick_job.execute_in_process(
        run_config={"ops": {"tick_live_agents": {"config": config}}},
        resources={
            "database": Database(url=postgres_url),
            "lake": Lake(directory=str(data)),
            "trainer": Trainer(model_line="babylon-agent"),
        },
        raise_on_error=False,
    )


def test_the_schedule_says_what_a_person_can_do_while_there_is_nothing_to_play(
    conn: psycopg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("LIVE_MARKET_URL", raising=False)
    reasons = [looked(postgres_url)]
    monkeypatch.setenv("LIVE_MARKET_URL", "http://127.0.0.1:1/")
    reasons.append(looked(postgres_url))
    enrol(conn, "rule", "reference", {"name": "hold"}, points=0)
    reasons.append(looked(postgres_url))
    stop(conn, "rule")
    reasons.append(looked(postgres_url))
    assert [reason.skip_message for reason in reasons if isinstance(reason, dg.SkipReason)] == [
        "no live market is named; set LIVE_MARKET_URL to the URL of one that `rl-assets serve` runs",
        "no live agent is registered; register one with `rl-assets live register`",
        "every active live agent rests for want of points (rule: it has 0 points and a tick costs 1: "
        "`rl-assets live points rule 100`)",
        "no live agent is active, of 1 registered; register one again to start it",
    ]


def test_the_schedule_requests_one_run_per_tick_and_the_job_plays_it(
    conn: psycopg.Connection, postgres_url: str, serve: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LIVE_MARKET_URL", serve().url)
    enrol(conn, "rule", "reference", {"name": "momentum"})
    request = looked(postgres_url)
    assert isinstance(request, dg.RunRequest)
    assert request.run_key == "live:2026-11-25T10:05"
    assert request.run_config == {"ops": {"tick_live_agents": {"config": {"tick": "2026-11-25T10:05"}}}}
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M}"
    for outcome in ("rule', 'outcome': 'played", "rule', 'outcome': 'played"):
        result = ticked(postgres_url, tmp_path, tick=now)
        assert result.success
        (told,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
        assert outcome in str(told.step_output_data.metadata["agents"])
    assert live_agents(conn)[0].points == 99


def test_a_market_that_cannot_be_played_fails_the_run_with_one_sentence(
    conn: psycopg.Connection, postgres_url: str, tmp_path: Path
):
    enrol(conn, "rule", "reference", {"name": "momentum"})
    result = ticked(postgres_url, tmp_path, market_url="http://127.0.0.1:1/")
    (failure,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    assert "cannot be played" in str(failure.step_failure_data.user_failure_data or failure.step_failure_data.error)
    assert live_agents(conn)[0].points == 100
