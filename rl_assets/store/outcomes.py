"""What became of the game's markets in an hour: read from Babylon's price tables, written to its `market_outcomes`.

Prices are those that were there at the hour's bounds. A prediction market belongs to the hour in which it ended,
however late it is resolved: that does not move when somebody edits its row. The table knows no unique key, so writers
come one after another, and duplicates of an earlier writer are brought to the same values rather than deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from rl_assets.episodes import WINDOW_FORMAT
from rl_assets.store.episodes import new_ids
from rl_assets.store.locks import Lock, transaction_lock
from rl_assets.store.record import naive
from rl_assets.windows import LENGTH, start_of

LATE = timedelta(days=7)
"""How long after its end an hour that was missed, or a market that is resolved, is still noticed without a backfill."""
MOST_WINDOWS = 24
LONGEST_TICKER = 20
"""Characters of Babylon's column. An organization with a longer name has no outcome: a cut name could be another's."""
MOST_PERCENT, MOST_PRICE = 999.99, 99_999_999.99
"""What its numeric columns hold. A greater change is written as the greatest; a greater price is left out."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a perpetual (ticker, with prices in dollars and the change in percent) or of a prediction market (market_id,
    with outcome `YES` or `NO` and the last probability of YES, in [0, 1]). volume: dollars that agents traded in it."""

    ticker: str | None
    start_price: float | None
    end_price: float | None
    change_percent: float | None
    sentiment: str | None
    market_id: str | None
    question: str | None
    outcome: str | None
    final_probability: float | None
    volume: float | None


def track_outcomes(conn: psycopg.Connection, window_id: str) -> list[Outcome]:
    """Read what the markets of a window came to and write it back, in one transaction. Returns what is now recorded.

    Repeating it changes nothing unless the game's tables have changed.
    """
    start = naive(start_of(window_id))
    bounds = {"start": start, "end": start + LENGTH, "ticker": LONGEST_TICKER, "price": MOST_PRICE}
    with conn.transaction():
        transaction_lock(conn, Lock.OUTCOMES)
        with conn.cursor(row_factory=class_row(_Perpetual)) as cursor:
            found = [row.outcome() for row in cursor.execute(_PERPETUALS, bounds).fetchall()]
        with conn.cursor(row_factory=class_row(Outcome)) as cursor:
            found += cursor.execute(_PREDICTIONS, bounds).fetchall()
        _write(conn, window_id, found)
    return recorded_outcomes(conn, window_id)


def recorded_outcomes(conn: psycopg.Connection, window_id: str) -> list[Outcome]:
    """The outcomes of a window as Babylon's table has them, one per market, whoever wrote it."""
    with conn.cursor(row_factory=class_row(Outcome)) as cursor:
        return cursor.execute(
            """SELECT DISTINCT ON ("stockTicker", "predictionMarketId") "stockTicker" AS ticker,
                 "startPrice"::float8 AS start_price, "endPrice"::float8 AS end_price,
                 "changePercent"::float8 AS change_percent, "sentiment" AS sentiment,
                 "predictionMarketId" AS market_id, "question" AS question, "outcome" AS outcome,
                 "finalProbability"::float8 AS final_probability, "volume"::float8 AS volume
               FROM market_outcomes WHERE "windowId" = %s
               ORDER BY "stockTicker", "predictionMarketId", "createdAt" DESC, "id" DESC""",
            [window_id],
        ).fetchall()


def astray(conn: psycopg.Connection, window_id: str) -> list[dict[str, str]]:
    """Recorded outcomes of a window's prediction markets that the game's tables do not bear out: market, recorded
    outcome, and what is wrong with it."""
    rows = conn.execute(
        """SELECT o."predictionMarketId", o."outcome", CASE
             WHEN m."id" IS NULL THEN 'the game has no such market'
             WHEN NOT m."resolved" OR m."resolution" IS NULL THEN 'the market is not resolved'
             WHEN to_char(m."endDate", 'YYYY-MM-DD"T"HH24":00"') <> %(window)s THEN 'the market ended in another hour'
             ELSE 'the market is resolved otherwise' END
           FROM market_outcomes AS o LEFT JOIN "Market" AS m ON m."id" = o."predictionMarketId"
           WHERE o."windowId" = %(window)s AND o."predictionMarketId" IS NOT NULL AND NOT coalesce(
             m."resolved" AND to_char(m."endDate", 'YYYY-MM-DD"T"HH24":00"') = %(window)s
               AND o."outcome" = CASE WHEN m."resolution" THEN 'YES' WHEN NOT m."resolution" THEN 'NO' END, false)
           ORDER BY 1, 2""",
        {"window": window_id},
    ).fetchall()
    return [{"market": str(market), "outcome": str(outcome), "fault": fault} for market, outcome, fault in rows]


