"""GRPO groups: episodes of an hour that may be compared with each other, named by the hash of their members."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.assets.shown import OWNERS, columns, picture, plainly, required, table
from rl_assets.automation.partitions import HOURS
from rl_assets.places import Place, local_file
from rl_assets.resources import Judge, Lake

if TYPE_CHECKING:
    from rl_assets.episodes import Episode
    from rl_assets.grouping import Group


@dg.asset(
    partitions_def=HOURS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=["recorded_trajectories"],
    group_name="experience",
    kinds={"python", "parquet"},
    owners=OWNERS,
    description="Which episodes are compared: the same snapshot, prompt version and policy step, or the same live "
    "window and scenario. A group that cannot be trained on is kept, with the reason.",
    check_specs=[
        dg.AssetCheckSpec(
            "each_episode_once",
            asset="grpo_groups",
            blocking=True,
            description="Each episode of the window is in exactly one group.",
        ),
        dg.AssetCheckSpec(
            "order_does_not_matter",
            asset="grpo_groups",
            blocking=True,
            description="Grouping the episodes in reverse gives the same groups under the same names.",
        ),
    ],
    metadata={
        "dagster/column_schema": columns(
            group_id="string: hash of kind, key and sorted members",
            kind="string: benchmark or live",
            key="string: what the members have in common",
            trajectory_ids="list[string]: the members",
            trainable="bool: whether GRPO may learn from it",
            reason="string: why it is not trainable",
        )
    },
)
def grpo_groups(
    context: dg.AssetExecutionContext, lake: Lake, judge: Judge
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from rl_assets.grouping import build_groups
    from rl_assets.reports.plots import group_spread
    from rl_assets.store.lake import read_episodes_parquet, write_table
    from rl_assets.windows import hold_back

    lost, unstable, spread = [], [], {}
    with plainly():
        for window in context.partition_keys:
            directory = lake.window(window)
            path = required(
                directory / "trajectories.parquet",
                f"recorded_trajectories of {window} is not there; materialize it before grpo_groups",
            )
            episodes = read_episodes_parquet(path)
            groups = build_groups(episodes, window_id=window, group_size=judge.members)
            again = build_groups(episodes[::-1], window_id=window, group_size=judge.members)
            lost += _miscounted(window, [e.trajectory_id for e in episodes], groups)
            if {group.group_id for group in groups} != {group.group_id for group in again}:
                unstable.append({"window": window})
            groups = hold_back(groups, window, datetime.now(UTC), judge.members)
            write_table(directory / "groups.parquet", [asdict(group) for group in groups])
            spread |= _spread(groups, {episode.trajectory_id: episode for episode in episodes})
            context.add_asset_metadata(
                {
                    "dagster/row_count": len(groups),
                    "trainable": sum(group.trainable for group in groups),
                    "not_trainable_by_reason": dict(Counter(g.reason for g in groups if not g.trainable)),
                    "members": dict(Counter(str(len(group.trajectory_ids)) for group in groups)),
                    "file": dg.MetadataValue.path(str(directory / "groups.parquet")),
                },
                partition_key=window,
            )
    yield dg.AssetCheckResult(check_name="each_episode_once", passed=not lost, metadata={"episodes": table(lost)})
    yield dg.AssetCheckResult(
        check_name="order_does_not_matter", passed=not unstable, metadata={"windows": table(unstable)}
    )
    shown = (
        {"expected_pnl_within_groups_dollars": picture(group_spread(spread, "Expected PnL (dollars)"))}
        if spread
        else {}
    )
    yield dg.MaterializeResult(metadata={"windows_in_run": len(context.partition_keys), **shown})


def read_groups(path: Place) -> list["Group"]:
    """The groups of a window, as `grpo_groups` wrote them."""
    import pyarrow.parquet as pq

    from rl_assets.grouping import Group

    with local_file(path) as file:
        rows = pq.read_table(file).to_pylist()
    return [Group(**{**row, "trajectory_ids": tuple(row["trajectory_ids"])}) for row in rows]


def _miscounted(window: str, ids: list[str], groups: list["Group"]) -> list[dict]:
    members = Counter(member for group in groups for member in group.trajectory_ids)
    return [
        {"window": window, "trajectory": one, "groups": members[one]}
        for one in sorted(set(ids) | members.keys())
        if members[one] != 1 or one not in ids
    ]


def _spread(groups: list["Group"], episodes: dict[str, "Episode"]) -> dict[str, list[float]]:
    """Expected PnL in dollars of the members of each trainable group."""
    return {
        group.group_id: [pnl for member in group.trajectory_ids if (pnl := episodes[member].expected_pnl) is not None]
        for group in groups
        if group.trainable
    }
