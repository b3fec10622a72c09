"""Recorded trajectories: the episodes of an hour, read from Postgres and kept as typed Parquet."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from rl_assets.assets.shown import OWNERS, columns, picture, plainly, table
from rl_assets.automation.partitions import EVERYTHING, HOURS
from rl_assets.automation.policies import DATABASE, HOURLY
from rl_assets.places import Place
from rl_assets.resources import Database, Lake

REPLAYED = 16
"""Benchmark episodes per window that are played again; every episode of a batch is, before it is trained on."""

babylon_trajectories = dg.AssetSpec(
    "babylon_trajectories",
    group_name="sources",
    kinds={"postgres"},
    owners=OWNERS,
    description="Babylon's tables `trajectories` and `llm_call_logs`. The game and the harness write them; the window "
    "sensor watches them.",
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
    metadata={
        "dagster/column_schema": columns(
            trajectory_id="string: the recorded row",
            policy="string: who decided, with the checkpoint step of a trained line",
            snapshot_id="string: benchmark snapshot; null for live play",
            expected_pnl="float: dollars, holdings valued at the final latent value",
            realised_pnl="float: dollars, holdings valued at the outcome",
            max_drawdown="float: dollars, largest fall of equity from its peak",
            breaches="int: invalid actions and liquidations",
            steps="list: observation, response, action, reward, equity, token ids and logprobs (nats) per tick",
        )
    },
)
def recorded_trajectories(
    context: dg.AssetExecutionContext, database: Database, lake: Lake
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from rl_assets.reports.plots import reward_histogram
    from rl_assets.store.episodes import read_window
    from rl_assets.store.lake import write_episodes_parquet, write_table

    replayed, faults, reasons = 0, [], Counter()
    pnl: dict[str, list[float]] = {}
    with plainly(), database.connect() as conn:
        for window in context.partition_keys:
            read = read_window(conn, window)
            directory = lake.window(window)
            write_episodes_parquet(directory / "trajectories.parquet", read.episodes)
            rejects = [{"trajectory_id": r.trajectory_id, "reason": r.reason, "detail": r.detail} for r in read.rejects]
            # After the episodes: a crash in between leaves versions that are too old, and such rows are read again.
            versions = [{"trajectory_id": one, "version": version} for one, version in read.versions.items()]
            write_table(directory / "versions.parquet", versions)
            write_table(directory / "quarantine.parquet", rejects)
            count, wrong = replay_sample(read.episodes, lake.snapshots, REPLAYED)
            replayed, faults = replayed + count, faults + wrong
            reasons.update(reject.reason for reject in read.rejects)
            for episode in read.episodes:
                value = episode.expected_pnl if episode.expected_pnl is not None else episode.realised_pnl
                if value is not None:
                    pnl.setdefault(str(episode.policy), []).append(value)
            context.add_asset_metadata(_described(read.episodes, rejects, directory), partition_key=window)
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
    shown = {"pnl_by_policy_dollars": picture(reward_histogram(pnl, "PnL (dollars per episode)"))} if pnl else {}
    yield dg.MaterializeResult(metadata={"windows_in_run": len(context.partition_keys), **shown})


def replay_sample(episodes: list, root: Place, most: int | None) -> tuple[int, list[dict[str, str]]]:
    """Play benchmark episodes again, `most` of them or all, chosen by content hash: how many, and mismatches."""
    from rl_assets.agents.replay import replay_all
    from rl_assets.market.snapshot import load_snapshot, load_truth

    played = sorted((e for e in episodes if e.snapshot_id is not None), key=lambda e: e.content_hash)[:most]
    worlds = {key: (load_snapshot(root, key), load_truth(root, key)) for key in {e.snapshot_id for e in played}}
    faults = [
        {"trajectory": episode.trajectory_id, "snapshot": episode.snapshot_id, "mismatch": mismatch}
        for episode, differences in zip(played, replay_all(played, worlds), strict=True)
        for mismatch in differences
    ]
    return len(played), faults


def _described(episodes: list, rejects: list[dict], directory: Place) -> dict:
    untrainable = Counter(episode.not_trainable for episode in episodes if episode.not_trainable)
    ticks = sum(len(episode.steps) for episode in episodes)
    seconds = sum(((e.ended_at - e.started_at) for e in episodes), timedelta()).total_seconds()
    return {
        "dagster/row_count": len(episodes),
        "episodes_by_policy": dict(Counter(str(episode.policy) for episode in episodes)),
        "not_trainable_by_reason": dict(untrainable),
        "quarantined_by_reason": dict(Counter(reject["reason"] for reject in rejects)),
        "ticks": ticks,
        "play_seconds": round(seconds, 1),
        "file": dg.MetadataValue.path(str(directory / "trajectories.parquet")),
    }
