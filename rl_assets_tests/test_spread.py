"""Spreading work: in this process, and over a real Ray cluster of two nodes, of which one is lost on the way."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets import window_groups
from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.episodes import Policy
from rl_assets.errors import ConfigurationError, MalformedInput
from rl_assets.grouping import Share
from rl_assets.judging.parts import Chosen
from rl_assets.market.generate import generate
from rl_assets.settings import RulerSettings, Settings
from rl_assets.spread import spread, width
from rl_assets.store.episodes import WindowPart
from rl_assets.store.window_files import written_window
from rl_assets.tree import WindowFiles
from rl_assets.window_groups import Grouping, group_window
from rl_assets_tests.store.made import SAMPLE, WINDOW

RAY = importlib.util.find_spec("ray") is not None
on_ray = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not RAY, reason="Ray is not installed; see docs/ray.md"),
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RL_ASSETS_SPREAD", raising=False)


def test_without_a_cluster_it_is_map():
    assert list(spread(abs, [3, -1, -2])) == [3, 1, 2]
    assert width() == 1


@settings(max_examples=50)
@given(shares=st.integers(1, 9), group_size=st.integers(2, 9))
def test_a_window_has_the_same_groups_in_however_many_shares(
    tmp_path_factory: pytest.TempPathFactory, shares: int, group_size: int
):
    grouping = Grouping(a_window(tmp_path_factory.mktemp("window")), WINDOW, group_size)
    whole = grouping(Share())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_groups, "width", lambda: shares)
        patch.setattr(window_groups, "SHARE", 1)
        assert group_window(grouping, 60) == whole
    parts = [grouping(Share(number, shares)).groups for number in range(shares)]
    assert sorted(group.group_id for part in parts for group in part) == sorted(g.group_id for g in whole.groups)
    assert shares == 1 or sum(map(bool, parts)) > 1


def test_an_unknown_way_to_spread_is_refused():
    with pytest.raises(ConfigurationError, match="RL_ASSETS_SPREAD='dask' is unknown; set it to ray, or unset it"):
        Settings.from_env({"RL_ASSETS_SPREAD": "dask"})


@pytest.mark.skipif(RAY, reason="Ray is installed")
def test_a_cluster_without_the_extra_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RL_ASSETS_SPREAD", "ray")
    with pytest.raises(ConfigurationError, match=r"Ray is not installed; run `pip install -e '\.\[ray\]'`"):
        list(spread(abs, [1]))


def test_the_key_of_a_judge_does_not_travel_and_is_found_again(monkeypatch: pytest.MonkeyPatch):
    import pickle

    chosen = Chosen("ruler", RulerSettings(model="m", api_key="sk-here", passes=2))
    sent = pickle.dumps(chosen)
    assert b"sk-here" not in sent
    monkeypatch.setenv("RULER_JUDGE_API_KEY", "sk-there")
    assert pickle.loads(sent) == Chosen("ruler", RulerSettings(model="m", api_key="sk-there", passes=2))


def test_judges_side_by_side_share_what_one_may_ask_for():
    one = RulerSettings(concurrency=8, requests_per_minute=60)
    assert (one.shared(3).concurrency, one.shared(3).requests_per_minute) == (2, 20)
    assert (one.shared(100).concurrency, one.shared(100).requests_per_minute) == (1, 1)
    assert RulerSettings().shared(4).requests_per_minute == 0


def a_window(directory: Path) -> Path:
    """The file of a window of sixty episodes: of policies, snapshots, prompts and scenarios that mix."""
    kinds = [
        replace(SAMPLE, policy=Policy(name, step), snapshot_id=snapshot, scenario_id=scenario, steps=steps)
        for name, step in (("a", 0), ("a", 1), ("b", None))
        for snapshot in (None, "one", "two")
        for scenario in ("lobby", None)
        for steps in (SAMPLE.steps, ())
    ]
    with written_window(WindowFiles(directory)) as add:
        some = [replace(kinds[number * 7 % len(kinds)], trajectory_id=str(1000 + number)) for number in range(60)]
        add(WindowPart(some, [], dict.fromkeys((one.trajectory_id for one in some), "2026-11-23 08:30:00")))
    return directory / "trajectories.parquet"


@dataclass
class TwoNodes:
    """A Ray cluster of two nodes with a CPU each, whose second one can be lost."""

    cluster: object
    second: object

    def lose_the_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)  # pyright: ignore[reportAttributeAccessIssue]


def patiently(get_node: Callable[..., dict]) -> Callable[..., dict]:
    """Ray gives a node 30 s to register, which a busy machine may need more of, and no setting says otherwise."""

    def wait(*arguments: object) -> dict:
        deadline = time.monotonic() + 600
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return wait


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    import ray  # pyright: ignore[reportMissingImports]
    from ray._private import services  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_register_timeout_seconds": "600"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "get_node", patiently(services.get_node))
    room = {"num_cpus": 1, "object_store_memory": 200_000_000, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, head_node_args={**room, "include_dashboard": False})
    try:
        second = cluster.add_node(**room)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.setenv("RL_ASSETS_SPREAD", "ray")
        yield TwoNodes(cluster, second)
    finally:
        ray.shutdown()
        cluster.shutdown()


class TestOnRay:
    pytestmark = on_ray

    def test_results_come_in_order_and_errors_as_they_are(self, two_nodes: TwoNodes):
        def worked(item: int) -> tuple[int, int]:
            if item == 7:
                raise MalformedInput("seven is not a snapshot")
            return item * item, os.getpid()

        assert width() == 2
        found = list(spread(worked, range(6)))
        assert [square for square, _ in found] == [0, 1, 4, 9, 16, 25]
        assert os.getpid() not in {process for _, process in found}
        with pytest.raises(MalformedInput, match=r"^seven is not a snapshot$"):
            list(spread(worked, [1, 7]))

    def test_a_node_lost_on_the_way_leaves_no_mark_on_what_was_played(
        self, two_nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        worlds = [generate("train", seed) for seed in range(8)]
        agents = [Assignment(ReferenceAgent(name), name, 4) for name in ("random", "momentum")]
        lost = False

        def progress(done: int, total: int) -> None:
            nonlocal lost
            if not lost:
                lost = True
                two_nodes.lose_the_second()

        def played(on_progress=None) -> list[str]:
            episodes = play(
                agents, worlds, seed=1, new_ids=lambda n: [str(i) for i in range(n)], batch=4, on_progress=on_progress
            )
            return [episode.content_hash for episode in episodes]

        there = played(progress)
        assert lost
        monkeypatch.delenv("RL_ASSETS_SPREAD")
        assert there == played()

    def test_a_worker_killed_in_the_middle_of_a_task_is_begun_anew(self, two_nodes: TwoNodes, tmp_path: Path):
        def dies_once(item: int) -> int:
            mark = tmp_path / str(item)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)
                time.sleep(60)  # the signal comes first
            return item

        assert list(spread(dies_once, range(3))) == [0, 1, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]

    def test_a_window_is_grouped_over_two_nodes_as_in_one_process(
        self, two_nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        grouping = Grouping(a_window(tmp_path), WINDOW, 8)
        monkeypatch.setattr(window_groups, "SHARE", 20)
        there = group_window(grouping, 60)
        monkeypatch.delenv("RL_ASSETS_SPREAD")
        assert there == group_window(grouping, 60)
