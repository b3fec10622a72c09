"""The gate: whether a candidate has played better than the champion, and the numbers that say so.

Pure NumPy. Candidate and champion play the same gate snapshots with the same draws; siblings are averaged per snapshot,
snapshots per market day, and the days' differences are what is counted, because snapshots of a day share their news.

The bound is exact and needs no normal distribution: where a day's difference is symmetric about its true value, that
value lies below the j-th smallest of the means of all subsets of the days with probability j / 2^days (Hartigan,
"Using subsample values as typical values", JASA 1969; it is the sign-flip test turned into an interval).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from rl_assets.errors import MalformedInput

ENUMERATED_DAYS = 16
"""Up to so many days every subset is looked at; beyond it, as many random ones, which keeps the bound exact."""


@dataclass(frozen=True)
class Gate:
    """What a candidate must show.

    alpha: probability with which a champion may ever lose its place to a model that is no better. minimum_effect:
    dollars of expected PnL per episode. drawdown_factor, drawdown_dollars: the candidate's mean drawdown may be the
    champion's times the one plus the other; deeper than that, each dollar must be paid for by drawdown_price dollars
    of the gain's lower bound. breaches: how many more per episode. least_trades: trades per episode; a
    policy that never trades earns 0 and leaves nothing to learn from.
    """

    alpha: float = 0.05
    minimum_effect: float = 0.1
    drawdown_factor: float = 1.1
    drawdown_dollars: float = 0.5
    drawdown_price: float = 1.0
    breaches: float = 0.05
    least_trades: float = 0.5


@dataclass(frozen=True, eq=False)
class Play:
    """What a policy did on the gate: float64 (snapshots, siblings) each, in dollars or counts per episode."""

    expected_pnl: np.ndarray
    realised_pnl: np.ndarray
    max_drawdown: np.ndarray
    breaches: np.ndarray
    trades: np.ndarray

    def means(self) -> Means:
        return Means(**{field.name: float(getattr(self, field.name).mean()) for field in fields(Means)})


@dataclass(frozen=True)
class Means:
    """Means per episode, in dollars or counts."""

    expected_pnl: float
    realised_pnl: float
    max_drawdown: float
    breaches: float
    trades: float


@dataclass(frozen=True)
class Condition:
    """One thing the gate asks for. candidate, champion: what each has, in `unit`; the gain's bound is None where there
    are too few days for one, and the champion has none. limit: what the candidate's must be, in words."""

    name: str
    unit: str
    candidate: float | None
    champion: float | None
    limit: str
    holds: bool

    def __str__(self) -> str:
        value = "unknown" if self.candidate is None else f"{self.candidate:.2f} {self.unit}"
        return f"{self.name} {value}, must be {self.limit}"


