"""Market outcomes: what the game's markets came to in an hour, written back to Babylon's table."""

import dagster as dg

from rl_assets.assets.shown import OWNERS, columns, table
from rl_assets.automation.partitions import HOURS
from rl_assets.automation.policies import DATABASE
from rl_assets.resources import Database

babylon_markets = dg.AssetSpec(
    "babylon_markets",
    group_name="sources",
    kinds={"postgres"},
    owners=OWNERS,
    description="Babylon's tables of markets and prices: `Market`, `PredictionPriceHistory`, `Organization`, "
    "`StockPrice`, `PerpPosition`, `AgentTrade`. The game writes them.",
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
    metadata={
        "dagster/column_schema": columns(
            stockTicker="string: the perpetual's organization; null for a prediction market",
            startPrice="decimal: dollars, the last price before the hour",
            endPrice="decimal: dollars, the last price of the hour",
            changePercent="decimal: of the price, at most 999.99 either way",
            predictionMarketId="string: the prediction market; null for a perpetual",
            outcome="string: YES or NO",
            finalProbability="decimal: of YES, in [0, 1], the last before the market ended",
            volume="decimal: dollars that agents traded",
        )
    },
)
def market_outcomes(context: dg.AssetExecutionContext, database: Database) -> dg.MaterializeResult:
    from rl_assets.store.outcomes import track_outcomes

    markets = 0
    with database.connect() as conn:
        for window in context.partition_keys:
            found = track_outcomes(conn, window)
            markets += len(found)
            rows = [
                {"market": o.ticker or o.question, "change_percent": o.change_percent, "outcome": o.outcome}
                for o in found
            ]
            context.add_asset_metadata({"dagster/row_count": len(found), "outcomes": table(rows)}, partition_key=window)
    return dg.MaterializeResult(metadata={"markets": markets, "windows_in_run": len(context.partition_keys)})
