"""Audits of snapshots: is each what its id says and does it keep its truth, and does skill show on many of them.

Statistics of what public data tells over many snapshots belong in `leakage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rl_assets.agents.reference import REFERENCE_AGENTS, Seat, rule
from rl_assets.agents.runner import uniform_draws
from rl_assets.errors import MalformedInput
from rl_assets.market.config import WorldConfig
from rl_assets.market.exchange import engine_for
from rl_assets.market.generate import generate
from rl_assets.market.metrics import Interval, cluster_interval
from rl_assets.market.snapshot import LATENT_UNIT, PRICE_UNIT, Snapshot, Truth, World, parse_snapshot
from rl_assets.market.sources import SOURCES, WIRE

LEAST_DAYS = 8
"""Market days under which intervals over days say too little for a verdict on skill."""
PLAYED = 64
"""Snapshots on which a kind of world is judged."""
PUBLIC_KEYS = frozenset(
    ("format", "split", "seed", "day", "config", "crowd", "perp", "funding", "posts", "truth_digest", "whispers")
)
NEAR_HOLD = 0.15
"""Share of the oracle's profit within which random play must stay of not playing."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing an audit looked at. detail is a sentence with what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class SkillReport:
    """Whether skill shows on a set of snapshots.

    passed: the order of the agents is what it must be, beyond chance. rows: per reference agent its mean expected PnL
    in dollars, the 95% interval of it, and its skill between hold (0) and oracle (1). detail: the verdict, a sentence.
    """

    passed: bool
    rows: list[dict[str, Any]]
    detail: str


def audit_snapshot(snapshot: Snapshot, truth: Truth) -> list[Check]:
    """Everything that must hold of one snapshot: reproduction, shapes, units, the binding of the truth, its absence."""
    public = snapshot.to_json()
    return [
        _regenerates(snapshot, truth),
        _bound(snapshot, truth),
        _shaped(snapshot, truth, public),
        _quantised(snapshot, public),
        _without_truth(snapshot, truth),
    ]


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
        draws = uniform_draws([(seed, worlds[p][0].seed, 0) for p in places], config.ticks * 5)
        draws = draws.reshape(len(places), config.ticks, 5)
        while not engine.done:
            engine.step(act(Seat(engine, np.arange(engine.n), draws[:, engine.tick], truths)))
        pnl[places] = engine.settle(truths)[1]
    return pnl


def _regenerates(snapshot: Snapshot, truth: Truth) -> Check:
    again, truth_again = generate(snapshot.split, snapshot.seed, snapshot.config)
    passed = again.content_hash == snapshot.content_hash and truth_again.digest == truth.digest
    found = "its own content" if passed else f"snapshot {again.id} and truth {truth_again.digest[:12]}"
    return Check("regenerates", passed, f"the generator makes of its split, seed and configuration {found}")


def _bound(snapshot: Snapshot, truth: Truth) -> Check:
    same = (snapshot.split, snapshot.seed) == (truth.split, truth.seed)
    passed = same and snapshot.truth_digest == truth.digest
    of = f"the truth of {truth.split} {truth.seed} has digest {truth.digest[:12]}"
    return Check("truth_bound", passed, f"{of}, the snapshot names {snapshot.truth_digest[:12]}")


def _shaped(snapshot: Snapshot, truth: Truth, public: dict[str, Any]) -> Check:
    config = snapshot.config
    try:
        parse_snapshot(public, snapshot.id)
    except MalformedInput as error:
        return Check("shapes", False, str(error))
    shapes = {
        "latent": (truth.latent.shape, (config.ticks + 1, config.markets)),
        "fair": (truth.fair.shape, (config.ticks + 1, config.perps)),
        "outcomes": (truth.outcomes.shape, (config.markets,)),
    }
    wrong = [f"{name} is {found}, not {due}" for name, (found, due) in shapes.items() if found != due]
    return Check("shapes", not wrong, "; ".join(wrong) or "all arrays have the shapes of the configuration")


def _quantised(snapshot: Snapshot, public: dict[str, Any]) -> Check:
    """Outside the configuration only small whole numbers, posts of known sources and the digest are public.

    A raw draw has 53 bits and the generator's state 128; neither fits into any of these.
    """
    speakers = {"posts": {source.name for source in (*SOURCES, WIRE)}, "whispers": set(snapshot.config.channels)}
    odd = sorted(set(public) - PUBLIC_KEYS)
    for name in ("crowd", "perp", "funding"):
        if any(type(value) is not int or abs(value) >= 2**31 for row in public[name] for value in row):
            odd.append(name)
    for name, known in speakers.items():
        posts = public.get(name, ())
        if any([type(part) for part in post] != [int, int, str, bool] or post[2] not in known for post in posts):
            odd.append(name)
    found = f"{', '.join(odd)} hold more than that" if odd else "nothing else is there"
    return Check(
        "quantised", not odd, f"public are whole numbers in units of the market and posts of known sources; {found}"
    )


def _without_truth(snapshot: Snapshot, truth: Truth) -> Check:
    """No path of the truth, in its own unit or the public one, is a public path, at the same tick or a later one."""
    coarse = np.rint(truth.latent * (LATENT_UNIT / PRICE_UNIT)).astype(np.int64)
    told = [
        f"{name} {place} at lead {lead}"
        for name, public, sealed in (
            ("crowd", snapshot.crowd, coarse),
            ("perp", snapshot.perp, truth.fair),
        )
        for place, lead in _copies(public, sealed, snapshot.config.horizon)
    ]
    return Check("no_truth", not told, f"public paths that repeat sealed ones: {', '.join(told) or 'none'}")


def _copies(public: np.ndarray, sealed: np.ndarray, furthest: int) -> Iterator[tuple[int, int]]:
    """Pairs (column, lead) where a public column equals a sealed one `lead` ticks on, over at least three changes."""
    rows = len(public)
    for column in range(public.shape[1]):
        for lead in range(min(furthest, rows - 1) + 1):
            shown, hidden = public[: rows - lead, column], sealed[lead:, column]
            if np.count_nonzero(np.diff(hidden)) >= 3 and np.array_equal(shown, hidden):
                yield column, lead


def _finite(value: float) -> float | None:
    return round(value, 2) if np.isfinite(value) else None


def _verdict(snapshots: int, faults: list[str], gaps: dict[str, Interval], luck: Interval) -> str:
    if faults:
        return f"skill does not show on these {snapshots} snapshots: {'; '.join(faults)}"
    told = ", ".join(f"{name} by {gap} dollars" for name, gap in gaps.items())
    return f"skill shows on {snapshots} snapshots: {told}; random play stays near not playing, at {luck} dollars"
