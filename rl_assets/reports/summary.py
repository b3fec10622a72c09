"""What a report says of each policy: means per episode, with 95 % intervals over market days."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rl_assets.episodes import Episode
from rl_assets.market.metrics import Interval, by_snapshot, cluster_interval, finite, market_day, skills


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """Means per episode of one policy. Money is in dollars; expected and realised are None where no episode has them.

    skill: where it stands between holding (0) and the oracle (1), as `metrics.skills` says, None where it has none.
    """

    policy: str
    episodes: int
    days: int
    expected: Interval | None
    realised: Interval | None
    skill: float | None
    max_drawdown: float | None
    trades: float
    breaches: float
    fees: float


def pnl(episode: Episode) -> float | None:
    """Expected PnL in dollars, or the realised one where no latent value exists. Raises MalformedInput for NaN."""
    name = "expected_pnl" if episode.expected_pnl is not None else "realised_pnl"
    return None if getattr(episode, name) is None else finite(episode, name)


def by_policy(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes of each policy, in the order in which policies first appear."""
    found: dict[str, list[Episode]] = {}
    for episode in episodes:
        found.setdefault(str(episode.policy), []).append(episode)
    return found


def summarise(episodes_by_policy: Mapping[str, Sequence[Episode]]) -> list[PolicyRow]:
    """A row per policy that has episodes, best expected PnL first. Raises MalformedInput where a number is NaN."""
    skill = skills(episodes_by_policy)
    rows = [_row(policy, mine, skill.get(policy)) for policy, mine in episodes_by_policy.items() if mine]
    return sorted(rows, key=lambda row: (-row.expected.mean if row.expected else math.inf, row.policy))


def shown_intervals(rows: Sequence[PolicyRow]) -> dict[str, tuple[float, float, float]]:
    """Mean, low and high expected PnL of the policies that have one, as `plots.pnl_by_policy` takes them."""
    return {row.policy: (row.expected.mean, row.expected.low, row.expected.high) for row in rows if row.expected}


def paired_difference(mine: Sequence[Episode], baseline: Sequence[Episode]) -> Interval | None:
    """PnL of one less that of another, in dollars per episode, over the snapshots that both have played.

    Siblings are averaged per snapshot; the interval is over market days. None where they share no snapshot.
    """
    ours, theirs = by_snapshot(mine, pnl), by_snapshot(baseline, pnl)
    shared = [snapshot for snapshot in ours if snapshot in theirs]
    if not shared:
        return None
    day = {episode.snapshot_id: market_day(episode) for episode in mine}
    return cluster_interval(np.array([ours[s] - theirs[s] for s in shared]), [day[s] for s in shared])


def _row(policy: str, mine: Sequence[Episode], skill: Interval | None) -> PolicyRow:
    return PolicyRow(
        policy=policy,
        episodes=len(mine),
        days=len({market_day(episode) for episode in mine}),
        expected=_interval(mine, "expected_pnl"),
        realised=_interval(mine, "realised_pnl"),
        skill=skill.mean if skill else None,
        max_drawdown=_mean(mine, "max_drawdown"),
        trades=float(np.mean([episode.trades for episode in mine])),
        breaches=float(np.mean([episode.breaches for episode in mine])),
        fees=float(np.mean([episode.fees for episode in mine])),
    )


def _known(episodes: Sequence[Episode], name: str) -> tuple[list[Episode], np.ndarray]:
    """The episodes that have the number, and theirs."""
    known = [episode for episode in episodes if getattr(episode, name) is not None]
    return known, np.array([finite(episode, name) for episode in known])


def _interval(episodes: Sequence[Episode], name: str) -> Interval | None:
    known, values = _known(episodes, name)
    return cluster_interval(values, [market_day(e) for e in known]) if known else None


def _mean(episodes: Sequence[Episode], name: str) -> float | None:
    known, values = _known(episodes, name)
    return float(np.mean(values)) if known else None
