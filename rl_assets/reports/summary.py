"""What a report says of each policy: means per episode, with 95 % intervals over market days."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput
from rl_assets.market import metrics
from rl_assets.market.metrics import Interval, cluster_interval


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """Means per episode of one policy. Money is in dollars; expected and realised are None where no episode has them.

    skill: where it stands between holding (0) and the oracle (1), None unless both have played the same snapshots.
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


def market_day(episode: Episode) -> str:
    """What an episode shares its luck with: the market day of its snapshot, or the UTC date of live play."""
    if episode.snapshot_id is None:
        return episode.ended_at.date().isoformat()
    try:
        return str(metrics.market_day(episode.snapshot_id))
    except MalformedInput:
        # What another recorder calls a snapshot stands for itself.
        return episode.snapshot_id


def pnl(episode: Episode) -> float | None:
    """Expected PnL in dollars, or the realised one where no latent value exists. Raises MalformedInput for NaN."""
    value = episode.expected_pnl if episode.expected_pnl is not None else episode.realised_pnl
    if value is not None and not math.isfinite(value):
        raise MalformedInput(f"PnL of {episode.trajectory_id} is {value}; record it again or leave it out")
    return value


def by_policy(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes of each policy, in the order in which policies first appear."""
    found: dict[str, list[Episode]] = {}
    for episode in episodes:
        found.setdefault(str(episode.policy), []).append(episode)
    return found


def summarise(episodes_by_policy: Mapping[str, Sequence[Episode]]) -> list[PolicyRow]:
    """A row per policy that has episodes, best expected PnL first. Raises MalformedInput where a number is NaN."""
    everybody = [episode for episodes in episodes_by_policy.values() for episode in episodes]
    rows = [_row(policy, mine, everybody) for policy, mine in episodes_by_policy.items() if mine]
    return sorted(rows, key=lambda row: (-row.expected.mean if row.expected else math.inf, row.policy))


def shown_intervals(rows: Sequence[PolicyRow]) -> dict[str, tuple[float, float, float]]:
    """Mean, low and high expected PnL of the policies that have one, as `plots.pnl_by_policy` takes them."""
    return {row.policy: (row.expected.mean, row.expected.low, row.expected.high) for row in rows if row.expected}


def paired_difference(mine: Sequence[Episode], baseline: Sequence[Episode]) -> Interval | None:
    """PnL of one less that of another, in dollars per episode, over the snapshots that both have played.

    Siblings are averaged per snapshot; the interval is over market days. None where they share no snapshot.
    """
    ours, theirs = _by_snapshot(mine), _by_snapshot(baseline)
    shared = [snapshot for snapshot in ours if snapshot in theirs]
    if not shared:
        return None
    differences = [np.mean(ours[s][1]) - np.mean(theirs[s][1]) for s in shared]
    return cluster_interval(np.array(differences), [ours[snapshot][0] for snapshot in shared])


def _by_snapshot(episodes: Sequence[Episode]) -> dict[str, tuple[str, list[float]]]:
    """Market day and PnLs of each snapshot."""
    found: dict[str, tuple[str, list[float]]] = {}
    for episode in episodes:
        if episode.snapshot_id is not None and (value := pnl(episode)) is not None:
            found.setdefault(episode.snapshot_id, (market_day(episode), []))[1].append(value)
    return found


def _row(policy: str, mine: Sequence[Episode], everybody: Sequence[Episode]) -> PolicyRow:
    return PolicyRow(
        policy=policy,
        episodes=len(mine),
        days=len({market_day(episode) for episode in mine}),
        expected=_interval(mine, "expected_pnl"),
        realised=_interval(mine, "realised_pnl"),
        skill=_skill(mine, everybody),
        max_drawdown=_mean(mine, "max_drawdown"),
        trades=float(np.mean([episode.trades for episode in mine])),
        breaches=float(np.mean([episode.breaches for episode in mine])),
        fees=float(np.mean([episode.fees for episode in mine])),
    )


def _known(episodes: Sequence[Episode], name: str) -> list[Episode]:
    known = [episode for episode in episodes if getattr(episode, name) is not None]
    for episode in known:
        value = getattr(episode, name)
        if not math.isfinite(value):
            raise MalformedInput(f"{name} of {episode.trajectory_id} is {value}; record it again or leave it out")
    return known


def _interval(episodes: Sequence[Episode], name: str) -> Interval | None:
    known = _known(episodes, name)
    if not known:
        return None
    return cluster_interval(np.array([getattr(e, name) for e in known]), [market_day(e) for e in known])


def _mean(episodes: Sequence[Episode], name: str) -> float | None:
    known = _known(episodes, name)
    return float(np.mean([getattr(episode, name) for episode in known])) if known else None


def _skill(mine: Sequence[Episode], everybody: Sequence[Episode]) -> float | None:
    bounds = [[e for e in everybody if e.policy == Policy(name)] for name in ("hold", "oracle")]
    played = {episode.snapshot_id for episode in mine}
    if None in played or any({e.snapshot_id for e in bound} != played for bound in bounds):
        return None
    worth, hold, oracle = (_mean(part, "expected_pnl") for part in (mine, *bounds))
    if worth is None or hold is None or oracle is None:
        return None
    return metrics.skill(worth, hold, oracle)
