"""Checkpoints in the store: whoever plays or trains a model line has a copy on disk, and the store has all of them.

Without a store there is one machine, and what is on its disk is all there is.
"""

from __future__ import annotations

from pathlib import Path

from rl_assets.places import Place, bring_directory, bytes_at, delete, keep_directory
from rl_assets.settings import Settings

SUFFIX = ".tar"


def keep(checkpoint: Path) -> None:
    """Put a checkpoint into the store, unless it is there already. Raises RlAssetsError where the store refuses."""
    place = archive_of(checkpoint)
    if place is not None:
        keep_directory(checkpoint, place)


def bring(checkpoint: Path) -> bool:
    """Whether a checkpoint is on disk, fetched from the store if need be. Raises as `bring_directory` does."""
    if checkpoint.is_dir():
        return True
    place = archive_of(checkpoint)
    return place is not None and bring_directory(place, checkpoint)


def bring_newest(checkpoints: Path) -> None:
    """Fetch the newest step of a model line if it is not on disk: the next training counts its step from there, and a
    training that another machine has saved is not done again.

    checkpoints: the directory that holds the steps of the line.
    """
    first = archive_of(checkpoints / "0000")
    if first is not None:
        steps = [place.name.removesuffix(SUFFIX) for place in first.parent.glob(f"*{SUFFIX}")]
        newest = max((step for step in steps if step.isdigit()), key=int, default=None)
        if newest is not None:
            bring(checkpoints / newest)


def kept_bytes(checkpoint: Path) -> int | None:
    """The size of a checkpoint in the store; None where there is none. Raises RlAssetsError where the store refuses."""
    place = archive_of(checkpoint)
    return None if place is None else bytes_at(place)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint from the store, if it is there. Raises as `delete` does."""
    place = archive_of(checkpoint)
    if place is not None:
        delete(place)


def archive_of(checkpoint: Path) -> Place | None:
    """Where the store keeps a checkpoint; None without a store, and for one outside the data directory."""
    settings = Settings.from_env()
    if settings.store is None or not checkpoint.is_relative_to(settings.data_dir):
        return None
    within = checkpoint.relative_to(settings.data_dir)
    return settings.store / within.parent.as_posix() / f"{within.name}{SUFFIX}"
