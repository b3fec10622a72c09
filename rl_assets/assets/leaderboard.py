"""The benchmark leaderboard: every version of the model line and the reference agents, ranked on the gate."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from rl_assets.assets.columns import EPISODES
from rl_assets.assets.evaluations import SEED, SIBLINGS, SNAPSHOTS
from rl_assets.assets.shown import OWNERS, TREE, definition, picture, table
from rl_assets.automation.partitions import EVERYTHING
from rl_assets.resources import Database, Lake, Trainer
from rl_assets.tree import RunFiles

if TYPE_CHECKING:
    from rl_assets.market.metrics import Interval
    from rl_assets.registry.standings import Standings


@dg.asset(
    deps=[
        "base_policy",
        dg.AssetDep("benchmark_evaluations", partition_mapping=EVERYTHING),
        dg.AssetDep("benchmark_snapshots", partition_mapping=EVERYTHING),
    ],
    group_name="deployment",
    kinds={"python", "parquet"},
    owners=OWNERS,
    description="Every version of the model line whose checkpoint is whole, and the reference agents, on the same gate "
    "snapshots: who earns what, and who is surely better than whom. Made at night after a decision, or by hand at any "
    "time. What evaluations have played is not played again; a version that has to be played takes "
    f"{SNAPSHOTS * SIBLINGS} episodes, some seconds of CPU for the small policy, requests for one that is served.",
    check_specs=[
        dg.AssetCheckSpec(
            "oracle_leads_and_hold_is_zero",
            asset="benchmark_leaderboard",
            description="Who knows the truth earns most and who never trades earns nothing. If not, distrust the "
            "market before you believe a ranking.",
        )
    ],
    metadata=definition("docs/concepts.md", file=RunFiles(TREE.leaderboard).episodes, schema=EPISODES),
)
def benchmark_leaderboard(
    context: dg.AssetExecutionContext, database: Database, lake: Lake, trainer: Trainer
) -> dg.MaterializeResult:
    from rl_assets.registry.standings import play_line
    from rl_assets.reports.plots import pnl_by_policy
    from rl_assets.reports.runs import write_comparison_report

    directory = lake.tree.leaderboard
    with database.connect() as conn:
        found = play_line(
            conn,
            trainer.line,
            lake.tree.snapshots,
            directory,
            lambda batch_id: lake.tree.batch(batch_id).evaluation,
            most_snapshots=SNAPSHOTS,
            siblings=SIBLINGS,
            seed=SEED,
            on_progress=lambda name, done, total: context.log.info(f"{name}: {done} of {total} episodes"),
        )
        worlds = {snapshot.id: (snapshot, truth) for snapshot, truth in found.worlds}
        report = write_comparison_report(directory, found.episodes, worlds=worlds)
    episodes = sum(len(mine) for mine in found.episodes.values())
    intervals = {s.policy: s.expected_pnl for s in found.board.standings}
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": episodes,
            "leaderboard": table(_standings(found)),
            "pairs": table(_pairs(found)),
            "left_out": table([{"policy": name, "reason": why} for name, why in found.left_out.items()]),
            "gate_snapshots": found.board.snapshots,
            "market_days": found.board.days,
            "episodes_reused": found.reused,
            "report": dg.MetadataValue.path(str(report)),
            "pnl_by_policy": picture(pnl_by_policy({n: (i.mean, i.low, i.high) for n, i in intervals.items()})),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="oracle_leads_and_hold_is_zero",
                passed=not found.mistrust,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"found": "; ".join(found.mistrust) or "the oracle leads and holding is worth 0"},
            )
        ],
    )


def _standings(found: "Standings") -> list[dict[str, Any]]:
    from rl_assets.market.metrics import skills

    skill = skills(found.episodes)
    return [
        {
            "rank": s.rank,
            "policy": s.policy,
            "state": found.models[s.policy].state if s.policy in found.models else "reference",
            **_interval("expected_pnl_dollars", s.expected_pnl),
            "skill": skill[s.policy].mean if s.policy in skill else None,
            "surely_better_than": ", ".join(s.better_than) or "nobody",
        }
        for s in found.board.standings
    ]


def _pairs(found: "Standings") -> list[dict[str, Any]]:
    return [
        {"better": pair.better, "worse": pair.worse, **_interval("difference_dollars", pair.difference), "p": pair.p}
        for pair in found.board.pairs
    ]


def _interval(name: str, interval: "Interval") -> dict[str, float | None]:
    known = interval.clusters > 1
    return {name: interval.mean, "low": interval.low if known else None, "high": interval.high if known else None}
