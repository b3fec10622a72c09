"""Episodes that are recorded and judged, made without playing, for tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import psycopg

from rl_assets.episodes import Episode, Policy
from rl_assets.grouping import build_groups
from rl_assets.judging import JudgementSet, OutcomeJudge
from rl_assets.registry.models import register_base
from rl_assets.store.agents import provision_agents
from rl_assets.store.episodes import changed_windows, new_ids, write_episodes
from rl_assets.store.ledger import Batch, advance_batch, record_judgements
from rl_assets.training.manifest import Manifest
from rl_assets.windows import WindowState
from rl_assets_tests.store.made import SAMPLE, WINDOW, an_episode

LINE = SAMPLE.policy.name
PATHS = {
    "reserved": [],
    "failed": ["failed"],
    "freed": ["freed"],
    "training": ["training"],
    "unknown": ["training", "unknown"],
    "trained": ["training", "trained"],
    "evaluated": ["training", "trained", "evaluated"],
    "promoted": ["training", "trained", "evaluated", "promoted"],
    "rejected": ["training", "trained", "evaluated", "rejected"],
}
"""How a claimed batch comes into each state."""


class Stricter(OutcomeJudge):
    """A judge of another version."""

    version = "2"


def a_champion(conn: psycopg.Connection) -> None:
    """Make step 0 of the line its champion."""
    register_base(conn, LINE, Path("/nowhere/0000"), "0" * 64, metrics={})


def recorded(
    conn: psycopg.Connection,
    count: int,
    *,
    siblings: int = 2,
    window: str = WINDOW,
    policy: Policy = SAMPLE.policy,
    first_snapshot: int = 0,
) -> list[Episode]:
    """Record `count` trainable episodes, `siblings` of them on each snapshot, each earning $10 more than the last."""
    agent = provision_agents(conn, ["model"])["model"]
    episodes = [
        an_episode(
            trajectory_id=identity,
            agent_id=agent,
            policy=policy,
            window_id=window,
            snapshot_id=f"train-{first_snapshot + number // siblings:06d}-0123456789ab",
            sibling=number % siblings,
            expected_pnl=10.0 * (number % siblings),
            breaches=0,
        )
        for number, identity in enumerate(new_ids(count))
    ]
    write_episodes(conn, episodes)
    return episodes


def judged(
    episodes: Sequence[Episode], *, window: str = WINDOW, group_size: int = 2, judge: OutcomeJudge | None = None
) -> JudgementSet:
    """What the outcome judge says of the episodes of a window."""
    judge = judge or OutcomeJudge()
    groups = build_groups(episodes, window_id=window, group_size=group_size)
    known = {episode.trajectory_id: episode for episode in episodes}
    return JudgementSet.of(window, judge, [judge.rank(group, known) for group in groups], groups)


def waiting(conn: psycopg.Connection, count: int, *, siblings: int = 2, window: str = WINDOW) -> list[Episode]:
    """Record and judge `count` episodes of a window that holds no others; returns them."""
    episodes = recorded(conn, count, siblings=siblings, window=window)
    record_judgements(conn, judged(episodes, window=window, group_size=siblings))
    return episodes


def brought_to(conn: psycopg.Connection, batch: Batch, state: str) -> Batch:
    for step in PATHS[state]:
        batch = advance_batch(conn, batch.id, step)
    return batch


def ids_of(batch: Batch) -> set[str]:
    return set(Manifest.from_json(batch.manifest).trajectory_ids)


def news(conn: psycopg.Connection, since: datetime | None = None) -> list[WindowState]:
    """All windows with changes, in one part."""
    (part,) = changed_windows(conn, since)
    return list(part.states)
