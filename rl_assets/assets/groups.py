"""GRPO groups: episodes of an hour that may be compared with each other, named by the hash of their members."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.assets.columns import GROUPS
from rl_assets.assets.shown import OWNERS, TREE, counts, definition, picture, plainly, read_hours, table
from rl_assets.automation.partitions import HOURS
from rl_assets.resources import Judge, Lake, Trainer

if TYPE_CHECKING:
    import pyarrow as pa

    from rl_assets.grouping import Group

SHOWN = 400
"""Groups of a window in the picture of their spread."""


@dg.asset(
    partitions_def=HOURS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL),
    deps=["recorded_trajectories"],
    group_name="experience",
    kinds={"python", "parquet"},
    owners=OWNERS,
    description="Which episodes are compared: by the same policy at the same step, on the same snapshot with the same "
    "prompt version or, live, in the same window and scenario. A group that cannot be trained on is kept, with the "
    "reason.",
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
    metadata=definition("docs/concepts.md", file=TREE.window("{hour}").groups, schema=GROUPS),
)
def grpo_groups(
    context: dg.AssetExecutionContext, lake: Lake, judge: Judge, trainer: Trainer
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from rl_assets.reports.plots import group_spread
    from rl_assets.store.window_files import read_expected_pnl, write_groups
    from rl_assets.window_groups import Grouping, group_window
    from rl_assets.windows import hold_back

    lost, unstable, spread = [], [], {}
    with plainly():
        for window in read_hours(context, lake, lambda files: files.trajectories, "recorded_trajectories"):
            files = lake.tree.window(window)
            pnl = read_expected_pnl(files.trajectories)
            grouping = Grouping(files.trajectories, window, judge.members, recompute=trainer.recompute_logprobs)
            grouped = group_window(grouping, len(pnl))
            if not grouped.stable:
                unstable.append({"window": window})
            lost += _miscounted(window, pnl["trajectory_id"].to_pylist(), grouped.groups)
            groups = hold_back(grouped.groups, window, datetime.now(UTC), judge.members)
            write_groups(files.groups, groups)
            spread |= _spread(groups, pnl)
            context.add_asset_metadata(
                {
                    "dagster/row_count": len(groups),
                    "trainable": sum(group.trainable for group in groups),
                    "not_trainable_by_reason": counts(
                        "reason", Counter(str(g.reason) for g in groups if not g.trainable)
                    ),
                    "groups_by_members": counts("members", Counter(str(len(g.trajectory_ids)) for g in groups)),
                    "file": dg.MetadataValue.path(str(files.groups)),
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


def _miscounted(window: str, ids: list[str], groups: Sequence["Group"]) -> list[dict]:
    members = Counter(member for group in groups for member in group.trajectory_ids)
    members.subtract(ids)
    return [{"window": window, "trajectory": one, "groups": 1 + more} for one, more in sorted(members.items()) if more]


def _spread(groups: Sequence["Group"], pnl: "pa.Table") -> dict[str, list[float]]:
    """Expected PnL in dollars of the members of up to SHOWN trainable groups, which their names choose."""
    import pyarrow as pa
    import pyarrow.compute as pc

    shown = sorted((group for group in groups if group.trainable), key=lambda group: group.group_id)[:SHOWN]
    wanted = pa.array([member for group in shown for member in group.trajectory_ids], pa.string())
    chosen = pnl.filter(pc.is_in(pnl["trajectory_id"], value_set=wanted))  # pyright: ignore[reportAttributeAccessIssue]
    known = dict(zip(chosen["trajectory_id"].to_pylist(), chosen["expected_pnl"].to_pylist(), strict=True))
    return {
        group.group_id: [value for member in group.trajectory_ids if (value := known[member]) is not None]
        for group in shown
    }
