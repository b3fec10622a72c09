"""The assets from snapshots to rankings, materialized in process on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pyarrow.parquet as pq
import pytest

from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.assets.groups import grpo_groups
from rl_assets.assets.rankings import judged_rankings
from rl_assets.assets.snapshots import CHECKS, benchmark_snapshots
from rl_assets.assets.trajectories import recorded_trajectories
from rl_assets.automation.partitions import SNAPSHOTS
from rl_assets.harness import provide
from rl_assets.logs import RANGE_END, RANGE_START
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import save_snapshot
from rl_assets.resources import Database, Judge, Lake, Trainer
from rl_assets.settings import Settings
from rl_assets.store.agents import provision_agents
from rl_assets.store.episodes import new_ids, write_episodes
from rl_assets.store.snapshots import list_snapshots, register_snapshots
from rl_assets.windows import start_of

pytestmark = pytest.mark.usefixtures("undrawn")

WINDOW_ASSETS = [recorded_trajectories, grpo_groups, judged_rankings]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as one:
        yield one


def materialized(
    assets: list[dg.AssetsDefinition], key: str, instance: dg.DagsterInstance, url: str, data: Path | str
) -> dg.ExecuteInProcessResult:
    resources = {
        "database": Database(url=url),
        "lake": Lake(directory=str(data)),
        "judge": Judge(kind="outcome"),
        "trainer": Trainer(),
    }
    return dg.materialize(
        assets, partition_key=key, instance=instance, resources=resources, raise_on_error=False, selection=assets
    )


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {e.check_name: e.passed for e in result.get_asset_check_evaluations()}


def why(result: dg.ExecuteInProcessResult) -> str:
    failures = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    return str(failures[0].step_failure_data.user_failure_data or failures[0].step_failure_data.error)


def a_registered_snapshot(conn: psycopg.Connection, instance: dg.DagsterInstance) -> str:
    snapshot = generate("train", 5)[0]
    register_snapshots(conn, [snapshot])
    instance.add_dynamic_partitions(str(SNAPSHOTS.name), [snapshot.id])
    return snapshot.id


def test_a_snapshot_is_generated_audited_and_marked(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    key = a_registered_snapshot(conn, instance)
    result = materialized([benchmark_snapshots], key, instance, postgres_url, tmp_path)
    assert result.success
    found = verdicts(result)
    assert found == dict.fromkeys((*CHECKS, "skill_is_measurable"), True)
    assert (tmp_path / "snapshots" / key / "public.json").is_file()
    assert [row.materialized_at is None for row in list_snapshots(conn)] == [False]


def test_each_snapshot_of_a_range_has_its_picture_up_to_a_bound(
    conn: psycopg.Connection,
    postgres_url: str,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("rl_assets.assets.snapshots.MOST_PICTURES", 2)
    worlds = [generate("train", seed)[0] for seed in range(3)]
    register_snapshots(conn, worlds)
    keys = sorted(snapshot.id for snapshot in worlds)
    instance.add_dynamic_partitions(str(SNAPSHOTS.name), keys)
    result = dg.materialize(
        [benchmark_snapshots],
        instance=instance,
        resources={"database": Database(url=postgres_url), "lake": Lake(directory=str(tmp_path))},
        tags={RANGE_START: keys[0], RANGE_END: keys[-1]},
    )
    shown = {
        str(made.partition): str(made.metadata["price_paths"].value)
        for made in result.asset_materializations_for_node("benchmark_snapshots")
    }
    assert ["data:image/png" in shown[key] for key in keys] == [True, True, False]
    assert "materialize this one alone" in shown[keys[2]]


def test_one_snapshot_says_whether_skill_shows_on_worlds_of_its_kind(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    silent = generate("train", 5, WorldConfig(post_rate=0.0))[0]
    register_snapshots(conn, [silent])
    instance.add_dynamic_partitions(str(SNAPSHOTS.name), [silent.id])
    result = materialized([benchmark_snapshots], silent.id, instance, postgres_url, tmp_path)
    assert result.success
    assert verdicts(result) == {**dict.fromkeys(CHECKS, True), "skill_is_measurable": False}


def test_a_snapshot_that_comes_out_differently_is_not_written(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    key = a_registered_snapshot(conn, instance)
    conn.execute("UPDATE rl_assets.snapshots SET seed = 6")
    result = materialized([benchmark_snapshots], key, instance, postgres_url, tmp_path)
    assert not result.success
    assert verdicts(result) == {"deterministic": False}
    assert not (tmp_path / "snapshots").exists()
    assert [row.materialized_at for row in list_snapshots(conn)] == [None]


def played_hour(conn: psycopg.Connection, data: Path, settings: Settings | None = None) -> str:
    """Record what random agents did on two snapshots; the window that it falls into."""
    worlds = provide(conn, settings or Settings(data), "train", range(2))
    agent = provision_agents(conn, ["random"])["random"]
    episodes = play([Assignment(ReferenceAgent("random"), agent, 8)], worlds, seed=1, new_ids=new_ids)
    write_episodes(conn, episodes)
    return str(episodes[0].window_id)


def test_malformed_rows_go_to_quarantine_and_stop_nothing(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    window = played_hour(conn, tmp_path)
    conn.execute(
        """UPDATE trajectories SET "stepsJson" = '[{"broken":' WHERE "trajectoryId" = (
             SELECT max("trajectoryId") FROM trajectories)"""
    )
    result = materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path)
    assert result.success
    found = verdicts(result)
    assert found.pop("nothing_quarantined") is False
    assert set(found.values()) == {True}
    directory = tmp_path / "windows" / window.replace(":", "")
    assert pq.read_table(directory / "trajectories.parquet").num_rows == 15
    (reject,) = pq.read_table(directory / "quarantine.parquet").to_pylist()
    assert reject["reason"] == "bad_json"


@pytest.mark.parametrize("name", ["train-000042-0123456789ab", "babylon-0123456789ab", "../../etc/passwd", ""])
def test_an_episode_of_an_unknown_snapshot_goes_to_quarantine_and_stops_nothing(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path, name: str
):
    window = played_hour(conn, tmp_path)
    conn.execute(
        """UPDATE trajectories SET "metadataJson" = regexp_replace("metadataJson", '"snapshotId":"[^"]+"', %s)
           WHERE "trajectoryId" = (SELECT max("trajectoryId") FROM trajectories)""",
        [f'"snapshotId":"{name}"'],
    )
    result = materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path)
    assert result.success
    assert verdicts(result)["nothing_quarantined"] is False
    directory = tmp_path / "windows" / window.replace(":", "")
    assert pq.read_table(directory / "trajectories.parquet").num_rows == 15
    (reject,) = pq.read_table(directory / "quarantine.parquet").to_pylist()
    assert reject["reason"] == "unknown_snapshot"


def test_a_tampered_reward_stops_its_window_before_it_is_judged(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    window = played_hour(conn, tmp_path)
    forged = """regexp_replace("metadataJson", '"expectedPnl":[-0-9.e]+', '"expectedPnl":99999.0')"""
    conn.execute(f'UPDATE trajectories SET "metadataJson" = {forged}')  # pyright: ignore
    result = materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path)
    assert not result.success
    assert verdicts(result)["replay_sample"] is False
    assert conn.execute("SELECT count(*) FROM rl_assets.judgement_sets").fetchone() == (0,)


def with_another_truth(root: Path) -> str:
    """Put the truth of one snapshot in the place of another's; the id of that other."""
    one, other = sorted((root / "sealed").glob("train-*.json"))[:2]
    one.write_bytes(other.read_bytes())
    return one.stem


