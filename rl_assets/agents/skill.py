"""Does skill show on many snapshots: the reference agents play them, and must come out in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rl_assets.agents.reference import DRAWS, REFERENCE_AGENTS, Seat, rule
from rl_assets.market.config import WorldConfig
from rl_assets.market.exchange import engine_for
from rl_assets.market.generate import generate
from rl_assets.market.metrics import Interval, cluster_interval
from rl_assets.market.snapshot import World
from rl_assets.market.streams import uniform_draws

LEAST_DAYS = 8
"""Market days under which intervals over days say too little for a verdict on skill."""
PLAYED = 64
"""Snapshots on which a kind of world is judged."""
NEAR_HOLD = 0.15
"""Share of the oracle's profit within which random play must stay of not playing."""


@dataclass(frozen=True, slots=True)
class SkillReport:
    """Whether skill shows on a set of snapshots.

    passed: the order of the agents is what it must be, beyond chance. rows: per reference agent its mean expected PnL
    in dollars, the 95% interval of it, and its skill between hold (0) and oracle (1). detail: the verdict, a sentence.
    """

    passed: bool
    rows: list[dict[str, Any]]
    detail: str


def audit_skill(worlds: Sequence[World]) -> SkillReport:
    """Let the reference agents play the worlds and compare their expected PnL, paired by world, over market days.

    Worlds of different configurations may be mixed. Raises ValueError without worlds.
    """
    if not worlds:
        raise ValueError("an audit of skill needs at least one world")
    days = [snapshot.day for snapshot, _ in worlds]
    earned = {name: reference_pnl(name, worlds) for name in REFERENCE_AGENTS}
    spread = earned["oracle"].mean() - earned["hold"].mean()
    rows = []
    for name, pnl in earned.items():
        interval = cluster_interval(pnl, days)
        rows.append(
            {
                "agent": name,
                "mean": round(interval.mean, 2),
                "low": _finite(interval.low),
                "high": _finite(interval.high),
                "skill": round(float((pnl.mean() - earned["hold"].mean()) / spread), 3) if spread > 0 else None,
            }
        )
    count = len(set(days))
    if count < LEAST_DAYS:
        return SkillReport(
            False,
            rows,
            f"{len(worlds)} snapshots of {count} market days are too few to tell skill from luck; audit at least "
            f"{LEAST_DAYS} days ({LEAST_DAYS * 4} consecutive seeds)",
        )
    gaps = {
        f"{better} over {worse}": cluster_interval(earned[better] - earned[worse], days)
        for better, worse in (("oracle", "news_follower"), ("news_follower", "random"))
    }
    luck = cluster_interval(earned["random"] - earned["hold"], days)
    faults = [f"{name} is {gap}, which may be nothing" for name, gap in gaps.items() if not gap.low > 0]
    margin = NEAR_HOLD * spread
    if not -margin < luck.mean < margin or luck.low > 0:
        faults.append(f"random play differs from not playing by {luck}, more than ${margin:.2f} or surely above it")
    return SkillReport(not faults, rows, _verdict(len(worlds), faults, gaps, luck))


@lru_cache(maxsize=16)
def audit_kind_skill(config: WorldConfig) -> SkillReport:
    """Whether skill shows on a kind of world, found on its first `PLAYED` train seeds."""
    return audit_skill([generate("train", seed, config) for seed in range(PLAYED)])


def reference_pnl(name: str, worlds: Sequence[World], *, seed: int = 0) -> np.ndarray:
    """Expected PnL in dollars, float64 (worlds,), of a reference agent, as `agents.runner.play` would record it.

    Raises ConfigurationError for an unknown agent.
    """
    act = rule(name)
    pnl = np.zeros(len(worlds))
    for config in dict.fromkeys(snapshot.config for snapshot, _ in worlds):
        places = [place for place, (snapshot, _) in enumerate(worlds) if snapshot.config == config]
        engine, truths = engine_for([worlds[p][0] for p in places]), [worlds[p][1] for p in places]
        draws = uniform_draws([(seed, worlds[p][0].seed, 0) for p in places], config.ticks * DRAWS)
        draws = draws.reshape(len(places), config.ticks, DRAWS)
        while not engine.done:
            engine.step(act(Seat(engine, np.arange(engine.n), draws[:, engine.tick], truths)))
        pnl[places] = engine.settle(truths)[1]
    return pnl


def _finite(value: float) -> float | None:
    return round(value, 2) if np.isfinite(value) else None


def _verdict(snapshots: int, faults: list[str], gaps: dict[str, Interval], luck: Interval) -> str:
    if faults:
        return f"skill does not show on these {snapshots} snapshots: {'; '.join(faults)}"
    told = ", ".join(f"{name} by {gap} dollars" for name, gap in gaps.items())
    return f"skill shows on {snapshots} snapshots: {told}; random play stays near not playing, at {luck} dollars"
