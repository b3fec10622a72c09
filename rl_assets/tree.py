"""The data tree, which every machine sees: where the snapshots, the files of a window and those of a batch are.

What is in a file is said by the module that writes it, most of them in `rl_assets.store`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl_assets.places import Place

MANIFEST, EPISODES = "manifest.json", "episodes.parquet"
"""Of a batch, for whoever has its files elsewhere."""


@dataclass(frozen=True)
class WindowFiles:
    """trajectories: the episodes of an hour. quarantine: its rows that are no episodes. versions: when each row had
    last changed. groups: who is compared with whom. rankings: what the judge said last."""

    directory: Place

    @property
    def trajectories(self) -> Place:
        return self.directory / "trajectories.parquet"

    @property
    def quarantine(self) -> Place:
        return self.directory / "quarantine.parquet"

    @property
    def versions(self) -> Place:
        return self.directory / "versions.parquet"

    @property
    def groups(self) -> Place:
        return self.directory / "groups.parquet"

    @property
    def rankings(self) -> Place:
        return self.directory / "rankings.parquet"


@dataclass(frozen=True)
class BatchFiles:
    """manifest: what was claimed. episodes: those that it names. evaluation: everybody's episodes on the gate.
    comparison: the directory of their comparison. report: the page about the batch."""

    directory: Place

    @property
    def manifest(self) -> Place:
        return self.directory / MANIFEST

    @property
    def episodes(self) -> Place:
        return self.directory / EPISODES

    @property
    def evaluation(self) -> Place:
        return self.directory / "evaluation.parquet"

    @property
    def comparison(self) -> Place:
        return self.directory / "evaluation"

    @property
    def report(self) -> Place:
        return self.directory / "report.html"


@dataclass(frozen=True)
class Tree:
    """snapshots: the directory of snapshots and of their sealed truths. leaderboard: that of the standings."""

    root: Place

    @property
    def snapshots(self) -> Place:
        return self.root / "snapshots"

    @property
    def leaderboard(self) -> Place:
        return self.root / "leaderboard"

    def window(self, window_id: str) -> WindowFiles:
        """Of an hour; the colon is left out, since some file systems do not take it."""
        return WindowFiles(self.root / "windows" / window_id.replace(":", ""))

    def batch(self, batch_id: str) -> BatchFiles:
        return BatchFiles(self.root / "batches" / batch_id)
