"""The files of one window, of any size: written while it is read, and read back by columns or by a few episodes.

Episodes are in order of trajectory id, each with why GRPO cannot use it, if it cannot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from rl_assets.collector import paused_collector
from rl_assets.episodes import Episode, Policy
from rl_assets.grouping import Alike, Group, Share
from rl_assets.judging import JudgementSet
from rl_assets.places import Place, local_file, whole_file
from rl_assets.store.episode_files import EPISODES, ROWS_AT_ONCE, episodes_of, episodes_table, parquet_file, readable
from rl_assets.store.episodes import WindowPart
from rl_assets.tree import WindowFiles

TRAJECTORIES = EPISODES.append(pa.field("not_trainable", pa.string()))
VERSIONS = pa.schema({"trajectory_id": pa.string(), "version": pa.string()})
QUARANTINE = pa.schema({"trajectory_id": pa.string(), "reason": pa.string(), "detail": pa.string()})
GROUPS = pa.schema(
    {
        "group_id": pa.string(),
        "kind": pa.string(),
        "key": pa.string(),
        "window_id": pa.string(),
        "trajectory_ids": pa.list_(pa.string()),
        "trainable": pa.bool_(),
        "reason": pa.string(),
        "policy": pa.string(),
        "step": pa.int64(),
    }
)
"""A column per field of `Group`, of the same name."""
RANKINGS = pa.schema(
    {
        "group_id": pa.string(),
        "trajectory_id": pa.string(),
        "score": pa.float64(),
        "rank": pa.int64(),
        "explanation": pa.string(),
        "trainable": pa.bool_(),
        "reason": pa.string(),
    }
)
_COMMON = ("snapshot_id", "prompt_version", "scenario_id", "not_trainable")


@contextmanager
def written_window(files: WindowFiles) -> Iterator[Callable[[WindowPart], None]]:
    """What takes the parts of a window, one after the other; its files are whole at the end, or as they were before.

    Raises RlAssetsError if the disk is full or not writable.
    """
    # The last to be entered is the first in its place: a crash in between leaves versions that are too old, and such
    # rows are read again.
    with (
        _rows(files.versions, VERSIONS) as versions,
        _rows(files.quarantine, QUARANTINE) as quarantine,
        _rows(files.trajectories, TRAJECTORIES) as trajectories,
    ):

        def add(part: WindowPart) -> None:
            ids = list(part.versions)
            reasons = pa.array([episode.not_trainable for episode in part.episodes], pa.string())
            trajectories(episodes_table(part.episodes).append_column(TRAJECTORIES.field("not_trainable"), reasons))
            rejects = [{"trajectory_id": r.trajectory_id, "reason": r.reason, "detail": r.detail} for r in part.rejects]
            quarantine(pa.Table.from_pylist(rejects, QUARANTINE))
            versions(pa.table([ids, [part.versions[one] for one in ids]], VERSIONS))

        yield add


@paused_collector()
def read_alike(path: Place, share: Share = Share()) -> list[Alike]:
    """Which episodes of a window, or of a share of it, have all in common that grouping asks for.

    Reads these columns alone. Raises MalformedInput if the file is not what `written_window` makes.
    """
    with parquet_file(path, TRAJECTORIES) as file, readable(path):
        table = file.read(["trajectory_id", "policy", *_COMMON]).flatten()
    keys = ["policy.name", "policy.step", *_COMMON]
    found = table.group_by(keys).aggregate([("trajectory_id", "list")])
    if share.of > 1:
        asked = (found[name].to_pylist() for name in ("policy.name", "policy.step", "snapshot_id", "scenario_id"))
        found = found.filter(pa.array([share.holds(*row) for row in zip(*asked, strict=True)], pa.bool_()))
    columns = (found[name].to_pylist() for name in [*keys, "trajectory_id_list"])
    return [Alike(Policy(name, step), *common) for name, step, *common in zip(*columns, strict=True)]


def read_expected_pnl(path: Place) -> pa.Table:
    """Of each episode of a window, `trajectory_id` and `expected_pnl` in dollars. Raises as `read_alike` does."""
    with parquet_file(path, TRAJECTORIES) as file, readable(path):
        return file.read(["trajectory_id", "expected_pnl"])


def write_groups(path: Place, groups: Sequence[Group]) -> None:
    """Raises RlAssetsError if the disk is full or not writable."""
    with _rows(path, GROUPS) as add:
        for start in range(0, len(groups), ROWS_AT_ONCE):
            some = groups[start : start + ROWS_AT_ONCE]
            add(pa.table([[getattr(group, name) for group in some] for name in GROUPS.names], GROUPS))


def read_groups(path: Place) -> list[Group]:
    """The groups of a window, as `write_groups` wrote them. Raises MalformedInput if they are not that."""
    with parquet_file(path, GROUPS) as file, readable(path):
        rows = (row for batch in file.iter_batches(ROWS_AT_ONCE) for row in batch.to_pylist())
        return [Group(**{**row, "trajectory_ids": tuple(row["trajectory_ids"])}) for row in rows]


def write_rankings(path: Place, judgement: JudgementSet) -> None:
    """One row per member, best first within its group; without score where its group was not judged.

    Raises RlAssetsError if the disk is full or not writable.
    """
    groups = {group.group_id: group for group in judgement.groups}
    with _rows(path, RANKINGS) as add:
        for start in range(0, len(judgement.rankings), ROWS_AT_ONCE):
            rows: list[tuple] = []
            for ranking in judgement.rankings[start : start + ROWS_AT_ONCE]:
                judged = [(v.trajectory_id, v.score, v.rank, v.explanation) for v in ranking.verdicts]
                members = judged or [(one, None, None, None) for one in sorted(groups[ranking.group_id].trajectory_ids)]
                rows += [(ranking.group_id, *member, ranking.trainable, ranking.reason) for member in members]
            add(pa.table([list(column) for column in zip(*rows, strict=True)], RANKINGS))


def read_versions(path: Place) -> dict[str, str]:
    """Of each row of a window, by trajectory id, when it had last changed, as `written_window` was told.

    Nothing where an earlier version of this project read the window: any row may then have changed since, and is read
    again.
    """
    if not path.is_file():
        return {}
    with readable(path), local_file(path) as file:
        table = pq.read_table(file)
    return dict(zip(table["trajectory_id"].to_pylist(), table["version"].to_pylist(), strict=True))


class WindowEpisodes:
    """The episodes of a window on disk, some of which are read at a time."""

    def __init__(self, path: Place, file: pq.ParquetFile) -> None:
        self._path, self._file = path, file
        with readable(path):
            ids = file.read(["trajectory_id"])["trajectory_id"].to_pylist()
        self._rows = {identity: row for row, identity in enumerate(ids)}

    def by_place(self, groups: Sequence[Group]) -> list[Group]:
        """The groups in order of their first members' places: neighbours are then read together."""
        return sorted(groups, key=lambda group: min(self._rows[member] for member in group.trajectory_ids))

    def rows(self, groups: Sequence[Group]) -> list[int]:
        """The places in the file of the groups' members, for `read_rows`."""
        return sorted(self._rows[member] for group in groups for member in group.trajectory_ids)

    def of(self, groups: Sequence[Group]) -> dict[str, Episode]:
        """The members of groups, by trajectory id."""
        return _read_rows(self._path, self._file, self.rows(groups))


