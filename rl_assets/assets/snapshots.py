"""Benchmark snapshots: the market days on which skill is measured, generated from registered specifications."""

from collections.abc import Iterator
from dataclasses import asdict

import dagster as dg

from rl_assets.assets.columns import SNAPSHOT
from rl_assets.assets.shown import MOST_PICTURES, NOT_DRAWN, OWNERS, TREE, definition, picture, table
from rl_assets.automation.partitions import SNAPSHOTS
from rl_assets.resources import Database, Lake
from rl_assets.tree import public_file

CHECKS = {
    "deterministic": "Each snapshot generated here has the content hash under which it was registered.",
    "no_leak": "Nothing public tells the sealed truth: the audit of every snapshot passes.",
    "sources_are_all_there_is": "A model fitted on the public data of many snapshots of these worlds foretells "
    "values no better than the sources' stated reliability allows, and of the coins nothing.",
}


@dg.asset(
    partitions_def=SNAPSHOTS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="benchmark",
    kinds={"python", "numpy", "json"},
    owners=OWNERS,
    description="Worlds of a market day. The public part and the sealed truth of each go to separate files; its name "
    "is the hash of its content, so that a snapshot made on another machine is the same one.",
    check_specs=[
        dg.AssetCheckSpec(name, asset="benchmark_snapshots", blocking=True, description=text)
        for name, text in CHECKS.items()
    ]
    + [
        dg.AssetCheckSpec(
            "skill_is_measurable",
            asset="benchmark_snapshots",
            description="On worlds of this kind the oracle earns more than an agent that follows the news, and "
            "that one more than random play, which stays near holding. The gate plays no snapshot of a kind that "
            "fails.",
        )
    ],
    metadata=definition(
        "docs/concepts.md",
        table="rl_assets.snapshots",
        file=public_file(TREE.snapshots, "{snapshot}"),
        schema=SNAPSHOT,
    ),
)
def benchmark_snapshots(
    context: dg.AssetExecutionContext, database: Database, lake: Lake
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from rl_assets.agents.skill import audit_kind_skill, audit_skill
    from rl_assets.market.audit import audit_snapshot
    from rl_assets.market.config import WorldConfig
    from rl_assets.market.generate import generate
    from rl_assets.market.leakage import audit_kind
    from rl_assets.market.snapshot import save_snapshot
    from rl_assets.reports.plots import price_paths
    from rl_assets.store.snapshots import list_snapshots, mark_materialized

    keys = sorted(context.partition_keys)
    with database.connect() as conn:
        registered = {row.id: row for row in list_snapshots(conn) if row.id in set(keys)}
        unknown = [key for key in keys if key not in registered]
        if unknown:
            raise dg.Failure(
                f"{len(unknown)} partitions are no registered snapshot, first {unknown[0]}; register them with "
                "`rl-assets snapshots generate`, or delete the partitions",
                allow_retries=False,
            )
        worlds = {k: generate(r.split, r.seed, WorldConfig(**r.config)) for k, r in registered.items()}
        drifted = {key: snapshot.id for key, (snapshot, _) in worlds.items() if snapshot.id != key}
        yield dg.AssetCheckResult(
            check_name="deterministic", passed=not drifted, metadata={"generated_instead": drifted or "none"}
        )
        if drifted:
            raise dg.Failure(
                f"{len(drifted)} of {len(keys)} snapshots come out differently here, first {next(iter(drifted))}: this "
                "version of the generator is not the one they were registered with; register new ones",
                allow_retries=False,
            )
        faults = [
            {"snapshot": key, "check": check.name, "detail": check.detail}
            for key, world in worlds.items()
            for check in audit_snapshot(*world)
            if not check.passed
        ]
        yield dg.AssetCheckResult(check_name="no_leak", passed=not faults, metadata={"faults": table(faults)})
        if faults:
            raise dg.Failure(f"{len(faults)} audits of snapshots failed; see check no_leak", allow_retries=False)
        told = [check for config in {s.config for s, _ in worlds.values()} for check in audit_kind(config)]
        leaks = [check for check in told if not check.passed]
        yield dg.AssetCheckResult(
            check_name="sources_are_all_there_is",
            passed=not leaks,
            metadata={"checks": table([asdict(check) for check in told])},
        )
        if leaks:
            raise dg.Failure(f"these worlds leak ({leaks[0].detail}); see the check", allow_retries=False)
        for key in keys:
            path = save_snapshot(lake.tree.snapshots, *worlds[key])
            row = registered[key]
            context.add_asset_metadata(
                {
                    "split": row.split,
                    "seed": row.seed,
                    "market_day": row.day,
                    "content_hash": row.content_hash,
                    "file": dg.MetadataValue.path(str(path)),
                },
                partition_key=key,
            )
        mark_materialized(conn, keys)
    for place, key in enumerate(keys):
        shown = NOT_DRAWN
        if place < MOST_PICTURES:
            snapshot, truth = worlds[key]
            shown = picture(price_paths(snapshot, truth if snapshot.split == "train" else None))
        context.add_asset_metadata({"price_paths": shown}, partition_key=key)
    kinds = [audit_kind_skill(config) for config in dict.fromkeys(snapshot.config for snapshot, _ in worlds.values())]
    yield dg.AssetCheckResult(
        check_name="skill_is_measurable",
        passed=all(kind.passed for kind in kinds),
        metadata={
            "verdict": "; ".join(kind.detail for kind in kinds),
            "expected_pnl_dollars": table([row for kind in kinds for row in kind.rows]),
            "on_these_snapshots": audit_skill(list(worlds.values())).detail,
        },
    )
    yield dg.MaterializeResult(
        metadata={"snapshots_in_run": len(keys), "ticks_per_episode": worlds[keys[0]][0].n_ticks}
    )
