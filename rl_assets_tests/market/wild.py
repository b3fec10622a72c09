"""Worlds and orders for tests of the engine: small, and as unreasonable as an agent can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from hypothesis import strategies as st

from rl_assets.agents.prompt import HOLD_TEXT
from rl_assets.agents.reply import Reply
from rl_assets.agents.runner import Agent, Assignment, play
from rl_assets.episodes import Episode, Policy
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Engine, Fills, Orders
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import Snapshot, Truth

STILL = WorldConfig(crowd_pull=0.0)
"""A world whose pools only move when they are traded with, so that what agents do to them can be added up."""
RISKY = WorldConfig(ticks=30, markets=1, perps=2, leverage=100, maintenance=0.0, perp_depth=2_000.0)

Order = tuple[Do, int, float]

SIZES = st.sampled_from([1.0, 25.0, 100.0, 333.33, 999.0]) | st.floats(allow_nan=True, allow_infinity=True)


@cache
def world(config: WorldConfig, seed: int = 0, split: str = "train") -> tuple[Snapshot, Truth]:
    return generate(split, seed, config)


def orders(config: WorldConfig, kinds: Sequence[Do] = tuple(Do)) -> st.SearchStrategy[list[Order]]:
    """One order per tick, with instruments that do not exist and sizes that nobody has."""
    width = config.markets + config.perps
    order = st.tuples(st.sampled_from(kinds), st.integers(-1, width), SIZES)
    return st.lists(order, min_size=config.ticks, max_size=config.ticks)


def one(order: Order) -> Orders:
    do, instrument, size = order
    return Orders(np.array([do], np.int8), np.array([instrument], np.int16), np.array([size]))


def side_by_side(rows: Sequence[Order]) -> Orders:
    do, instrument, size = zip(*rows, strict=True)
    return Orders(np.array(do, np.int8), np.array(instrument, np.int16), np.array(size))


def played(config: WorldConfig, script: Sequence[Order], seed: int = 0) -> tuple[Engine, list[Fills]]:
    engine = Engine([world(config, seed)[0]])
    return engine, [engine.step(one(order)) for order in script]


def with_prices(snapshot: Snapshot, perp: Sequence[int]) -> Snapshot:
    """The snapshot with another path of its perpetuals, in cents, and no funding."""
    path = np.array(perp, np.int32)
    return replace(
        snapshot, perp=np.repeat(path[:, None], snapshot.config.perps, axis=1), funding=np.zeros_like(snapshot.funding)
    )


class Scripted:
    """An agent that says its lines, tick by tick, and holds when they are over."""

    sampling = None

    def __init__(self, name: str, lines: Sequence[str]) -> None:
        self.policy = Policy(name)
        self._lines = list(lines)

    def sit(self, engine: Engine, rows: np.ndarray, truths: list[Truth], seeds: list[tuple[int, ...]]) -> _Lines:
        return _Lines(self._lines, len(rows))


class _Lines:
    def __init__(self, lines: list[str], rows: int) -> None:
        self._left, self._rows = iter(lines), rows

    def reply(self, observations: Sequence[str]) -> list[Reply]:
        return [Reply(next(self._left, HOLD_TEXT), latency_ms=3)] * self._rows


def episodes_of(agents: Sequence[Agent], seeds: Sequence[int], config: WorldConfig | None = None) -> list[Episode]:
    """Every agent on every world, recorded without an id."""
    worlds = [world(config or WorldConfig(), seed) for seed in seeds]
    return play([Assignment(agent, "agent") for agent in agents], worlds, seed=0, new_ids=lambda n: [""] * n)


def by_id(seeds: Sequence[int], config: WorldConfig | None = None) -> dict[str, tuple[Snapshot, Truth]]:
    worlds = [world(config or WorldConfig(), seed) for seed in seeds]
    return {snapshot.id: (snapshot, truth) for snapshot, truth in worlds}
