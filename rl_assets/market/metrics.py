"""What episodes on benchmark snapshots are worth: numbers per policy, each with an interval over market days.

How a group is ranked for training belongs in `rl_assets.judging`; whether a candidate goes live in `registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% interval; low and high are NaN where there is one cluster only."""

    mean: float
    low: float
    high: float
    clusters: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f}, {self.clusters} market days)"


def cluster_interval(values: np.ndarray, clusters: Sequence[object], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of values (n,) with a percentile bootstrap interval that resamples whole clusters (market days).

    Snapshots of one day share their tempo, so days and not snapshots are the independent draws. Raises ValueError
    without values.
    """
    if not len(values) or len(values) != len(clusters):
        raise ValueError(
            f"{len(values)} values and {len(clusters)} clusters; an interval needs equally many, at least one"
        )
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    place = np.array([names[name] for name in clusters])
    count = len(names)
    mean = float(np.mean(values))
    if count == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    total, size = np.bincount(place, values, count), np.bincount(place, minlength=count)
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    low, high = np.quantile((drawn @ total) / (drawn @ size), [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(mean, float(low), float(high), count)
