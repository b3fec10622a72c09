"""A model line with judged episodes that wait for training, made as the pipeline makes them but without playing."""

from __future__ import annotations

from pathlib import Path

import psycopg

from rl_assets.episodes import Policy
from rl_assets.grouping import build_groups
from rl_assets.judging import JudgementSet, OutcomeJudge
from rl_assets.registry.models import register_base
from rl_assets.store.agents import provision_agents
from rl_assets.store.episodes import write_episodes
from rl_assets.store.ledger import record_judgements
from rl_assets_tests.store.made import WINDOW, an_episode

LINE = "babylon-agent"


def a_champion(conn: psycopg.Connection) -> None:
    register_base(conn, LINE, Path("/nowhere/0000"), "0" * 64, metrics={})


def judged_episodes(conn: psycopg.Connection, count: int, *, window: str = WINDOW, step: int = 0) -> None:
    """Record and judge `count` trainable episodes of a window, in groups of up to 10 that differ in what they earn."""
    agent = provision_agents(conn, ["model"])["model"]
    episodes = [
        an_episode(
            agent_id=agent,
            policy=Policy(LINE, step),
            window_id=window,
            snapshot_id=f"train-{number // 10:06d}-0123456789ab",
            scenario_id=f"benchmark-{number // 10}",
            sibling=number % 10,
            expected_pnl=float(number % 10),
            breaches=0,
        )
        for number in range(count)
    ]
    write_episodes(conn, episodes)
    groups = build_groups(episodes, window_id=window, group_size=10)
    judge, known = OutcomeJudge(), {episode.trajectory_id: episode for episode in episodes}
    record_judgements(conn, JudgementSet.of(window, judge, [judge.rank(group, known) for group in groups], groups))
