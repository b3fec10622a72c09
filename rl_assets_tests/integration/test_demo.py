"""The whole loop through a real daemon, small: what `make demo` does, how it ends, and that nothing is left running."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from rl_assets_tests.processes import SMALL, left_running, query, run, settled, start

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def data(reachable: Path, weak_policy: Path) -> Path:
    return settled(reachable, weak_policy)


def test_the_sensor_trains_on_what_was_played_and_on_nothing_twice(looped: Path):
    code, said = run(looped, *SMALL)
    assert code == 0, said
    assert "readiness before: " in said
    assert re.search(r"batch-[0-9a-f]{16} is (promoted|rejected)", said)
    assert left_running(looped) == []
    claims = query(looped, 'select "trainedInBatch", count(*) from trajectories where "usedInTraining" group by 1')
    # What the first loop left over may fill a batch too.
    assert len(claims) >= 2
    assert all(count >= 24 for _, count in claims)
    states = [state for (state,) in query(looped, "select state from rl_assets.batches")]
    assert sum(state in ("promoted", "rejected") for state in states) >= 2
    assert not {"failed", "unknown", "freed"}.intersection(states)
    runs = query(looped, "select status, count(*) from runs group by 1", dagster=True)
    assert [status for status, _ in runs] == ["SUCCESS"]

    code, said = run(looped, "verify")
    assert code == 0, said
    assert " 0 fail" in said
    assert left_running(looped) == []


def test_below_the_threshold_nothing_is_trained_and_the_code_says_so(data: Path):
    code, said = run(data, *SMALL[:-1], "100000")
    assert code == 3, said
    assert "of 100000 fresh episodes: nothing is trained" in said
    assert left_running(data) == []
    assert query(data, 'select 1 from trajectories where "usedInTraining"') == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_running(data: Path, number: signal.Signals):
    command = start(data, *SMALL)
    deadline = time.monotonic() + 120
    assert command.stdout is not None
    for line in command.stdout:
        assert time.monotonic() < deadline
        if "digest of what was played" in line:
            break
    command.send_signal(number)
    command.communicate(timeout=90)
    assert command.returncode == 130
    assert left_running(data) == []


def test_one_seed_is_played_alike_twice(data: Path):
    digests = set()
    for _ in range(2):
        code, said = run(data, "harness", "--snapshots", "4", "--siblings", "4", "--gate-snapshots", "4", "--seed", "7")
        assert code == 0, said
        digests.add(re.findall(r"digest of what was played: ([0-9a-f]{64})", said)[0])
    assert len(digests) == 1
    assert query(data, "select count(*) from rl_assets.snapshots where split = 'train'") == [(4,)]