def read_rows(path: Place, rows: Sequence[int]) -> dict[str, Episode]:
    """The episodes of a window in some rows of its file, by trajectory id; only the parts that hold them are read.

    Raises MalformedInput if they cannot be read.
    """
    with parquet_file(path, EPISODES) as file:
        return _read_rows(path, file, rows)


def _read_rows(path: Place, file: pq.ParquetFile, rows: Sequence[int]) -> dict[str, Episode]:
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    starts = list(accumulate(sizes, initial=0))
    parts: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        number = bisect_right(starts, row) - 1
        parts[number].append(row - starts[number])
    episodes: dict[str, Episode] = {}
    with readable(path):
        for number, within in parts.items():
            table = file.read_row_group(number, EPISODES.names).take(within)
            episodes.update((episode.trajectory_id, episode) for episode in episodes_of(table))
    return episodes


@contextmanager
def window_episodes(path: Place) -> Iterator[WindowEpisodes]:
    """The episodes of a window, as long as it is entered. Raises MalformedInput if they cannot be read."""
    with parquet_file(path, EPISODES) as file:
        yield WindowEpisodes(path, file)


@contextmanager
def _rows(path: Place, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """What takes rows of a file that becomes whole at the end; they are written ROWS_AT_ONCE or more at a time."""
    with whole_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        held: list[pa.Table] = []

        def add(table: pa.Table) -> None:
            held.append(table)
            if sum(map(len, held)) >= ROWS_AT_ONCE:
                writer.write_table(pa.concat_tables(held))
                held.clear()

        yield add
        if held:
            writer.write_table(pa.concat_tables(held))
