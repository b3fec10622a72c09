"""Checkpoints in the store: whoever plays or trains a model line has a copy on disk, and the store has all of them.

Without a store there is one machine, and what is on its disk is all there is.
"""

from __future__ import annotations

from pathlib import Path

from rl_assets.places import Place, bring_directory, keep_directory
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


def bring_line(checkpoints: Path) -> None:
    """Fetch every step of a model line that is not on disk: the next training counts its step from those there.

    checkpoints: the directory that holds the steps of the line.
    """
    any_step = archive_of(checkpoints / "0000")
    if any_step is not None:
        for archive in sorted(any_step.parent.glob(f"*{SUFFIX}"), key=lambda place: place.name):
            bring(checkpoints / archive.name.removesuffix(SUFFIX))


def archive_of(checkpoint: Path) -> Place | None:
    """Where the store keeps a checkpoint; None without a store, and for one outside the data directory."""
    settings = Settings.from_env()
    if settings.store is None or not checkpoint.is_relative_to(settings.data_dir):
        return None
    within = checkpoint.relative_to(settings.data_dir)
    return settings.store / within.parent.as_posix() / f"{within.name}{SUFFIX}"
