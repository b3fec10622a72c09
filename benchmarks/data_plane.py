"""Windows of growing size: time and peak memory of reading, grouping and judging them, and what polars takes to group.

python -m benchmarks.data_plane [EPISODES ...]      10000, 100000 and 1000000 unless told; each has 20 steps

Every stage is a process of its own, whose peak of resident memory is told.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import psycopg

from benchmarks.server import migrated_server
from rl_assets.episodes import Episode, Policy, Sampling, Step
from rl_assets.store.agents import provision_agents
from rl_assets.store.database import connect
from rl_assets.store.episodes import write_episodes
from rl_assets.tree import WindowFiles

WINDOW = "2026-11-23T08:00"
SIBLINGS, STEPS, TOKENS = 8, 20, 12
OBSERVATION = "tick {tick}/20 cash 912.40 A 41 yes 120 B 63 C 12 P 101.2 long 0 news: a source says that A will rise"
GIBIBYTE = 2**30

COPIES = """
INSERT INTO trajectories ("id", "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId",
  "scenarioId", "stepsJson", "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength",
  "finalStatus", "createdAt", "updatedAt")
SELECT '1' || lpad(n::text, 19, '0'), '1' || lpad(n::text, 19, '0'), "agentId", "startTime", "endTime", "durationMs",
  "windowId", "scenarioId", "stepsJson", "rewardComponentsJson", "metricsJson",
  replace("metadataJson", 'train-000000', 'train-' || lpad((n / 8)::text, 7, '0')), "totalReward", "episodeLength",
  "finalStatus", "createdAt", "updatedAt"
FROM generate_series(0, %(episodes)s - 1) AS n JOIN trajectories AS t ON t."trajectoryId" = (n %% 8)::text
"""


@dataclass(frozen=True)
class Cost:
    """Wall-clock and CPU seconds of a stage, and its peak of resident memory in GiB."""

    seconds: float
    cpu: float
    peak: float

    def __str__(self) -> str:
        return f"{self.seconds:8.1f} s   {self.cpu:8.1f} s CPU   {self.peak:5.2f} GiB"


def an_episode(sibling: int, agent_id: str) -> Episode:
    at = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)
    steps = tuple(
        Step(
            tick=tick,
            observation=OBSERVATION.format(tick=tick),
            response='{"market":"A","do":"buy_yes","size":100}',
            action={"market": "A", "do": "buy_yes", "size": 100},
            valid=True,
            reward=float(sibling),
            equity=1000.0 + (tick + 1) * sibling,
            credit=float(sibling),
            token_ids=tuple(range(TOKENS)),
            logprobs=tuple(-0.01 * (sibling + token + tick) for token in range(TOKENS)),
            prompt_tokens=100,
            latency_ms=7,
        )
        for tick in range(STEPS)
    )
    return Episode(
        trajectory_id=str(sibling),
        agent_id=agent_id,
        policy=Policy("bench", 0),
        scenario_id="benchmark",
        window_id=WINDOW,
        started_at=at,
        ended_at=at,
        system="Trade. Answer with one JSON object per tick.",
        steps=steps,
        prompt_version="market-1",
        sampling=Sampling(0.8, 32),
        snapshot_id="train-000000-0123456789ab",
        sibling=sibling,
        realised_pnl=20.0 * sibling,
        expected_pnl=20.0 * sibling,
        max_drawdown=0.0,
    )


def fill(conn: psycopg.Connection, episodes: int) -> None:
    """As many episodes in one hour, in groups of siblings: eight are recorded, and the others are copies of them."""
    agent = provision_agents(conn, ["bench"])["bench"]
    write_episodes(conn, [an_episode(sibling, agent) for sibling in range(SIBLINGS)])
    conn.execute("SET synchronous_commit = off")
    conn.execute(COPIES, {"episodes": episodes})
    conn.execute('DELETE FROM trajectories WHERE length("trajectoryId") = 1')
    conn.execute("VACUUM ANALYZE trajectories")


def read(url: str, files: WindowFiles) -> None:
    from rl_assets.store.episodes import read_window
    from rl_assets.store.window_files import written_window

    with connect(url) as conn, written_window(files) as add:
        for part in read_window(conn, WINDOW):
            add(part)


def group(_: str, files: WindowFiles) -> None:
    from rl_assets.grouping import deal
    from rl_assets.store.window_files import read_alike, write_groups

    alike = read_alike(files.trajectories)
    write_groups(files.groups, deal(alike, window_id=WINDOW, group_size=SIBLINGS))


def group_with_polars(_: str, files: WindowFiles) -> None:
    import polars

    columns = ["policy", "snapshot_id", "prompt_version", "scenario_id", "not_trainable"]
    table = polars.scan_parquet(str(files.trajectories)).select("trajectory_id", *columns)
    grouped = table.group_by(columns).agg(polars.col("trajectory_id").sort())
    grouped.collect().write_parquet(str(files.directory / "floor.parquet"))


def judge(_: str, files: WindowFiles) -> None:
    from rl_assets.assets.rankings import GROUPS_AT_ONCE
    from rl_assets.judging import JudgementSet, OutcomeJudge
    from rl_assets.store.window_files import read_groups, window_episodes, write_rankings

    groups, ranker, rankings = read_groups(files.groups), OutcomeJudge(), []
    with window_episodes(files.trajectories) as episodes:
        ordered = episodes.by_place(groups)
        for start in range(0, len(ordered), GROUPS_AT_ONCE):
            some = ordered[start : start + GROUPS_AT_ONCE]
            rankings += ranker.rank_all(some, episodes.of(some))
    write_rankings(files.rankings, JudgementSet.of(WINDOW, ranker, rankings, groups))


STAGES: dict[str, Callable[[str, WindowFiles], None]] = {
    "extract, validate, write": read,
    "group": group,
    "polars group-by": group_with_polars,
    "judge": judge,
}


def cost(stage: str, url: str, files: WindowFiles) -> Cost:
    began, cpu = time.perf_counter(), time.process_time()
    STAGES[stage](url, files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE
    return Cost(time.perf_counter() - began, time.process_time() - cpu, peak)


def measured(episodes: int) -> dict[str, Cost]:
    fresh = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)
    with migrated_server() as url, tempfile.TemporaryDirectory() as directory, fresh as processes:
        with connect(url) as conn:
            fill(conn, episodes)
        files = WindowFiles(Path(directory))
        found = {stage: processes.submit(cost, stage, url, files).result() for stage in STAGES}
        size = files.trajectories.stat().st_size / 1e6
    print(f"{episodes:,} episodes of {STEPS} steps, {size:.1f} MB of Parquet")
    for stage, one in found.items():
        print(f"  {stage:26} {one}   {episodes / one.cpu:8,.0f} episodes per CPU second")
    ratio = found["group"].cpu / found["polars group-by"].cpu
    print(f"  grouping takes {ratio:.1f} times the CPU of the polars group-by", flush=True)
    return found


def main(sizes: list[int]) -> None:
    before: tuple[int, dict[str, Cost]] | None = None
    for episodes in sizes or [10_000, 100_000, 1_000_000]:
        found = measured(episodes)
        if before is not None:
            times = {s: c.cpu / before[1][s].cpu / (episodes / before[0]) for s, c in found.items()}
            growth = ", ".join(f"{stage} {value:.2f}" for stage, value in times.items())
            print(f"  CPU per episode, in times of that at {before[0]:,}: {growth}", flush=True)
        before = episodes, found


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
