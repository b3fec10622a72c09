"""What episodes on benchmark snapshots are worth: numbers per policy, each with an interval over market days.

Who is better than whom belongs in `leaderboard`; how a group is ranked for training in `rl_assets.judging`; whether a
candidate goes live in `rl_assets.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput
from rl_assets.market.engine import LIQUIDATED, Do
from rl_assets.market.snapshot import SNAPSHOTS_PER_DAY, Worlds, parse_id
from rl_assets.market.social import social_value
from rl_assets.market.trades import Trades, trades_of

LEVEL = 0.95
"""With which an interval holds the mean."""
RESAMPLES = 4_000
BINS = 5
"""Bins of the calibration table, of equal width in probability."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% interval; low and high are NaN where there is one cluster only."""

    mean: float
    low: float
    high: float
    clusters: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f}, {self.clusters} market days)"


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """What a policy did on some snapshots.

    values: an interval of the mean per episode under each name of METRICS, and None where no episode has the number.
    calibration: rows of the table that `calibration_table` describes.
    """

    policy: str
    episodes: int
    values: dict[str, Interval | None]
    calibration: list[dict[str, Any]]


METRICS: dict[str, str] = {
    "expected_pnl": "dollars, what is held at the end valued at the final latent values",
    "realised_pnl": "dollars, with the outcomes as they fell",
    "return_on_capital": "expected PnL as a share of the starting cash",
    "max_drawdown": "dollars, the largest fall of mark-to-market equity from its running peak",
    "drawdown_share": "that fall as a share of the peak it fell from",
    "hit_rate": "share of sides taken, each counted once an episode, that were worth more in the end than was paid",
    "brier": "mean squared distance of the price paid for a side from its outcome",
    "brier_latent": "the same from the side's final latent probability, without the coin's luck",
    "edge": "mean of a bought side's final latent probability minus the price paid",
    "turnover": "traded dollars, notional on perpetuals, as a multiple of the starting cash",
    "fees": "dollars",
    "trades": "filled orders",
    "liquidations": "ticks on which positions were closed by force",
    "invalid_actions": "refused or unreadable actions",
    "latency_ms": "mean milliseconds per decision, as the policy measured them",
    "social_value": "dollars that joins and posts added to expected PnL, next to hold in their place, all else as said",
    "skill": "expected PnL between holding (0) and the oracle (1), on the snapshots that both played too",
}


def cluster_interval(values: np.ndarray, clusters: Sequence[object], *, seed: int = 0) -> Interval:
    """Mean of values (n,) with a percentile bootstrap interval that resamples whole clusters (market days).

    Snapshots of one day share their tempo, so days and not snapshots are the independent draws. Raises ValueError
    without values.
    """
    return ratio_interval(np.asarray(values, float), np.ones(len(values)), clusters, seed=seed)


