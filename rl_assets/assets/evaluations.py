"""Benchmark evaluations: candidate, champion and reference agents on the same gate snapshots, paired."""

from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.assets.shown import OWNERS, columns, picture, plainly, table
from rl_assets.automation.partitions import BATCHES, EVERYTHING
from rl_assets.resources import Database, Lake, Trainer

if TYPE_CHECKING:
    from rl_assets.episodes import Episode

SIBLINGS = 4
"""Episodes of each agent on each gate snapshot."""
SEED = 20_260_101
"""Seed of every evaluation: candidate and champion draw the same numbers, which is what makes them a pair."""


@dg.asset(
    partitions_def=BATCHES,
    deps=["trained_models", dg.AssetDep("benchmark_snapshots", partition_mapping=EVERYTHING)],
    group_name="deployment",
    kinds={"python", "parquet"},
    owners=OWNERS,
    description="What the candidate of a batch is worth next to the champion, on gate snapshots that no training has "
    "seen: paired differences, clustered by market day, and the decision of the gate.",
    check_specs=[
        dg.AssetCheckSpec(
            "gate_opens",
            asset="benchmark_evaluations",
            description="The lower confidence bound of the paired difference is above the minimum effect, and drawdown "
            "and breaches are not worse. If not, the champion stays; that is a result, not a fault.",
        ),
        dg.AssetCheckSpec(
            "still_trades",
            asset="benchmark_evaluations",
            description="The candidate has not collapsed into never trading.",
        ),
    ],
    metadata={
        "dagster/column_schema": columns(
            policy="string: who played",
            snapshot_id="string: gate snapshot",
            sibling="int: number of the episode within the snapshot; pairs candidate and champion",
            expected_pnl="float: dollars",
            realised_pnl="float: dollars",
        )
    },
)
def benchmark_evaluations(
    context: dg.AssetExecutionContext, database: Database, lake: Lake, trainer: Trainer
) -> dg.MaterializeResult: ...
