"""Measuring: repeated runs, their median and spread, and two things side by side in turn, so that drift cancels out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of each run of one thing."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.runs)

    def rate(self, amount: float) -> str:
        """Amount per second: median, and in brackets the slowest and the fastest run."""
        low, high = amount / max(self.runs), amount / min(self.runs)
        return f"{amount / self.median:,.0f} ({low:,.0f} … {high:,.0f})"

    def __str__(self) -> str:
        return f"{self.median:.3f} ({min(self.runs):.3f} … {max(self.runs):.3f})"


def measure(work: Callable[[], object], repeats: int, *, warm_up: int = 1) -> Seconds:
    """Time `repeats` calls, after some that do not count."""
    for _ in range(warm_up):
        work()
    return Seconds(tuple(_once(work) for _ in range(repeats)))


def side_by_side(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, *, warm_up: int = 1
) -> tuple[Seconds, Seconds, str]:
    """Time two things in turn, A B A B. Returns both and the ratio theirs / ours, pair by pair, as text."""
    for _ in range(warm_up):
        ours()
        theirs()
    pairs = [(_once(ours), _once(theirs)) for _ in range(repeats)]
    a, b = Seconds(tuple(pair[0] for pair in pairs)), Seconds(tuple(pair[1] for pair in pairs))
    return a, b, ratio([theirs_s / ours_s for ours_s, theirs_s in pairs])


def ratio(values: Sequence[float]) -> str:
    return f"{median(values):.2f}× ({min(values):.2f} … {max(values):.2f})"


def _once(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
