"""Market outcomes: what the game's markets came to in an hour, written back to Babylon's table."""

from collections.abc import Iterator

import dagster as dg

from rl_assets.assets.columns import BABYLON_MARKETS, MARKET_OUTCOMES
from rl_assets.assets.shown import MOST_PICTURES, NOT_DRAWN, OWNERS, definition, picture, table
from rl_assets.automation.partitions import HOURS
from rl_assets.automation.policies import DATABASE
from rl_assets.resources import Database

babylon_markets = dg.AssetSpec(
    "babylon_markets",
    group_name="sources",
    kinds={"postgres"},
    owners=OWNERS,
    description="Babylon's tables of markets and prices: `Market`, whose columns are below, and beside it "
    "`PredictionPriceHistory`, `Organization`, `StockPrice`, `PerpPosition`, `AgentTrade`. The game writes them.",
    metadata=definition("docs/production.md", table="Market", schema=BABYLON_MARKETS),
)


@dg.asset(
    partitions_def=HOURS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL),
    deps=[babylon_markets],
    pool=DATABASE,
    group_name="experience",
    kinds={"postgres"},
    owners=OWNERS,
    description="What each market came to in the hour: a perpetual's prices at its bounds, and of each prediction "
    "market that ended in it the outcome and the last probability before. Rows of Babylon's `market_outcomes`; doing "
    "it again changes only what the game has changed since.",
    check_specs=[
        dg.AssetCheckSpec(
            "outcomes_are_of_markets_that_ended",
            asset="market_outcomes",
            description="Each recorded outcome is that of a prediction market that ended in the hour and is resolved "
            "so, and no market has two. A row that is not was left by another writer, or its market's end was moved.",
        )
    ],
    metadata=definition("docs/operations.md", table="market_outcomes", schema=MARKET_OUTCOMES),
)
def market_outcomes(
    context: dg.AssetExecutionContext, database: Database
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from rl_assets.reports.outcomes import outcomes_picture
    from rl_assets.store.outcomes import astray, track_outcomes

    markets, faults = 0, []
    with database.connect() as conn:
        for place, window in enumerate(context.partition_keys):
            found = track_outcomes(conn, window)
            markets += len(found)
            faults += [{"window": window, **row} for row in astray(conn, window)]
            rows = [
                {
                    "market": o.ticker or o.question or o.market_id,
                    "start_price_dollars": o.start_price,
                    "end_price_dollars": o.end_price,
                    "change_percent": o.change_percent,
                    "outcome": o.outcome,
                    "final_probability": o.final_probability,
                    "volume_dollars": o.volume,
                }
                for o in found
            ]
            context.add_asset_metadata(
                {
                    "dagster/row_count": len(found),
                    "outcomes": table(rows),
                    "outcomes_of_the_hour": picture(outcomes_picture(found)) if place < MOST_PICTURES else NOT_DRAWN,
                },
                partition_key=window,
            )
    yield dg.AssetCheckResult(
        check_name="outcomes_are_of_markets_that_ended",
        passed=not faults,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"rows": table(faults)},
    )
    yield dg.MaterializeResult(metadata={"markets": markets, "windows_in_run": len(context.partition_keys)})
