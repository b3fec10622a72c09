"""Benchmark evaluations: candidate, champion and reference agents on the same gate snapshots, paired."""

import math
from typing import TYPE_CHECKING, Any

import dagster as dg

from rl_assets.assets.columns import EPISODES
from rl_assets.assets.shown import OWNERS, TREE, definition, links, picture, table
from rl_assets.automation.partitions import BATCHES, EVERYTHING
from rl_assets.places import Place
from rl_assets.resources import Database, Lake

if TYPE_CHECKING:
    from rl_assets.episodes import Episode
    from rl_assets.registry.decisions import Evaluation
    from rl_assets.registry.gate import Decision
    from rl_assets.store.ledger import Batch

SNAPSHOTS = 64
"""Gate snapshots that are played, the first of those that are registered: 16 market days."""
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
            description="The lower confidence bound of the paired difference is above the minimum effect, drawdown and "
            "breaches are at most so much above the champion's, and it trades at least so often (all under "
            "`conditions`). If not, the champion stays; that is a result, not a fault.",
        ),
        dg.AssetCheckSpec(
            "still_trades",
            asset="benchmark_evaluations",
            description="The candidate has not collapsed into never trading.",
        ),
    ],
    metadata=definition(
        "docs/training.md",
        table="rl_assets.evaluations",
        file=TREE.batch("{batch}").evaluation,
        schema=EPISODES,
    ),
)
def benchmark_evaluations(context: dg.AssetExecutionContext, database: Database, lake: Lake) -> dg.MaterializeResult:
    from rl_assets.registry.evaluate import evaluate
    from rl_assets.reports.plots import paired_gate
    from rl_assets.store.ledger import DECIDED, advance_batch, get_batch

    def progress(done: int, total: int) -> None:
        context.log.info(f"the gate: {done} of {total} episodes")

    path = lake.tree.batch(context.partition_key).evaluation
    with database.connect() as conn:
        elsewhere = links(context.partition_key, besides="benchmark_evaluations")
        batch = get_batch(conn, context.partition_key)
        found, episodes = evaluate(
            conn,
            batch,
            lake.tree.snapshots,
            path,
            most_snapshots=SNAPSHOTS,
            siblings=SIBLINGS,
            seed=SEED,
            on_progress=progress,
        )
        report = _report(lake, batch, found, episodes)
        if batch.state not in DECIDED:
            advance_batch(conn, batch.id, "evaluated", run_id=context.run.run_id, result=_summary(batch, found))
    decision = found.decision
    context.log.info(decision.reason)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(episodes),
            "decision": decision.reason,
            "candidate_step": found.candidate_step,
            "champion_step": found.champion_step,
            "effect_dollars": round(decision.effect, 4),
            "lower_bound_dollars": "none" if decision.lower is None else round(decision.lower, 4),
            "upper_bound_dollars": "none" if decision.upper is None else round(decision.upper, 4),
            "minimum_effect_dollars": decision.minimum_effect,
            "alpha_spent": round(decision.alpha, 4),
            "look": decision.look,
            "gate_snapshots": decision.snapshots,
            "market_days": len(decision.days),
            "siblings": decision.siblings,
            "conditions": table(_conditions(decision)),
            "file": dg.MetadataValue.path(str(path)),
            "report": dg.MetadataValue.path(str(report)),
            "paired_differences": picture(
                paired_gate(
                    dict(zip(decision.days, decision.day_effects, strict=True)),
                    decision.lower,
                    decision.minimum_effect,
                    decision.effect,
                )
            ),
            **_policies(episodes),
            **elsewhere,
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="gate_opens",
                passed=decision.promote,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"decision": decision.reason},
            ),
            dg.AssetCheckResult(
                check_name="still_trades",
                passed=decision.still_trades,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"trades_per_episode": decision.candidate.trades, "at_least": decision.least_trades},
            ),
        ],
    )


def _report(lake: Lake, batch: "Batch", found: "Evaluation", episodes: list["Episode"]) -> Place:
    """The comparison of everybody with the champion; its path."""
    from rl_assets.episodes import Policy
    from rl_assets.market.snapshot import load_world
    from rl_assets.reports.runs import write_comparison_report
    from rl_assets.reports.summary import by_policy

    champion, everybody = str(Policy(batch.model_line, found.champion_step)), by_policy(episodes)
    ids = sorted({str(episode.snapshot_id) for episode in episodes})
    tree = lake.tree
    worlds = {key: load_world(tree.snapshots, key) for key in ids}
    ordered = {champion: everybody[champion], **everybody}
    return write_comparison_report(tree.batch(batch.id).comparison, ordered, worlds=worlds)


def _summary(batch: "Batch", evaluation: "Evaluation") -> dict:
    decision = evaluation.decision
    return {
        **(batch.result or {}),
        "decision": decision.reason,
        "champion_step": evaluation.champion_step,
        "effect_dollars": decision.effect,
        "lower_bound_dollars": decision.lower,
    }


def _conditions(decision: "Decision") -> list[dict[str, Any]]:
    return [
        {
            "condition": condition.name,
            "unit": condition.unit,
            "candidate": _rounded(condition.candidate),
            "champion": _rounded(condition.champion),
            "must_be": condition.limit,
            "holds": condition.holds,
        }
        for condition in decision.conditions()
    ]


def _policies(episodes: list["Episode"]) -> dict[str, Any]:
    """Every policy's means and skill, with a 95 % interval over market days where there is more than one."""
    from rl_assets.reports.plots import pnl_by_policy
    from rl_assets.reports.summary import by_policy, shown_intervals, summarise

    summary = summarise(by_policy(episodes))
    shown = shown_intervals(summary)
    rows = [
        {
            "policy": row.policy,
            **dict(zip(("expected_pnl_dollars", "low", "high"), map(_rounded, shown[row.policy]), strict=True)),
            "skill": _rounded(row.skill, 3),
            "max_drawdown_dollars": _rounded(row.max_drawdown),
            "breaches_per_episode": round(row.breaches, 3),
            "trades_per_episode": round(row.trades, 1),
        }
        for row in summary
    ]
    return {"policies": table(rows), "pnl_by_policy": picture(pnl_by_policy(shown))}


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None or math.isnan(value) else round(value, digits)