def test_a_window_is_not_replayed_on_the_truth_of_another_snapshot(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    window = played_hour(conn, tmp_path)
    name = with_another_truth(tmp_path / "snapshots")
    result = materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path)
    assert not result.success
    assert f"the sealed truth of {name} is not the one it was made with" in why(result)


def test_an_episode_of_an_unregistered_snapshot_with_another_truth_goes_to_quarantine(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    window = played_hour(conn, tmp_path)
    name = with_another_truth(tmp_path / "snapshots")
    conn.execute("DELETE FROM rl_assets.snapshots WHERE id = %s", [name])
    result = materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path)
    assert result.success
    rejects = pq.read_table(tmp_path / "windows" / window.replace(":", "") / "quarantine.parquet").to_pylist()
    assert [reject["reason"] for reject in rejects] == ["unknown_snapshot"] * 8
    assert "is not the one it was made with" in rejects[0]["detail"]


def test_what_is_missing_upstream_is_said_in_one_sentence(
    postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    result = materialized([judged_rankings], "2026-11-23T08:00", instance, postgres_url, tmp_path)
    assert not result.success
    assert "grpo_groups of 2026-11-23T08:00 is not there; materialize it before judged_rankings" in why(result)


def test_an_hour_judged_twice_keeps_one_set_and_offers_nothing_again(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    window = played_hour(conn, tmp_path)
    for _ in range(2):
        assert materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path).success
    assert conn.execute("SELECT count(*) FROM rl_assets.judgement_sets").fetchone() == (1,)
    twice = "SELECT trajectory_id FROM rl_assets.offered_episodes GROUP BY 1 HAVING count(*) > 1"
    assert conn.execute(twice).fetchall() == []


def test_the_truth_never_lies_beside_what_agents_may_see(tmp_path: Path):
    snapshot, truth = generate("train", 5)
    save_snapshot(tmp_path, snapshot, truth)
    assert [path.name for path in (tmp_path / snapshot.id).iterdir()] == ["public.json"]
    assert '"latent"' not in (tmp_path / snapshot.id / "public.json").read_text()


def test_a_range_that_is_judged_again_skips_hours_that_nobody_read(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    window = played_hour(conn, tmp_path)
    quiet = f"{start_of(window) - timedelta(hours=1):%Y-%m-%dT%H:00}"
    assert materialized(WINDOW_ASSETS, window, instance, postgres_url, tmp_path).success
    resources = {
        "database": Database(url=postgres_url),
        "lake": Lake(directory=str(tmp_path)),
        "judge": Judge(kind="outcome", group_size=3),
        "trainer": Trainer(),
    }

    def judged_again(first: str, last: str) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            WINDOW_ASSETS,
            selection=WINDOW_ASSETS[1:],
            tags={RANGE_START: first, RANGE_END: last},
            instance=instance,
            resources=resources,
            raise_on_error=False,
        )

    result = judged_again(quiet, window)
    assert result.success, why(result)
    told = {
        str(event.partition): {name: value.value for name, value in event.metadata.items()}
        for event in result.asset_materializations_for_node("judged_rankings")
    }
    assert (told[quiet]["dagster/row_count"], told[window]["dagster/row_count"]) == (0, 16)
    assert str(told[quiet]["note"]).startswith("skipped: no grpo_groups of this hour")
    assert conn.execute("SELECT count(*) FROM rl_assets.judgement_sets").fetchone() == (2,)
    failed = judged_again(quiet, quiet)
    assert not failed.success
    assert f"recorded_trajectories of {quiet} is not there; materialize it before grpo_groups" in why(failed)
