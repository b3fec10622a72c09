"""`rl-assets harness` as a process: below the threshold, by a seed, and interrupted; nothing is left running."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rl_assets.episodes import Episode
from rl_assets.services import databases
from rl_assets.settings import Settings
from rl_assets.store.database import connect
from rl_assets.store.episodes import read_episodes
from rl_assets.store.snapshots import list_snapshots
from rl_assets_tests.processes import a_reachable_directory, left_running, query, run, settled, start

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

SIZE = ["--snapshots", "4", "--siblings", "4", "--gate-snapshots", "4"]
SMALL = ["harness", "--train", *SIZE]
DIGEST = re.compile(r"digest of what was played: ([0-9a-f]+)")


@pytest.fixture(scope="module")
def below(weak_policy: Path) -> Iterator[tuple[Path, int, str]]:
    """A data directory on which less was played than a training needs, with seed 7, the exit code and what was said."""
    with a_reachable_directory() as directory:
        data = settled(directory, weak_policy)
        yield data, *run(data, *SMALL, "--seed", "7", "--threshold", "100000")


def test_below_the_threshold_nothing_is_trained_and_the_code_says_so(below: tuple[Path, int, str]):
    data, code, said = below
    assert code == 3, said
    assert "of 100000 fresh episodes: nothing is trained" in said
    assert left_running(data) == []
    assert query(data, 'select 1 from trajectories where "usedInTraining"') == []


def test_a_seed_is_played_alike_by_any_process(below: tuple[Path, int, str]):
    data, _, said = below
    code, said_again = run(data, "harness", *SIZE, "--seed", "7")
    assert code == 0, said_again
    (digest,), (digest_again,) = DIGEST.findall(said), DIGEST.findall(said_again)
    assert digest == digest_again
    with databases(Settings(data)) as urls, connect(urls.babylon) as conn:
        ids = [identity for (identity,) in conn.execute('SELECT "trajectoryId" FROM trajectories')]
        by_play: dict[tuple, list[Episode]] = {}
        for episode in read_episodes(conn, ids).values():
            play = str(episode.policy), str(episode.snapshot_id), episode.sibling
            by_play.setdefault(play, []).append(episode)
        for play, (one, other) in sorted(by_play.items()):
            for there, here in zip(one.steps, other.steps, strict=True):
                assert replace(here, latency_ms=there.latency_ms) == there, play
        assert [row.split for row in list_snapshots(conn, split="train")] == ["train"] * 4


def test_an_interrupted_command_leaves_nothing_running(below: tuple[Path, int, str]):
    """By SIGTERM; `ui` is ended by SIGINT, for all tests on one loop. What all three commands play makes a batch."""
    data, *_ = below
    command = start(data, *SMALL, "--threshold", "48")
    deadline = time.monotonic() + 600
    assert command.stdout is not None
    for line in command.stdout:
        assert time.monotonic() < deadline
        if "digest of what was played" in line:
            break
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=300)
    assert command.returncode == 130
    assert left_running(data) == []
