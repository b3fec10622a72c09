"""A confidence sequence: bounds of a mean that hold at all times at once, so that one may look after every episode.

Pure NumPy. The bounds are those of betting: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", JRSS B 86 (2024) 1-27, with the predictable plug-in bets of its section 3; by Ville's inequality, and in the
line of Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals
of Statistics 49 (2021) 1055-1080. Nothing is asked of the observations but that they lie in [-1, 1]: no normal
distribution, no equal variances, and no independence beyond what the mean given the past says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LARGEST_BET = 0.375
"""Of a bet on an observation in [-1, 1], so that no wealth falls below a quarter at once."""
_HALVINGS = 24


@dataclass(frozen=True, slots=True)
class Bounds:
    """mean: of the observations so far. lower, upper: each is missed, at any time ever, with probability `alpha`."""

    mean: float
    lower: float
    upper: float
    count: int


def bounds(values: np.ndarray, alpha: float) -> Bounds:
    """Bounds after values: float64 (n,) in [-1, 1], in the order in which they came; -1 and 1 where there are none.

    Where the mean of each value, given those before it, is at least m, `upper` falls below m at any time with
    probability at most alpha; the same holds for `lower` above. Both are the tightest that any moment so far has given.
    Raises ValueError for a value outside [-1, 1].
    """
    values = np.asarray(values, np.float64)
    if not (np.abs(values) <= 1.0).all():
        raise ValueError("observations of a confidence sequence must lie in [-1, 1]")
    if not len(values):
        return Bounds(0.0, -1.0, 1.0, 0)
    bets = _bets(values, alpha)
    return Bounds(float(values.mean()), -_upper(-values, bets, alpha), _upper(values, bets, alpha), len(values))


def _upper(values: np.ndarray, bets: np.ndarray, alpha: float) -> float:
    """The largest mean against which a bettor on smaller values has never made 1 / alpha of his stake."""
    needed = math.log(1.0 / alpha)

    def won(mean: float) -> bool:
        return float(np.cumsum(np.log1p(bets * (mean - values))).max()) >= needed

    low, high = -1.0, 1.0
    if not won(high):
        return high
    for _ in range(_HALVINGS):  # wealth grows with the mean that is bet against
        middle = (low + high) / 2.0
        low, high = (low, middle) if won(middle) else (middle, high)
    return high


def _bets(values: np.ndarray, alpha: float) -> np.ndarray:
    """float64 (n,): what is bet on each value, decided by those before it alone. Sides do not matter to it."""
    n = len(values)
    times = np.arange(1, n + 1)
    means = np.cumsum(values) / (times + 1)  # a zero is counted in front
    spread = np.concatenate([[1.0], (1.0 + np.cumsum((values - means) ** 2)) / (times + 1)])[:n]
    return np.minimum(np.sqrt(2.0 * math.log(1.0 / alpha) / (spread * times * np.log1p(times))), LARGEST_BET)
