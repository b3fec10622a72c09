"""A line of which eight judged episodes wait, as a template to be copied per crash, and the process that is killed."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from rl_assets import harness
from rl_assets.agents.neural import NeuralAgent
from rl_assets.agents.runner import Assignment, play
from rl_assets.episodes import Episode, Policy
from rl_assets.grouping import build_groups
from rl_assets.judging import JudgementSet, OutcomeJudge
from rl_assets.market.snapshot import SPLITS
from rl_assets.registry.models import register_base
from rl_assets.settings import Settings
from rl_assets.store.agents import provision_agents
from rl_assets.store.database import connect
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets.store.episodes import new_ids, write_episodes
from rl_assets.store.ledger import readiness, record_judgements
from rl_assets.training.base import WarmStart, ensure_base_policy
from rl_assets_tests.crash.worker import LINE, MINIMUM, NO_LOGS, Order
from rl_assets_tests.processes import answering

SEEDS, SIBLINGS = (3, 4), 8
_numbers = itertools.count()
Worker = Callable[[Order], int]


@dataclass(frozen=True)
class World:
    """A database, and a directory with the data and the Dagster instance, in some state."""

    server: EmbeddedPostgres
    database: str
    root: Path

    @property
    def url(self) -> str:
        return self.server.url(self.database)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def reached(self) -> list[str]:
        """The crash points that were passed or died at, in order."""
        log = self.root / "points.log"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    @property
    def said(self) -> str:
        return (self.root / "points.said").read_text(encoding="utf-8")

    def order(self, die_at: int | None = None, stop_at: str | None = None) -> Order:
        root = self.root
        return Order(self.url, str(self.data), str(root / "dagster"), str(root / "points.log"), die_at, stop_at)

    def copy(self, root: Path) -> World:
        """Another world in the same state, in which no point has been passed yet."""
        name = f"{self.database}_{next(_numbers)}"
        with connect(self.server.url("dagster")) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {self.database} STRATEGY FILE_COPY")  # pyright: ignore
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("points.*"))
        return self._moved(World(self.server, name, root))

    def _moved(self, there: World) -> World:
        """The registry of a copy names the copied files."""
        with connect(there.url) as conn:
            conn.execute(
                "UPDATE rl_assets.models SET checkpoint_path = replace(checkpoint_path, %s, %s)",
                [str(self.data), str(there.data)],
            )
        return there

    def drop(self) -> None:
        with connect(self.server.url("dagster")) as conn:
            conn.execute(f"DROP DATABASE {self.database} WITH (FORCE)")  # pyright: ignore
        shutil.rmtree(self.root)


@pytest.fixture(scope="session")
def waiting(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which as many judged episodes wait as make one batch. Not to be written to."""
    world = World(postgres_server, f"crash_{os.getpid()}", tmp_path_factory.mktemp("crash") / "waiting")
    base = ensure_base_policy(world.data, LINE, warm_start=WarmStart(episodes=16, passes=1))
    with connect(postgres_server.url("dagster")) as conn:
        conn.execute(f"CREATE DATABASE {world.database} TEMPLATE migrated STRATEGY FILE_COPY")  # pyright: ignore
    with connect(world.url) as conn:
        register_base(conn, LINE, base.path, base.digest, metrics=base.metrics)
        snapshots = harness.provide(conn, Settings(world.data), "train", SEEDS)
        harness.provide(conn, Settings(world.data), "gate", SPLITS["gate"][:8:4])
        model = NeuralAgent(base.path, Policy(LINE, 0))
        agent_id = provision_agents(conn, ["model"])["model"]
        write_judged(conn, play([Assignment(model, agent_id, SIBLINGS)], snapshots, seed=5, new_ids=new_ids))
        assert MINIMUM <= readiness(conn, LINE, 0).fresh < 2 * MINIMUM
    (world.root / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(world.root / "dagster"), NO_LOGS) as instance:
        instance.get_runs(limit=1)  # creates its tables, which takes a second
    return world


@pytest.fixture(scope="session")
def trained(waiting: World, worker: Worker) -> World:
    """The same world once its batch is trained. Not to be written to."""
    world = waiting.copy(waiting.root.with_name("trained"))
    assert worker(world.order(stop_at="after commit trained")) == 0, world.said
    return world


def write_judged(conn: psycopg.Connection, episodes: list[Episode]) -> None:
    """Record episodes and what the outcome judge says of them."""
    write_episodes(conn, episodes)
    judge, known = OutcomeJudge(), {episode.trajectory_id: episode for episode in episodes}
    for window in sorted({str(episode.window_id) for episode in episodes}):
        members = [episode for episode in episodes if episode.window_id == window]
        groups = build_groups(members, window_id=window, group_size=SIBLINGS)
        rankings = [judge.rank(group, known) for group in groups]
        record_judgements(conn, JudgementSet.of(window, judge, rankings, groups))


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Has a child carry an order out; returns its exit code, or less than 0 by which signal it was ended."""
    variables = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
    with answering("rl_assets_tests.crash.worker", **variables) as ask:
        yield lambda order: ask(order.to_json())