def due_windows(conn: psycopg.Connection, now: datetime) -> list[str]:
    """Windows, oldest first, with something to write: the hour before `now`, hours of the last days that have no
    perpetual recorded yet, and hours whose markets were resolved since. At most `MOST_WINDOWS`.

    An hour counts only if writing it would yield a row, by the very query that writes it; so none is due for ever.
    """
    this_hour = naive(now).replace(minute=0, second=0, microsecond=0)
    rows = conn.execute(
        _DUE,
        {
            "start": this_hour - LATE,
            "end": this_hour,
            "last": this_hour - LENGTH,
            "ticker": LONGEST_TICKER,
            "price": MOST_PRICE,
            "most": MOST_WINDOWS,
        },
    ).fetchall()
    return [moment.strftime(WINDOW_FORMAT) for (moment,) in rows]


@dataclass(frozen=True, slots=True)
class _Perpetual:
    ticker: str
    start_price: float
    end_price: float
    volume: float | None

    def outcome(self) -> Outcome:
        change = (self.end_price - self.start_price) / self.start_price * 100.0
        sentiment = "BULLISH" if change > 0 else "BEARISH" if change < 0 else "NEUTRAL"
        bounded = max(-MOST_PERCENT, min(MOST_PERCENT, change))
        prices = (round(self.start_price, 2), round(self.end_price, 2), round(bounded, 2))
        return Outcome(self.ticker, *prices, sentiment, None, None, None, None, self.volume)


def _write(conn: psycopg.Connection, window_id: str, outcomes: Sequence[Outcome]) -> None:
    ids = new_ids(len(outcomes))
    rows = Jsonb([{"id": one, **asdict(outcome)} for one, outcome in zip(ids, outcomes, strict=True)])
    conn.execute(_UPDATE, {"window": window_id, "rows": rows})
    conn.execute(_INSERT, {"window": window_id, "rows": rows})


# Of the hours in `hours`, all within the bounds, each perpetual with its prices. Seen prices: of the feed, and those at
# which positions were opened. The first of the hour stands for its start only where the feed has none from before.
# Babylon has no index on "openedAt": the positions are read once, not once per hour.
_ENDS = """seen AS (
  SELECT hours.w, p."organizationId" AS org, p."timestamp" AS at, p."price" FROM hours JOIN "StockPrice" AS p
    ON p."timestamp" >= hours.w AND p."timestamp" < hours.w + interval '1 hour'
  UNION ALL
  SELECT hours.w, p."organizationId", p."openedAt", p."entryPrice" FROM hours JOIN "PerpPosition" AS p
    ON date_trunc('hour', p."openedAt") = hours.w AND p."openedAt" >= %(start)s AND p."openedAt" < %(end)s
), bounds AS (
  SELECT w, org, (array_agg("price" ORDER BY at))[1] AS first, (array_agg("price" ORDER BY at DESC))[1] AS last
  FROM seen WHERE "price" > 0 AND "price" < 'Infinity' GROUP BY w, org
), ends AS (
  SELECT b.w, o."name" AS ticker, coalesce(before."price", b.first) AS start_price, b.last AS end_price
  FROM bounds AS b JOIN "Organization" AS o ON o."id" = b.org
  LEFT JOIN LATERAL (
    SELECT p."price" FROM "StockPrice" AS p
    WHERE p."organizationId" = b.org AND p."timestamp" < b.w AND p."price" > 0 AND p."price" < 'Infinity'
    ORDER BY p."timestamp" DESC LIMIT 1
  ) AS before ON true
  WHERE length(o."name") <= %(ticker)s AND greatest(b.last, coalesce(before."price", b.first)) <= %(price)s
)"""

_PERPETUALS = f"""
WITH hours AS (SELECT %(start)s::timestamp AS w), {_ENDS}
SELECT ticker, start_price, end_price,
       (SELECT sum(t."amount") FROM "AgentTrade" AS t WHERE t."ticker" = ends.ticker
          AND t."executedAt" >= %(start)s AND t."executedAt" < %(end)s) AS volume
FROM ends ORDER BY ticker
"""

