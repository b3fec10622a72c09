"""When the leaderboard is made by itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg

from rl_assets.automation.schedules import daily_leaderboard_schedule
from rl_assets.resources import Database, Trainer
from rl_assets_tests.registry.made import LINE, a_base, a_batch

NIGHT = datetime(2026, 11, 24, 4, tzinfo=UTC)


def test_the_leaderboard_is_made_once_after_each_decision(conn: psycopg.Connection, postgres_url: str, tmp_path: Path):
    resources = {"database": Database(url=postgres_url), "trainer": Trainer(model_line=LINE, backend="cpu")}
    with dg.instance_for_test() as instance:

        def look() -> Any:
            with dg.build_schedule_context(
                instance=instance, scheduled_execution_time=NIGHT, resources=resources
            ) as context:
                return daily_leaderboard_schedule(context)

        assert look().skip_message == f"no batch of {LINE} has been decided upon yet"
        a_base(conn, tmp_path)
        batch = a_batch(conn, "1", 0, state="rejected")
        assert look().run_key == f"{batch}:2026-11-24"
        instance.report_runless_asset_event(dg.AssetMaterialization("benchmark_leaderboard"))
        assert look().skip_message.startswith("no batch has been decided upon since the leaderboard of ")
        conn.execute("UPDATE rl_assets.batches SET updated_at = now() + interval '1 minute'")
        assert look().run_key == f"{batch}:2026-11-24"
