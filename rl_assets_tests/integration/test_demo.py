"""The whole loop through a real daemon, small: what `make demo` does, how it ends, and that nothing is left running."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl_assets_tests.processes import left_running, query, run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_sensor_trains_on_what_was_played_and_on_nothing_twice(looped: Path):
    code, said = run(looped, "demo", "--threshold", "48")
    assert code == 0, said
    assert "readiness before: " in said
    assert re.search(r"batch-[0-9a-f]{16} is (promoted|rejected)", said)
    assert left_running(looped) == []
    claims = query(
        looped,
        """select "trainedInBatch", count(*) from trajectories where "usedInTraining" and "trainedInBatch" in
             (select id from rl_assets.batches where forced_by is null) group by 1""",
    )
    # What the first loop left over may fill a batch too.
    assert len(claims) >= 2
    assert all(count >= 48 for _, count in claims)
    states = [state for (state,) in query(looped, "select state from rl_assets.batches")]
    assert sum(state in ("promoted", "rejected") for state in states) >= 2
    assert not {"failed", "unknown", "freed"}.intersection(states)
    runs = query(looped, "select distinct status, pipeline_name from runs", dagster=True)
    # What was requested in the last moment waits for the next daemon.
    assert [run for run in runs if run[0] not in ("SUCCESS", "QUEUED")] == []

    code, said = run(looped, "verify")
    assert code == 0, said
    assert " 0 fail" in said
    assert left_running(looped) == []
