"""Grouping a window that is on disk, in shares wherever that is: each reads from the window's file what it groups."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from rl_assets.grouping import Group, Share, deal
from rl_assets.places import Place
from rl_assets.spread import spread, width
from rl_assets.store.window_files import read_alike

SHARE = 100_000
"""Episodes of a share, at least: a window of fewer than two of these is grouped sooner than it is sent anywhere."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """groups: as `deal` returns them. stable: whether the episodes in reverse gave the same."""

    groups: Sequence[Group]
    stable: bool


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a window is grouped. trajectories: the window's file. group_size, recompute: as for `deal`."""

    trajectories: Place
    window_id: str
    group_size: int
    recompute: bool = False

    def __call__(self, share: Share) -> Grouped:
        """Group a share of the window, twice. Raises as `deal` does, and MalformedInput where the file is not a
        window's."""
        alike = read_alike(self.trajectories, share)
        how = {"window_id": self.window_id, "group_size": self.group_size, "recompute": self.recompute}
        groups = deal(alike, **how)
        backwards = [some._replace(trajectory_ids=some.trajectory_ids[::-1]) for some in reversed(alike)]
        return Grouped(groups, deal(backwards, **how) == groups)


def group_window(grouping: Grouping, episodes: int) -> Grouped:
    """The groups of a window of so many episodes, which are the same in however many shares they are made."""
    shares = max(min(width(), episodes // SHARE), 1)
    if shares == 1:
        return grouping(Share())
    found = list(spread(grouping, [Share(number, shares) for number in range(shares)]))
    groups = heapq.merge(*(part.groups for part in found), key=lambda group: (group.kind, group.key))
    return Grouped(list(groups), all(part.stable for part in found))