# The last hour is written though it has rows: another writer's, or ours of before it closed, may not be its last word.
_DUE = f"""
WITH hours AS (
  SELECT w FROM generate_series(%(start)s::timestamp, %(last)s::timestamp, interval '1 hour') AS w
  WHERE w = %(last)s OR NOT EXISTS (
    SELECT FROM market_outcomes AS o
    WHERE o."windowId" = to_char(w, 'YYYY-MM-DD"T"HH24":00"') AND o."stockTicker" IS NOT NULL)
), {_ENDS}
SELECT DISTINCT w FROM (
  SELECT date_trunc('hour', m."endDate") AS w FROM "Market" AS m
  WHERE m."resolved" AND m."resolution" IS NOT NULL AND m."endDate" >= %(start)s AND m."endDate" < %(end)s
    AND NOT EXISTS (
      SELECT FROM market_outcomes AS o
      WHERE o."predictionMarketId" = m."id" AND o."windowId" = to_char(m."endDate", 'YYYY-MM-DD"T"HH24":00"')
        AND o."outcome" = CASE WHEN m."resolution" THEN 'YES' ELSE 'NO' END)
  UNION ALL
  SELECT w FROM ends
) AS due ORDER BY w LIMIT %(most)s
"""

_PREDICTIONS = """
SELECT NULL AS ticker, NULL::float8 AS start_price, NULL::float8 AS end_price, NULL::float8 AS change_percent,
       NULL AS sentiment, m."id" AS market_id, m."question" AS question,
       CASE WHEN m."resolution" THEN 'YES' ELSE 'NO' END AS outcome,
       round(least(1, greatest(0, coalesce(last.price,
         (m."yesShares" / nullif(m."yesShares" + m."noShares", 0))::float8)))::numeric, 4)::float8 AS final_probability,
       (SELECT sum(t."amount") FROM "AgentTrade" AS t WHERE t."marketType" = 'prediction' AND t."marketId" = m."id"
          AND t."executedAt" >= %(start)s AND t."executedAt" < %(end)s) AS volume
FROM "Market" AS m
LEFT JOIN LATERAL (
  SELECT h."yesPrice" AS price FROM "PredictionPriceHistory" AS h
  WHERE h."marketId" = m."id" AND h."createdAt" <= m."endDate" AND h."yesPrice" >= 0 AND h."yesPrice" <= 1
  ORDER BY h."createdAt" DESC LIMIT 1
) AS last ON true
WHERE m."resolved" AND m."resolution" IS NOT NULL AND m."endDate" >= %(start)s AND m."endDate" < %(end)s
ORDER BY m."id"
"""

_ROWS = """jsonb_to_recordset(%(rows)s) AS v (id text, ticker text, start_price numeric, end_price numeric,
  change_percent numeric, sentiment text, market_id text, question text, outcome text, final_probability numeric,
  volume numeric)"""
_SAME = """m."windowId" = %(window)s::text AND
  (m."stockTicker" = v.ticker OR m."predictionMarketId" = v.market_id)"""
_VALUES = "v.start_price, v.end_price, v.change_percent, v.sentiment, v.question, v.outcome, v.final_probability"

_UPDATE = f"""
UPDATE market_outcomes AS m
SET ("startPrice", "endPrice", "changePercent", "sentiment", "question", "outcome", "finalProbability", "volume") =
    ROW ({_VALUES}, round(v.volume, 2))
FROM {_ROWS} WHERE {_SAME} AND
  (m."startPrice", m."endPrice", m."changePercent", m."sentiment", m."question", m."outcome", m."finalProbability",
   m."volume") IS DISTINCT FROM ({_VALUES}, round(v.volume, 2))
"""

_INSERT = f"""
INSERT INTO market_outcomes ("id", "windowId", "stockTicker", "startPrice", "endPrice", "changePercent", "sentiment",
  "predictionMarketId", "question", "outcome", "finalProbability", "volume")
SELECT v.id, %(window)s::text, v.ticker, v.start_price, v.end_price, v.change_percent, v.sentiment, v.market_id,
  v.question, v.outcome, v.final_probability, round(v.volume, 2)
FROM {_ROWS} WHERE NOT EXISTS (SELECT FROM market_outcomes AS m WHERE {_SAME})
"""
