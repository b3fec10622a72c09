"""The data tree, which every machine sees: where the snapshots, the files of a window and those of a batch are.

What is in a file is said by the module that writes it, most of them in `rl_assets.store`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl_assets.places import Place

BATCH_MANIFEST, BATCH_EPISODES = "manifest.json", "episodes.parquet"
"""For whoever has the files of a batch elsewhere."""


def public_file(snapshots: Place, snapshot_id: str) -> Place:
    """Where what everybody may read of a snapshot is."""
    return snapshots / snapshot_id / "public.json"


def sealed_file(snapshots: Place, snapshot_id: str) -> Place:
    """Where a snapshot's truth is, apart from it."""
    return snapshots / "sealed" / f"{snapshot_id}.json"


class WindowFiles:
    """trajectories: the episodes of an hour. quarantine: its rows that are no episodes. versions: when each row had
    last changed. groups: who is compared with whom. rankings: what the judge said last."""

    def __init__(self, directory: Place) -> None:
        self.directory = directory
        self.trajectories = directory / "trajectories.parquet"
        self.quarantine = directory / "quarantine.parquet"
        self.versions = directory / "versions.parquet"
        self.groups = directory / "groups.parquet"
        self.rankings = directory / "rankings.parquet"


class BatchFiles:
    """manifest: what was claimed. episodes: those that it names. evaluation: everybody's episodes on the gate.
    comparison: the directory of their comparison. report: the page about the batch."""

    def __init__(self, directory: Place) -> None:
        self.directory = directory
        self.manifest = directory / BATCH_MANIFEST
        self.episodes = directory / BATCH_EPISODES
        self.evaluation = directory / "evaluation.parquet"
        self.comparison = directory / "evaluation"
        self.report = directory / "report.html"


class RunFiles:
    """What was played in a run, in a comparison or for the standings. episodes: all of it. table: a line per episode,
    for a spreadsheet. report: the page about it."""

    def __init__(self, directory: Place) -> None:
        self.episodes = directory / "episodes.parquet"
        self.table = directory / "episodes.csv"
        self.report = directory / "report.html"


@dataclass(frozen=True)
class Tree:
    """root: of snapshots, windows, batches and standings."""

    root: Place

    @property
    def snapshots(self) -> Place:
        """The root of `public_file` and `sealed_file`."""
        return self.root / "snapshots"

    @property
    def leaderboard(self) -> Place:
        return self.root / "leaderboard"

    def window(self, window_id: str) -> WindowFiles:
        """Of an hour; the colon is left out, since some file systems do not take it."""
        return WindowFiles(self.root / "windows" / window_id.replace(":", ""))

    def batch(self, batch_id: str) -> BatchFiles:
        return BatchFiles(self.root / "batches" / batch_id)
