"""Which engine plays a snapshot: our own, or the one with the live game's arithmetic for what was imported."""

from __future__ import annotations

from collections.abc import Sequence

from rl_assets.market.babylon.engine import BabylonEngine
from rl_assets.market.babylon.snapshot import BabylonSnapshot
from rl_assets.market.engine import Engine
from rl_assets.market.snapshot import Snapshot


def engine_for(snapshots: Sequence[Snapshot]) -> Engine:
    """An engine with one episode per snapshot. Raises ValueError where they do not fit on one."""
    imported = any(isinstance(snapshot, BabylonSnapshot) for snapshot in snapshots)
    return (BabylonEngine if imported else Engine)(list(snapshots))
