from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets import harness
from rl_assets.errors import ConfigurationError
from rl_assets.harness import AGENTS, PLAYABLE, SEEDS_PER_RUN, Plan
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY
from rl_assets.settings import Settings
from rl_assets.store.episodes import read_episodes
from rl_assets.store.ledger import Readiness
from rl_assets.store.snapshots import list_snapshots
from rl_assets_tests.processes import settled

SMALL = Plan(snapshots=3, siblings=2, seed=5, gate_snapshots=4)


def silent(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, weak_policy: Path) -> Settings:
    """A data directory with a base policy that has imitated little."""
    return Settings(settled(tmp_path_factory.mktemp("data"), weak_policy))


def test_two_runs_with_one_seed_play_the_same_and_another_seed_does_not(conn: psycopg.Connection, settings: Settings):
    model = harness.live_model(conn, settings, silent)
    first = harness.run(conn, settings, SMALL, model, silent)
    second = harness.run(conn, settings, SMALL, model, silent)
    other = harness.run(conn, settings, Plan(snapshots=3, siblings=2, seed=6), model, silent)
    assert first.digest == second.digest != other.digest
    assert not set(first.trajectory_ids) & set(second.trajectory_ids)
    assert len(first.trajectory_ids) == 3 * (2 + len(AGENTS) - 1)
    assert len(first.trainable_ids) == 3 * 2


def test_what_was_played_is_what_is_recorded(conn: psycopg.Connection, settings: Settings):
    model = harness.live_model(conn, settings, silent)
    played = harness.run(conn, settings, SMALL, model, silent)
    recorded = read_episodes(conn, played.trajectory_ids)
    assert harness.digest(sorted(episode.content_hash for episode in recorded.values())) == played.digest
    assert {row.agent for row in played.rows} == {settings.model_line, *AGENTS[1:]}
    of_model = [e for e in recorded.values() if e.policy.step == 0]
    assert sum(e.trades for e in of_model) / len(of_model) == next(r.trades for r in played.rows if "@0" in r.policy)


def test_an_unplayed_seed_follows_the_highest_played_one(conn: psycopg.Connection, settings: Settings):
    harness.provide(conn, settings, "train", [7 * SEEDS_PER_RUN + 12])
    assert harness.next_seed(conn) == 8
    assert {row.split for row in list_snapshots(conn)} >= {"train"}


def test_the_base_policy_has_imitated_no_day_that_is_played():
    from rl_assets.training.base import WARM_START_SEEDS

    assert not set(PLAYABLE) & set(WARM_START_SEEDS)


@given(fresh=st.integers(0, 3000), minimum=st.integers(1, 3000), siblings=st.integers(1, 64))
def test_enough_is_played_in_whole_days_and_never_nothing(fresh: int, minimum: int, siblings: int):
    ready = Readiness(fresh=fresh, trainable_groups=0, waiting_groups=0, claimed=0, in_flight_batch=None)
    count = harness.snapshots_for(ready, minimum, siblings)
    assert 0 < count <= SEEDS_PER_RUN
    assert count % SNAPSHOTS_PER_DAY == 0
    assert count == SEEDS_PER_RUN or fresh + count * siblings >= minimum


@pytest.mark.parametrize(
    "wrong", [{"siblings": 0}, {"snapshots": 0}, {"seed": 10**9}, {"agents": ()}, {"agents": ("zeus",)}]
)
def test_a_plan_that_cannot_be_played_is_refused(wrong: dict):
    with pytest.raises(ConfigurationError):
        Plan(**wrong)


def test_a_named_world_is_the_same_again(conn: psycopg.Connection, settings: Settings):
    before = harness.provide(conn, settings, "gate", [800_000])
    files = {path: path.read_bytes() for path in settings.tree.snapshots.rglob("*.json")}
    assert [s.id for s, _ in harness.provide(conn, settings, "gate", [800_000])] == [s.id for s, _ in before]
    assert {path: path.read_bytes() for path in files} == files
