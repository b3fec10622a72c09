"""Who is better than whom on the same snapshots, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rl_assets.episodes import Episode
from rl_assets.errors import MalformedInput
from rl_assets.market.metrics import Interval, by_snapshot, cluster_interval, expected_pnl, market_day

ALPHA = 0.05
"""Corrected p below which one policy is surely better than another."""
FLIPS = 10_000
EXACT_DAYS = 13
"""Market days up to which every sign is tried; beyond, FLIPS random ones are."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A policy's place. rank: one plus the number of policies that are surely better, so that policies which cannot be
    told apart share a rank. expected_pnl: dollars per episode."""

    rank: int
    policy: str
    expected_pnl: Interval
    better_than: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two policies compared. difference: dollars of expected PnL that `better` earns more per snapshot. p: two-sided,
    corrected after Holm for all pairs of the leaderboard."""

    better: str
    worse: str
    difference: Interval
    p: float


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """standings: best first. pairs: surest first. snapshots, days: on how many all of this rests."""

    standings: list[Standing]
    pairs: list[Pair]
    snapshots: int
    days: int

    @property
    def least_p(self) -> float:
        """The p of a pair that every market day decides alike, at most 1: none is smaller where all signs are tried."""
        return min(2.0 ** (1 - self.days) * len(self.pairs), 1.0)

    @property
    def can_tell(self) -> bool:
        """Whether a difference on so many market days could be sure at all."""
        return self.least_p < ALPHA


def leaderboard(episodes: Mapping[str, Sequence[Episode]]) -> Leaderboard:
    """Rank policies by expected PnL per snapshot, siblings averaged. Differences are tested by flipping the signs of
    whole market days.

    episodes: those of each policy. Raises MalformedInput where policies played different snapshots, since then their
    numbers cannot be compared.
    """
    earned = {policy: by_snapshot(own, expected_pnl) for policy, own in episodes.items()}
    if not earned:
        raise ValueError("a leaderboard needs at least one policy")
    snapshots = sorted(next(iter(earned.values())))
    for policy, own in earned.items():
        if sorted(own) != snapshots or not snapshots:
            raise MalformedInput(
                f"{policy} played {len(own)} snapshots that are not the {len(snapshots)} of {next(iter(earned))}; let "
                "both play the same ones"
            )
    day = {episode.snapshot_id: market_day(episode) for episode in next(iter(episodes.values()))}
    days = [day[name] for name in snapshots]
    values = {policy: np.array([own[name] for name in snapshots]) for policy, own in earned.items()}
    pairs = []
    for one, other in combinations(values, 2):
        better, worse = (one, other) if values[one].mean() >= values[other].mean() else (other, one)
        difference = values[better] - values[worse]
        pairs.append(Pair(better, worse, cluster_interval(difference, days), sign_flip_p(difference, days)))
    pairs.sort(key=lambda pair: (pair.p, -pair.difference.mean))
    corrected = holm([pair.p for pair in pairs])
    pairs = [Pair(pair.better, pair.worse, pair.difference, p) for pair, p in zip(pairs, corrected, strict=True)]
    surely = {(pair.better, pair.worse) for pair in pairs if pair.p < ALPHA}
    order = sorted(values, key=lambda policy: -values[policy].mean())
    standings = [
        Standing(
            rank=1 + sum(worse == policy for _, worse in surely),
            policy=policy,
            expected_pnl=cluster_interval(values[policy], days),
            better_than=tuple(worse for worse in order if (policy, worse) in surely),
        )
        for policy in order
    ]
    return Leaderboard(standings, pairs, len(snapshots), len(set(days)))


def sign_flip_p(difference: np.ndarray, days: Sequence[object], *, seed: int = 0) -> float:
    """Two-sided p of a paired difference (n,) whose mean is zero, from flipping the sign of whole market days."""
    names = {name: place for place, name in enumerate(dict.fromkeys(days))}
    total = np.bincount([names[name] for name in days], difference, len(names))
    if len(total) <= EXACT_DAYS:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(total))[:, None] >> np.arange(len(total))) & 1)
    else:
        flipped = np.random.Generator(np.random.PCG64(seed)).random((FLIPS, len(total))) < 0.5
        signs = np.vstack([np.ones(len(total)), np.where(flipped, -1.0, 1.0)])
    reached = np.abs(signs @ total) >= abs(total.sum()) * (1.0 - 1e-12)
    return float(reached.mean())


def holm(p: Sequence[float]) -> list[float]:
    """p values that hold for all of them together, in the order given."""
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)) if len(p) else np.zeros(0)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(raised, 1.0)
    return corrected.tolist()
