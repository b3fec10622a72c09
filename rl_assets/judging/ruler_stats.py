"""What passes and judgement sets say about a judge: agreement, flips, noise and position bias.

Scores come as arrays float64 (passes, members), positions as int (passes, members): the place, from 0, at which a
member was shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

NO_NOISE_KNOWN = 0.05
"""Noise of a score from a single pass, where nothing tells how it would vary."""
LEAST_NOISE = 0.01
"""Judges answer in hundredths."""
EQUAL_RANGE = 3.0
"""How many standard errors best and worst of about ten equal members lie apart on average."""


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b in [-1, 1]. Two constant sequences agree (1); one and one that is not share nothing (0)."""
    a, b = _signs(np.asarray(first, float)), _signs(np.asarray(second, float))
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    if scale == 0.0:
        return float(not a.any() and not b.any())
    return float(np.sum(a * b) / scale)


def flips(first: Sequence[float], second: Sequence[float]) -> tuple[int, int]:
    """How many pairs are in opposite order, and how many are strictly ordered in both."""
    product = _signs(np.asarray(first, float)) * _signs(np.asarray(second, float))
    return int(np.sum(product < 0)), int(np.sum(product != 0))


def agreement(scores: np.ndarray) -> float:
    """Mean tau-b over all pairs of passes; 1 for a single pass."""
    pairs = list(combinations(scores, 2))
    return float(np.mean([kendall(a, b) for a, b in pairs])) if pairs else 1.0


def noise(scores: np.ndarray) -> float:
    """The standard error of a member's mean score, from how passes differ beyond their level; LEAST_NOISE at least."""
    passes, members = scores.shape
    if passes < 2 or members < 2:
        return NO_NOISE_KNOWN
    left = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    variance = float(np.sum(left**2)) / ((passes - 1) * (members - 1))
    return max(float(np.sqrt(variance / passes)), LEAST_NOISE)


def level(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Scores without what the place in the prompt adds to them, if that is linear; float64 (passes, members)."""
    bias = position_bias([(scores, positions)])
    share = positions / max(positions.shape[1] - 1, 1)
    return scores - (bias or 0.0) * (share - share.mean(axis=0))


def position_bias(passes: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """How much a score changes from the first place to the last, by least squares over (scores, positions) of groups.

    None where no member was shown at two places.
    """
    places, rests = [], []
    for scores, positions in passes:
        share = positions / max(positions.shape[1] - 1, 1)
        places.append((share - share.mean(axis=0)).ravel())
        rests.append((scores - scores.mean(axis=0)).ravel())
    x, y = (np.concatenate(parts) if parts else np.zeros(0) for parts in (places, rests))
    scale = float(np.sum(x * x))
    return float(np.sum(x * y)) / scale if scale else None


@dataclass(frozen=True, slots=True)
class SetAgreement:
    """Two judgements of the same groups. tau: mean of Kendall's tau-b over the groups, None without one. flipped: share
    of strictly ordered pairs that are in opposite order, None without a pair."""

    groups: int
    tau: float | None
    flipped: float | None


def compare(first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]) -> SetAgreement:
    """Compare scores by group and member. Only groups that both judged, with the same members, count."""
    taus, opposite, ordered = [], 0, 0
    for group in sorted(first.keys() & second.keys()):
        members = sorted(first[group])
        if len(members) < 2 or members != sorted(second[group]):
            continue
        a, b = [first[group][m] for m in members], [second[group][m] for m in members]
        taus.append(kendall(a, b))
        here = flips(a, b)
        opposite, ordered = opposite + here[0], ordered + here[1]
    return SetAgreement(len(taus), float(np.mean(taus)) if taus else None, opposite / ordered if ordered else None)


def _signs(values: np.ndarray) -> np.ndarray:
    """The sign of the difference of each pair, int (pairs,)."""
    upper = np.triu_indices(len(values), 1)
    return np.sign(values[:, None] - values[None, :])[upper]
