"""Recorded trajectories: the episodes of an hour, read from Postgres and kept as typed Parquet."""

from array import array
from collections import Counter
from collections.abc import Iterator
from heapq import nsmallest
from itertools import chain
from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.assets.columns import BABYLON_TRAJECTORIES, TRAJECTORIES
from rl_assets.assets.shown import OWNERS, TREE, counts, definition, picture, table
from rl_assets.automation.partitions import EVERYTHING, HOURS
from rl_assets.automation.policies import DATABASE, HOURLY
from rl_assets.places import Place
from rl_assets.resources import Database, Lake
from rl_assets.tree import WindowFiles

if TYPE_CHECKING:
    from rl_assets.episodes import Episode
    from rl_assets.store.episodes import WindowPart

REPLAYED = 16
"""Benchmark episodes per window that are played again; every episode of a batch is, before it is trained on."""

babylon_trajectories = dg.AssetSpec(
    "babylon_trajectories",
    group_name="sources",
    kinds={"postgres"},
    owners=OWNERS,
    description="Babylon's tables `trajectories` and `llm_call_logs`. The game and the harness write them; the window "
    "sensor watches them.",
    metadata=definition("docs/production.md", table="trajectories", schema=BABYLON_TRAJECTORIES),
)


@dg.asset(
    partitions_def=HOURS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL),
    deps=[babylon_trajectories, dg.AssetDep("benchmark_snapshots", partition_mapping=EVERYTHING)],
    pool=DATABASE,
    freshness_policy=HOURLY,
    group_name="experience",
    kinds={"postgres", "parquet"},
    owners=OWNERS,
    description="Every episode recorded in the hour, of every shape that Babylon has written, as typed Parquet. "
    "Rows that cannot be read go to quarantine with a reason each; rows that cannot be trained on say why.",
    check_specs=[
        dg.AssetCheckSpec(
            "replay_sample",
            asset="recorded_trajectories",
            blocking=True,
            description="A sample of benchmark episodes, played again from snapshot and actions, gives the recorded "
            "states and rewards bit for bit.",
        ),
        dg.AssetCheckSpec(
            "nothing_quarantined",
            asset="recorded_trajectories",
            description="No row of the window was rejected. A rejected row stops nothing; look at quarantine.parquet.",
        ),
    ],
    metadata=definition("docs/concepts.md", file=TREE.window("{hour}").trajectories, schema=TRAJECTORIES),
)
def recorded_trajectories(
    context: dg.AssetExecutionContext, database: Database, lake: Lake
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from rl_assets.reports.plots import distribution_by_policy
    from rl_assets.store.episodes import read_window
    from rl_assets.store.snapshots import without_unknown
    from rl_assets.store.window_files import written_window

    replayed, faults, reasons = 0, [], Counter()
    pnl: dict[str, array] = {}
    tree = lake.tree
    with database.connect() as conn:
        for window in context.partition_keys:
            files, found = tree.window(window), _Found()
            with written_window(files) as add:
                for read in read_window(conn, window):
                    part = without_unknown(conn, read, tree.snapshots)
                    add(part)
                    found.add(part)
            count, wrong = replay_sample(found.sample, tree.snapshots, REPLAYED)
            replayed, faults = replayed + count, faults + wrong
            reasons.update(found.rejected)
            for policy, values in found.pnl.items():
                pnl.setdefault(policy, array("d")).extend(values)
            context.add_asset_metadata(found.described(files), partition_key=window)
    yield dg.AssetCheckResult(
        check_name="replay_sample",
        passed=not faults,
        metadata={"episodes_replayed": replayed, "mismatches": table(faults)},
    )
    yield dg.AssetCheckResult(
        check_name="nothing_quarantined",
        passed=not reasons,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"rows_by_reason": dict(reasons)},
    )
    shown = {"pnl_by_policy_dollars": picture(distribution_by_policy(pnl, "PnL (dollars per episode)"))} if pnl else {}
    yield dg.MaterializeResult(metadata={"windows_in_run": len(context.partition_keys), **shown})


def replay_sample(episodes: list["Episode"], root: Place, most: int | None) -> tuple[int, list[dict[str, str]]]:
    """Play benchmark episodes again, `most` of them or all, chosen by content hash: how many, and mismatches."""
    from rl_assets.agents.replay import replay_all
    from rl_assets.market.snapshot import load_world

    played = sorted((e for e in episodes if e.snapshot_id is not None), key=lambda e: e.content_hash)[:most]
    worlds = {key: load_world(root, key) for key in {str(e.snapshot_id) for e in played}}
    faults = [
        {"trajectory": episode.trajectory_id, "snapshot": episode.snapshot_id, "mismatch": mismatch}
        for episode, differences in zip(played, replay_all(played, worlds), strict=True)
        for mismatch in differences
    ]
    return len(played), faults


class _Found:
    """What is told of a window, counted while it is read. sample: the benchmark episodes that come first by their
    content hash, to be played again. pnl: dollars by policy, expected where there is such a thing, else realised."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self.pnl: dict[str, array] = {}
        self._first: list[tuple[str, str, Episode]] = []
        self._episodes, self._ticks, self._seconds = 0, 0, 0.0
        self._by_policy: Counter[str] = Counter()
        self._untrainable: Counter[str] = Counter()

    @property
    def sample(self) -> list["Episode"]:
        return [episode for *_, episode in self._first]

    def add(self, part: "WindowPart") -> None:
        self.rejected.update(reject.reason for reject in part.rejects)
        for episode in part.episodes:
            policy, reason = str(episode.policy), episode.not_trainable
            self._episodes += 1
            self._ticks += len(episode.steps)
            self._seconds += (episode.ended_at - episode.started_at).total_seconds()
            self._by_policy[policy] += 1
            if reason is not None:
                self._untrainable[reason] += 1
            value = episode.expected_pnl if episode.expected_pnl is not None else episode.realised_pnl
            if value is not None:
                self.pnl.setdefault(policy, array("d")).append(value)
        played = ((e.content_hash, e.trajectory_id, e) for e in part.episodes if e.snapshot_id is not None)
        self._first = nsmallest(REPLAYED, chain(self._first, played), key=lambda one: one[:2])

    def described(self, files: WindowFiles) -> dict:
        return {
            "dagster/row_count": self._episodes,
            "episodes_by_policy": counts("policy", self._by_policy),
            "not_trainable_by_reason": counts("reason", self._untrainable),
            "quarantined_by_reason": counts("reason", self.rejected),
            "agent_ticks": self._ticks,
            "play_seconds": round(self._seconds, 1),
            "file": dg.MetadataValue.path(str(files.trajectories)),
        }
