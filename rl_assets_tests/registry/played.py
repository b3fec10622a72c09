"""Rollouts in tests: a probe that finds a candidate well or ill, and episodes of both models on one market."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from rl_assets.episodes import Policy, window_of
from rl_assets.registry.health import Health
from rl_assets.registry.models import PlayableModel
from rl_assets.registry.rollout import Rollout, open_rollout
from rl_assets.registry.stages import begin
from rl_assets.registry.terms import Terms
from rl_assets.store.agents import provision_agents
from rl_assets.store.episodes import write_episodes
from rl_assets_tests.registry.made import LINE, a_base, a_candidate, evaluated
from rl_assets_tests.store.made import SAMPLE, an_episode

_days = itertools.count()
TERMS = Terms(stages=(10, 50, 100), least_pairs=20)


def well(model: PlayableModel, days: int) -> Health:
    return Health(days, 1.0, None)


def ill(model: PlayableModel, days: int) -> Health:
    return Health(days, 1.0, "a logprob of its answers is not a finite number of at most 0")


def begun(conn: psycopg.Connection, root: Path, terms: Terms = TERMS) -> Rollout:
    """Step 1 on its way beside step 0."""
    a_base(conn, root)
    evaluated(conn, a_candidate(conn, root, 1), promote=True)
    begin(conn, LINE, 1, terms, well)
    rollout = open_rollout(conn, LINE)
    assert rollout is not None
    return rollout


def play_beside(
    conn: psycopg.Connection,
    candidate: Iterable[float],
    champion: Iterable[float],
    *,
    failing: bool = False,
    steps: tuple[int, int] = (1, 0),
    live_at: datetime | None = None,
) -> None:
    """Record an episode of each model per number, which is its PnL in dollars, each pair on a market of its own, or
    all on a live one."""
    agent = provision_agents(conn, ["model"])["model"]
    ended = live_at or datetime.now(UTC) + timedelta(seconds=1)
    fine, broken = SAMPLE.steps[0], replace(SAMPLE.steps[0], valid=False, error="refused")
    episodes = []
    for pair in zip(candidate, champion, strict=True):
        day = next(_days)
        for step, pnl in zip(steps, pair, strict=True):
            episodes.append(
                an_episode(
                    agent_id=agent,
                    policy=Policy(LINE, step),
                    started_at=ended - timedelta(seconds=1),
                    ended_at=ended,
                    window_id=window_of(ended),
                    snapshot_id=None if live_at else f"train-{day:06d}-0123456789ab",
                    steps=(broken if failing and step == steps[0] else fine,),
                    expected_pnl=pnl,
                )
            )
    write_episodes(conn, episodes)