def ratio_interval(above: np.ndarray, below: np.ndarray, clusters: Sequence[object], *, seed: int = 0) -> Interval:
    """Sum of above over sum of below, each (n,), with the same kind of interval. Resamples without a positive
    denominator are left out. Raises ValueError without values or where the denominator is not positive."""
    if not len(above) or not len(above) == len(below) == len(clusters):
        raise ValueError(f"{len(above)} values and {len(clusters)} clusters; an interval needs as many of each")
    if not below.sum() > 0:
        raise ValueError("an interval of a ratio needs a positive denominator")
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    place = np.array([names[name] for name in clusters])
    count = len(names)
    mean = float(above.sum() / below.sum())
    if count == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    total, size = np.bincount(place, above, count), np.bincount(place, below, count)
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    numerator, denominator = drawn @ total, drawn @ size
    some = denominator > 0
    low, high = np.quantile(numerator[some] / denominator[some], [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
    return Interval(mean, float(low), float(high), count)


def measure(episodes_by_policy: Mapping[str, Sequence[Episode]], worlds: Worlds) -> dict[str, PolicyMetrics]:
    """Metrics of every policy that has episodes, under the name it is given.

    worlds: snapshot and truth by snapshot id. Raises MalformedInput for an episode whose world is not given, whose
    steps are not all there, or whose numbers are not finite.
    """
    policies = [name for name, mine in episodes_by_policy.items() for _ in mine]
    episodes = [episode for mine in episodes_by_policy.values() for episode in mine]
    trades = trades_of(episodes, worlds)
    numbers = per_episode(episodes, worlds, trades)
    days = np.array([market_day(episode) for episode in episodes])
    skill = skills(episodes_by_policy)
    measured = {}
    for policy in dict.fromkeys(policies):
        own = np.array([name == policy for name in policies])
        values = {name: _interval(column[own], days[own]) for name, column in numbers.items()}
        values["skill"] = skill.get(policy)
        bets = np.isin(trades.episode, np.flatnonzero(own)) & trades.is_bet
        measured[policy] = PolicyMetrics(policy, int(own.sum()), values, calibration_table(trades, bets))
    return measured


def per_episode(episodes: Sequence[Episode], worlds: Worlds, trades: Trades) -> dict[str, np.ndarray]:
    """Under each name of METRICS but skill, float64 (episodes,): the number of every episode, NaN where it has none.

    trades: those of the same episodes, from `trades_of`.
    """
    n = len(episodes)
    cash = np.array([worlds[str(episode.snapshot_id)][0].config.start_cash for episode in episodes])
    curves = [np.array([start, *(s.equity for s in e.steps)]) for start, e in zip(cash, episodes, strict=True)]
    falls = np.array([drawdown(curve) for curve in curves]).reshape(n, 2)
    expected = np.array([expected_pnl(episode) for episode in episodes])
    bets = trades.is_bet
    return {
        "expected_pnl": expected,
        "realised_pnl": np.array([finite(episode, "realised_pnl") for episode in episodes]),
        "return_on_capital": expected / cash,
        "max_drawdown": falls[:, 0],
        "drawdown_share": falls[:, 1],
        "hit_rate": _hit_rate(trades, n),
        "brier": _mean_by(trades.episode[bets], (trades.paid - trades.came)[bets] ** 2, n),
        "brier_latent": _mean_by(trades.episode[bets], (trades.paid - trades.worth)[bets] ** 2, n),
        "edge": _mean_by(trades.episode[bets], (trades.worth - trades.paid)[bets], n),
        "turnover": np.bincount(trades.episode, trades.volume, n) / cash,
        "fees": np.array([episode.fees for episode in episodes]),
        "trades": np.array([episode.trades for episode in episodes], float),
        "liquidations": np.array(
            [sum(bool(s.error and s.error.endswith(LIQUIDATED)) for s in e.steps) for e in episodes], float
        ),
        "invalid_actions": np.array([sum(not step.valid for step in e.steps) for e in episodes], float),
        "latency_ms": np.array([np.mean([step.latency_ms for step in e.steps]) for e in episodes]),
        "social_value": social_value(episodes, expected, worlds),
    }


def drawdown(equity: np.ndarray) -> tuple[float, float]:
    """The largest fall of an equity curve (n,) from its running peak, in dollars and as the largest share of a peak."""
    peak = np.maximum.accumulate(equity)
    return float((peak - equity).max()), float(((peak - equity) / peak).max())


def calibration_table(trades: Trades, rows: np.ndarray) -> list[dict[str, Any]]:
    """Purchases by the price paid: its mean, the mean final latent probability of the side, and how often it came true.

    A price paid includes fee and impact, and may thus be above 1: the last bin holds those too. Bins without purchases
    are left out.
    """
    table = []
    bins = np.digitize(trades.paid, np.linspace(0.0, 1.0, BINS, endpoint=False)[1:])
    for number in range(BINS):
        inside = rows & (bins == number)
        if inside.any():
            table.append(
                {
                    "from": round(number / BINS, 2),
                    "to": round((number + 1) / BINS, 2),
                    "trades": int(inside.sum()),
                    "paid": float(trades.paid[inside].mean()),
                    "latent": float(trades.worth[inside].mean()),
                    "came_true": float(trades.came[inside].mean()),
                }
            )
    return table


def market_day(episode: Episode) -> str:
    """What an episode shares its luck with: the market day of its snapshot, or the UTC date of live play."""
    if episode.snapshot_id is None:
        return episode.ended_at.date().isoformat()
    try:
        return str(parse_id(episode.snapshot_id)[1] // SNAPSHOTS_PER_DAY)
    except MalformedInput:
        # What is imported, or what another recorder calls a snapshot, stands for itself.
        return episode.snapshot_id


def expected_pnl(episode: Episode) -> float:
    """Expected PnL in dollars. Raises MalformedInput as `finite` does."""
    return finite(episode, "expected_pnl")


def by_snapshot(episodes: Sequence[Episode], worth: Callable[[Episode], float | None]) -> dict[str, float]:
    """Mean worth over the siblings on each snapshot, without episodes that have no snapshot or no worth."""
    found: dict[str, list[float]] = {}
    for episode in episodes:
        if episode.snapshot_id is not None and (value := worth(episode)) is not None:
            found.setdefault(episode.snapshot_id, []).append(value)
    return {snapshot: float(np.mean(values)) for snapshot, values in found.items()}


def skills(episodes_by_policy: Mapping[str, Sequence[Episode]]) -> dict[str, Interval]:
    """Where each policy stands between `hold` (0) and `oracle` (1), over the snapshots that all three have played.

    Siblings are averaged per snapshot, so that who played one more often than another is no better for it. A policy
    has no skill without such a snapshot, or where the oracle earned no more there than `hold`. Raises MalformedInput
    for an expected PnL that is not finite.
    """
    everybody = [episode for mine in episodes_by_policy.values() for episode in mine]
    hold, oracle = (_earned([e for e in everybody if e.policy == Policy(name)]) for name in ("hold", "oracle"))
    day = {episode.snapshot_id: market_day(episode) for episode in everybody}
    found = {}
    for policy, episodes in episodes_by_policy.items():
        mine = _earned(episodes)
        shared = sorted(set(mine) & set(hold) & set(oracle))
        floor = np.array([hold[s] for s in shared])
        above = np.array([mine[s] for s in shared]) - floor
        below = np.array([oracle[s] for s in shared]) - floor
        if shared and below.sum() > 0:
            found[policy] = ratio_interval(above, below, [day[s] for s in shared])
    return found


def _earned(episodes: Sequence[Episode]) -> dict[str, float]:
    return by_snapshot([e for e in episodes if e.expected_pnl is not None], expected_pnl)


def _hit_rate(trades: Trades, n: int) -> np.ndarray:
    """Repeated purchases of one side are one bet at their mean price, so that repeating a bet proves nothing."""
    opening = ~np.isnan(trades.paid)
    key = np.column_stack([trades.episode, trades.instrument, trades.do])[opening]
    sides, place = np.unique(key, axis=0, return_inverse=True)
    weight = trades.volume[opening]
    total = np.bincount(place, weight, len(sides))
    paid = total / np.bincount(place, weight / trades.paid[opening], len(sides))
    worth = np.bincount(place, trades.worth[opening] * weight, len(sides)) / total
    down = sides[:, 2] == Do.SHORT
    return _mean_by(sides[:, 0], np.where(down, worth < paid, worth > paid).astype(float), n)


def _mean_by(group: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    count = np.bincount(group, minlength=n)
    return np.divide(np.bincount(group, values, n), count, out=np.full(n, np.nan), where=count > 0)


def _interval(values: np.ndarray, days: np.ndarray) -> Interval | None:
    there = ~np.isnan(values)
    return cluster_interval(values[there], days[there].tolist()) if there.any() else None


def finite(episode: Episode, name: str) -> float:
    """A number of an episode. Raises MalformedInput where there is none or it is not finite."""
    value = getattr(episode, name)
    if value is None or not np.isfinite(value):
        raise MalformedInput(f"{name} of episode {episode.trajectory_id} is {value}; record it again or leave it out")
    return float(value)
