"""A window's files come whole, in parts of a bounded size, and are read back by columns or by a few episodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput
from rl_assets.grouping import build_groups, deal
from rl_assets.judging import JudgementSet, OutcomeJudge, unjudged
from rl_assets.store import window_files
from rl_assets.store.episode_files import read_episodes_parquet, write_episodes_parquet
from rl_assets.store.episodes import Reject, WindowPart
from rl_assets.store.window_files import (
    read_alike,
    read_expected_pnl,
    read_groups,
    read_versions,
    window_episodes,
    write_groups,
    write_rankings,
    written_window,
)
from rl_assets.tree import WindowFiles
from rl_assets_tests.store.made import SAMPLE, WINDOW, an_episode, episodes

KINDS = (
    SAMPLE,
    replace(SAMPLE, snapshot_id=None, scenario_id="lobby", expected_pnl=None),
    replace(SAMPLE, policy=Policy("babylon-agent", 1)),
    replace(SAMPLE, policy=Policy("random")),
    replace(SAMPLE, scenario_id="another name of the same"),
    replace(SAMPLE, steps=()),
)


def part_of(some: list[Episode], rejects: list[Reject] | None = None) -> WindowPart:
    named = [*(e.trajectory_id for e in some), *(r.trajectory_id for r in rejects or [])]
    return WindowPart(some, rejects or [], dict.fromkeys(named, "2026-11-23 08:30:00"))


def numbered(kinds: list[Episode]) -> list[Episode]:
    return [replace(kind, trajectory_id=str(1000 + number)) for number, kind in enumerate(kinds)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(episodes(), max_size=3), max_size=3))
def test_what_is_written_in_parts_is_read_as_one(tmp_path: Path, parts: list[list[Episode]]):
    reject = Reject("1", "bad_json", "stepsJson: ...", "[")
    with written_window(WindowFiles(tmp_path)) as add:
        for part in parts:
            add(part_of(part, [reject]))
    path = tmp_path / "trajectories.parquet"
    everybody = [episode for part in parts for episode in part]
    assert read_episodes_parquet(path) == everybody
    assert pq.read_table(path)["not_trainable"].to_pylist() == [episode.not_trainable for episode in everybody]
    kept = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert kept == [{"trajectory_id": "1", "reason": "bad_json", "detail": "stepsJson: ..."}] * len(parts)
    assert read_versions(tmp_path / "versions.parquet").keys() >= {episode.trajectory_id for episode in everybody}


def test_rows_are_written_as_they_come_and_a_stopped_reading_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(window_files, "ROWS_AT_ONCE", 4)
    some = [an_episode() for _ in range(10)]
    with written_window(WindowFiles(tmp_path)) as add:
        for start in range(0, 10, 2):
            add(part_of(some[start : start + 2]))
    with pq.ParquetFile(tmp_path / "trajectories.parquet") as file:
        assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [4, 4, 2]
    with pytest.raises(psycopg.OperationalError), written_window(WindowFiles(tmp_path)) as add:
        add(part_of(some[:6]))
        raise psycopg.OperationalError
    assert read_episodes_parquet(tmp_path / "trajectories.parquet") == some
    assert len(read_versions(tmp_path / "versions.parquet")) == 10
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{n}.parquet" for n in ("trajectories", "quarantine", "versions")
    }


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(KINDS), max_size=30), st.integers(2, 9))
def test_grouping_by_columns_is_grouping_of_episodes(tmp_path: Path, kinds: list[Episode], group_size: int):
    some = numbered(kinds)
    with written_window(WindowFiles(tmp_path)) as add:
        add(part_of(some))
    groups = deal(read_alike(tmp_path / "trajectories.parquet"), window_id=WINDOW, group_size=group_size)
    assert groups == build_groups(some, window_id=WINDOW, group_size=group_size)
    pnl = read_expected_pnl(tmp_path / "trajectories.parquet")
    assert pnl.to_pylist() == [{"trajectory_id": e.trajectory_id, "expected_pnl": e.expected_pnl} for e in some]
    write_groups(tmp_path / "groups.parquet", groups)
    assert read_groups(tmp_path / "groups.parquet") == groups


def test_a_few_groups_are_read_at_a_time_wherever_their_members_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(window_files, "ROWS_AT_ONCE", 3)
    some = numbered([KINDS[number % 3] for number in range(20)])
    with written_window(WindowFiles(tmp_path)) as add:
        for one in some:
            add(part_of([one]))
    groups = build_groups(some, window_id=WINDOW, group_size=4)
    known = {episode.trajectory_id: episode for episode in some}
    with window_episodes(tmp_path / "trajectories.parquet") as there:
        ordered = there.by_place(groups)
        assert sorted(group.group_id for group in ordered) == sorted(group.group_id for group in groups)
        for start in range(0, len(ordered), 2):
            pair = ordered[start : start + 2]
            members = {member for group in pair for member in group.trajectory_ids}
            assert there.of(pair) == {member: known[member] for member in members}


def test_rankings_have_a_row_per_member_with_or_without_a_score(tmp_path: Path):
    some = numbered([replace(SAMPLE, expected_pnl=10.0 * n, breaches=0, snapshot_id=f"s{n // 2}") for n in range(4)])
    groups = build_groups(some, window_id=WINDOW, group_size=2)
    judge, known = OutcomeJudge(), {episode.trajectory_id: episode for episode in some}
    rankings = [judge.rank(groups[0], known), unjudged(groups[1], "judge_failed")]
    write_rankings(tmp_path / "rankings.parquet", JudgementSet.of(WINDOW, judge, rankings, groups))
    rows = pq.read_table(tmp_path / "rankings.parquet").to_pylist()
    assert sorted(row["trajectory_id"] for row in rows) == sorted(known)
    assert sorted((row["rank"] or 0, row["trainable"], row["reason"]) for row in rows) == [
        (0, False, "judge_failed"),
        (0, False, "judge_failed"),
        (1, True, None),
        (2, True, None),
    ]


def test_a_file_of_an_earlier_version_is_to_be_made_again(tmp_path: Path):
    write_episodes_parquet(tmp_path / "trajectories.parquet", [an_episode()])
    with pytest.raises(MalformedInput, match="materialize it again"):
        read_alike(tmp_path / "trajectories.parquet")
    assert read_versions(tmp_path / "versions.parquet") == {}