@dataclass(frozen=True)
class Decision:
    """What the gate found. `reason` is a sentence for people; `conditions` are what it rests on.

    effect: mean paired difference of expected PnL, dollars per episode. lower, upper: one-sided bounds of it, each
    missed with probability `alpha`; None where there are too few days for that. look: the how-manieth candidate this
    is that the champion is compared with. most_drawdown, most_breaches, least_trades: limits for the candidate's means.
    day_effects: the difference on each market day, in order of `days`.
    """

    promote: bool
    reason: str
    effect: float
    lower: float | None
    upper: float | None
    alpha: float
    look: int
    minimum_effect: float
    snapshots: int
    siblings: int
    days: tuple[int, ...]
    day_effects: tuple[float, ...]
    candidate: Means
    champion: Means
    most_drawdown: float
    most_breaches: float
    least_trades: float

    @property
    def still_trades(self) -> bool:
        return self.candidate.trades >= self.least_trades

    def conditions(self) -> list[Condition]:
        """What the gate asks for; a candidate is promoted where all of it holds."""
        ours, theirs, dollars, count = self.candidate, self.champion, "dollars per episode", "per episode"
        return [
            Condition(
                "lower bound of the gain",
                dollars,
                self.lower,
                None,
                f"above {self.minimum_effect:.2f}",
                self.lower is not None and self.lower > self.minimum_effect,
            ),
            Condition(
                "drawdown",
                dollars,
                ours.max_drawdown,
                theirs.max_drawdown,
                f"at most {self.most_drawdown:.2f}",
                ours.max_drawdown <= self.most_drawdown,
            ),
            Condition(
                "breaches",
                count,
                ours.breaches,
                theirs.breaches,
                f"at most {self.most_breaches:.2f}",
                ours.breaches <= self.most_breaches,
            ),
            Condition(
                "trades", count, ours.trades, theirs.trades, f"at least {self.least_trades:.2f}", self.still_trades
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "days": list(self.days), "day_effects": list(self.day_effects)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Decision:
        """Raises MalformedInput if it is not what `to_json` gives."""
        try:
            parts = {"candidate": Means(**raw["candidate"]), "champion": Means(**raw["champion"])}
            return cls(**{**raw, **parts, "days": tuple(raw["days"]), "day_effects": tuple(raw["day_effects"])})
        except (KeyError, TypeError) as error:
            raise MalformedInput(
                f"a recorded decision of the gate lacks {error}; evaluate the candidate again with this version"
            ) from error


def spent_alpha(alpha: float, look: int) -> float:
    """The share of alpha that the `look`-th candidate (from 1) may spend: over all looks the shares sum to alpha."""
    return alpha * 6.0 / (math.pi * look) ** 2


def compare(days: np.ndarray, candidate: Play, champion: Play, *, look: int, gate: Gate | None = None) -> Decision:
    """Decide from paired play. days: int (snapshots,), the market day of each snapshot.

    Raises MalformedInput where the two have not played the same snapshots alike, or a number is not finite.
    """
    gate = gate or Gate()
    _check(days, candidate, champion, look)
    paired = (candidate.expected_pnl - champion.expected_pnl).mean(axis=1)
    by_day = daily(days, paired)
    alpha = spent_alpha(gate.alpha, look)
    lower = lower_bound(by_day, alpha)
    upper = lower_bound(-by_day, alpha)
    ours, theirs = candidate.means(), champion.means()
    paid_for = theirs.max_drawdown + max(lower or 0.0, 0.0) / gate.drawdown_price
    decision = Decision(
        promote=False,
        reason="",
        effect=float(by_day.mean()),
        lower=lower,
        upper=None if upper is None else -upper,
        alpha=alpha,
        look=look,
        minimum_effect=gate.minimum_effect,
        snapshots=len(paired),
        siblings=candidate.expected_pnl.shape[1],
        days=tuple(int(day) for day in np.unique(days)),
        day_effects=tuple(float(effect) for effect in by_day),
        candidate=ours,
        champion=theirs,
        most_drawdown=max(theirs.max_drawdown * gate.drawdown_factor + gate.drawdown_dollars, paid_for),
        most_breaches=theirs.breaches + gate.breaches,
        least_trades=gate.least_trades,
    )
    faults = _faults(decision)
    found = (
        f"expected PnL differs by {decision.effect:+.2f} dollars per episode from the champion's over "
        f"{len(by_day)} market days, lower bound {'none' if lower is None else f'{lower:+.2f}'}"
    )
    reason = f"rejected: {'; '.join(faults)} ({found})" if faults else f"promoted: {found}"
    return replace(decision, promote=not faults, reason=reason)


def daily(days: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64 (days,): the mean of each market day's values, days in ascending order."""
    _, place = np.unique(days, return_inverse=True)
    return np.bincount(place, weights=values) / np.bincount(place)


def lower_bound(values: np.ndarray, alpha: float) -> float | None:
    """The bound that lies above the true mean with probability at most alpha. values: float64 (days,).

    None where so few values cannot bound anything at this alpha.
    """
    subsets = _subsets(len(values))
    place = math.floor(alpha * (len(subsets) + 1))
    if place < 1:
        return None
    return float(np.partition(subsets @ values, place - 1)[place - 1])


@lru_cache(maxsize=4)
def _subsets(count: int) -> np.ndarray:
    """float64 (subsets, count): the weights with which each subset, none of them empty, makes its mean."""
    if count <= ENUMERATED_DAYS:
        chosen = (np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1
    else:
        drawn = np.random.default_rng([count, 1969]).integers(0, 2, size=(2**ENUMERATED_DAYS - 1, count))
        chosen = drawn[drawn.any(axis=1)]
    return chosen / chosen.sum(axis=1, keepdims=True)


def _faults(d: Decision) -> list[str]:
    least = math.ceil(math.log2(1 / d.alpha))
    few = f"{len(d.days)} market days cannot decide at alpha {d.alpha:.4f}, it takes {least}"
    return [few if one.candidate is None else str(one) for one in d.conditions() if not one.holds]


def _check(days: np.ndarray, candidate: Play, champion: Play, look: int) -> None:
    shape = candidate.expected_pnl.shape
    if len(shape) != 2 or 0 in shape or days.shape != shape[:1]:
        raise MalformedInput(f"the gate needs play of shape (snapshots, siblings) and a day for each, got {shape}")
    for play in (candidate, champion):
        for field in fields(Play):
            values = getattr(play, field.name)
            if values.shape != shape:
                raise MalformedInput(
                    f"candidate and champion must play alike: {field.name} has shape {values.shape}, not {shape}"
                )
            if not np.isfinite(values).all():
                raise MalformedInput(f"{field.name} of an episode on the gate is not a finite number; play it again")
    if look < 1:
        raise MalformedInput(f"candidates of a champion are counted from 1, got {look}")
