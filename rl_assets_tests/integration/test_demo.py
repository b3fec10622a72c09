"""The whole loop through a real daemon, small: what `make demo` does, how it ends, and that nothing is left running."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl_assets_tests.processes import left_running, query, run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_sensor_trains_on_what_was_played_and_the_gate_decides(demo: tuple[Path, str]):
    data, said = demo
    assert "readiness before: " in said
    assert re.search(r"batch-[0-9a-f]{16} is (promoted|rejected)", said)
    claims = query(
        data,
        """select "trainedInBatch", count(*) from trajectories where "usedInTraining" and "trainedInBatch" in
             (select id from rl_assets.batches where forced_by is null) group by 1""",
    )
    assert claims and all(count >= 48 for _, count in claims)
    states = {state for (state,) in query(data, "select state from rl_assets.batches")}
    assert states & {"promoted", "rejected"} and not states & {"failed", "unknown", "freed"}
    runs = query(data, "select distinct status, pipeline_name from runs", dagster=True)
    # What was requested in the last moment waits for the next daemon.
    assert [run for run in runs if run[0] not in ("SUCCESS", "QUEUED")] == []

    code, said = run(data, "verify")
    assert code == 0, said
    assert " 0 fail" in said
    assert left_running(data) == []
