"""What a report says of each policy: means per episode, with 95 % intervals over market days."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput
from rl_assets.market.metrics import Interval, cluster_interval
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY, parse_id


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """Means per episode of one policy. Money is in dollars; expected and realised are None where no episode has them.

    skill: where it stands between holding (0) and the oracle (1), None unless both have played the same snapshots.
    """

    policy: Policy
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
        return str(parse_id(episode.snapshot_id)[1] // SNAPSHOTS_PER_DAY)
    except MalformedInput:
        # An imported snapshot stands for itself.
        return episode.snapshot_id


def pnl(episode: Episode) -> float | None:
    """Expected PnL in dollars, or the realised one where no latent value exists. Raises MalformedInput for NaN."""
    value = episode.expected_pnl if episode.expected_pnl is not None else episode.realised_pnl
    if value is not None and not math.isfinite(value):
        raise MalformedInput(f"PnL of episode {episode.trajectory_id} is {value}; leave it out or record it again")
    return value


def by_policy(episodes: Sequence[Episode]) -> dict[Policy, list[Episode]]:
    """Episodes of each policy, in the order in which policies first appear."""
    found: dict[Policy, list[Episode]] = {}
    for episode in episodes:
        found.setdefault(episode.policy, []).append(episode)
    return found


def summarise(episodes: Sequence[Episode]) -> list[PolicyRow]:
    """A row per policy, best expected PnL first. Raises MalformedInput where a number is NaN."""
    rows = [_row(policy, mine, episodes) for policy, mine in by_policy(episodes).items()]
    return sorted(rows, key=lambda row: (-row.expected.mean if row.expected else math.inf, str(row.policy)))


def _row(policy: Policy, mine: Sequence[Episode], everybody: Sequence[Episode]) -> PolicyRow:
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
            raise MalformedInput(
                f"{name} of episode {episode.trajectory_id} is {value}; record it again or leave it out"
            )
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
    if worth is None or hold is None or oracle is None or hold == oracle:
        return None
    return (worth - hold) / (oracle - hold)
