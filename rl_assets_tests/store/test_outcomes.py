from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg.types.json import Jsonb

from rl_assets.assets.outcomes import market_outcomes
from rl_assets.automation.schedules import market_outcomes_schedule
from rl_assets.definitions import build_defs
from rl_assets.resources import Database
from rl_assets.store.database import connect
from rl_assets.store.outcomes import MOST_WINDOWS, Outcome, astray, due_windows, recorded_outcomes, track_outcomes

pytestmark = pytest.mark.usefixtures("undrawn")

HOUR = "2026-11-23T08:00"
START = datetime(2026, 11, 23, 8)


def company(conn: psycopg.Connection, name: str, *prices: tuple[int, float]) -> None:
    """An organization and its prices, each some minutes after the hour began."""
    conn.execute(
        """INSERT INTO "Organization" ("id", "name", "description", "type", "updatedAt")
           VALUES (%s, %s, '', 'company', now())""",
        [name, name],
    )
    for minutes, price in prices:
        conn.execute(
            """INSERT INTO "StockPrice" ("id", "organizationId", "price", "change", "changePercent", "timestamp")
               VALUES (gen_random_uuid()::text, %s, %s, 0, 0, %s)""",
            [name, price, START + timedelta(minutes=minutes)],
        )


def position(conn: psycopg.Connection, organization: str, minutes: int, price: float) -> None:
    conn.execute(
        """INSERT INTO "PerpPosition" ("id", "userId", "ticker", "organizationId", "side", "entryPrice",
             "currentPrice", "size", "leverage", "liquidationPrice", "unrealizedPnL", "unrealizedPnLPercent",
             "openedAt", "lastUpdated")
           VALUES (gen_random_uuid()::text, 'u', 'T', %s, 'long', %s, 1, 1, 1, 1, 0, 0, %s, now())""",
        [organization, price, START + timedelta(minutes=minutes)],
    )


def market(
    conn: psycopg.Connection, name: str, minutes: int, resolution: bool | None, *prices: tuple[int, float]
) -> None:
    """A prediction market that ends some minutes after the hour began."""
    conn.execute(
        """INSERT INTO "Market" ("id", "question", "yesShares", "noShares", "liquidity", "resolved", "resolution",
             "endDate", "updatedAt") VALUES (%s, %s, 3, 1, 10, %s, %s, %s, %s)""",
        [name, f"Will {name}?", resolution is not None, resolution, START + timedelta(minutes=minutes), datetime.now()],
    )
    for minute, price in prices:
        conn.execute(
            """INSERT INTO "PredictionPriceHistory" ("id", "marketId", "yesPrice", "noPrice", "yesShares", "noShares",
                 "liquidity", "eventType", "source", "createdAt")
               VALUES (gen_random_uuid()::text, %s, %s, 0, 1, 1, 1, 'trade', 'user', %s)""",
            [name, price, START + timedelta(minutes=minute)],
        )


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {str(one.ticker or one.market_id): one for one in outcomes}


def test_prices_are_those_at_the_bounds_of_the_hour(conn: psycopg.Connection):
    company(conn, "Tesla", (-30, 100.0), (10, 90.0), (59, 103.0), (60, 500.0))
    company(conn, "Late", (20, 10.0), (40, 9.0))
    company(conn, "Flat", (-1, 5.0), (1, 5.0))
    company(conn, "Silent", (-90, 7.0), (61, 8.0))
    found = by_name(track_outcomes(conn, HOUR))
    assert set(found) == {"Tesla", "Late", "Flat"}
    tesla = found["Tesla"]
    assert (tesla.start_price, tesla.end_price, tesla.change_percent, tesla.sentiment) == (100.0, 103.0, 3.0, "BULLISH")
    assert (found["Late"].start_price, found["Late"].sentiment) == (10.0, "BEARISH")
    assert found["Flat"].sentiment == "NEUTRAL"


def test_a_market_belongs_to_the_hour_in_which_it_ended_with_the_last_price_before(conn: psycopg.Connection):
    market(conn, "yes", 59, True, (10, 0.4), (58, 0.7), (61, 1.0))
    market(conn, "no", 0, False)
    market(conn, "next", 60, True)
    market(conn, "open", 30, None)
    found = by_name(track_outcomes(conn, HOUR))
    assert {name: (one.outcome, one.final_probability) for name, one in found.items()} == {
        "yes": ("YES", 0.7),
        "no": ("NO", 0.75),  # by its shares, for no price was recorded
    }


def test_repeating_changes_nothing_and_what_changed_is_brought_up_to_date(conn: psycopg.Connection):
    company(conn, "Tesla", (-30, 100.0), (59, 103.0))
    market(conn, "m", 30, True)
    first = track_outcomes(conn, HOUR)
    before = conn.execute("SELECT xmin, * FROM market_outcomes ORDER BY 2").fetchall()
    assert track_outcomes(conn, HOUR) == first
    assert conn.execute("SELECT xmin, * FROM market_outcomes ORDER BY 2").fetchall() == before
    conn.execute('UPDATE "Market" SET "resolution" = false')
    assert by_name(track_outcomes(conn, HOUR))["m"].outcome == "NO"
    assert conn.execute("SELECT count(*) FROM market_outcomes").fetchone() == (2,)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ('SET "resolution" = false', "the market is resolved otherwise"),
        ('SET "resolution" = NULL, "resolved" = false', "the market is not resolved"),
        ("""SET "endDate" = "endDate" + interval '1 hour'""", "the market ended in another hour"),
        (None, "the game has no such market"),
    ],
)
def test_an_outcome_that_the_game_does_not_bear_out_is_found(conn: psycopg.Connection, change: str | None, fault: str):
    market(conn, "m", 30, True)
    market(conn, "right", 30, False)
    track_outcomes(conn, HOUR)
    assert astray(conn, HOUR) == []
    conn.execute(f"""{f'UPDATE "Market" {change}' if change else 'DELETE FROM "Market"'} WHERE "id" = 'm'""")  # pyright: ignore
    assert astray(conn, HOUR) == [{"market": "m", "outcome": "YES", "fault": fault}]


def test_many_writers_at_once_write_each_outcome_once(conn: psycopg.Connection, postgres_url: str):
    company(conn, "Tesla", (-30, 100.0), (59, 103.0))
    market(conn, "m", 30, True)

    def write(_: int) -> int:
        with connect(postgres_url) as own:
            return len(track_outcomes(own, HOUR))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(8))) == [2] * 8
    assert conn.execute("SELECT count(*) FROM market_outcomes").fetchone() == (2,)


def test_duplicates_of_babylons_own_tracker_are_read_as_one_and_kept(conn: psycopg.Connection, sample: list[dict]):
    for row in sample:
        values: list[Any] = [Jsonb(value) if isinstance(value, (dict, list)) else value for value in row.values()]
        names = ", ".join(f'"{name}"' for name in row)
        conn.execute(f"INSERT INTO market_outcomes ({names}) VALUES ({', '.join(['%s'] * len(row))})", values)  # pyright: ignore
    window = sample[0]["windowId"]
    assert len(recorded_outcomes(conn, window)) == 2
    start = datetime.fromisoformat(window)
    company(conn, "Tesla")
    for minutes, price in ((-5, 50.0), (5, 40.0)):
        conn.execute(
            """INSERT INTO "StockPrice" ("id", "organizationId", "price", "change", "changePercent", "timestamp")
               VALUES (gen_random_uuid()::text, 'Tesla', %s, 0, 0, %s)""",
            [price, start + timedelta(minutes=minutes)],
        )
    assert by_name(track_outcomes(conn, window))["Tesla"].change_percent == -20.0
    kept = 'SELECT count(*), count(DISTINCT "changePercent") FROM market_outcomes WHERE "stockTicker" IS NOT NULL'
    assert conn.execute(kept).fetchone() == (2, 1)


@pytest.fixture
def sample(babylon_data) -> list[dict]:
    import json

    lines = (babylon_data / "sample_market_outcomes.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_what_babylons_columns_cannot_hold_is_bounded_or_left_out(conn: psycopg.Connection):
    company(conn, "Rocket", (-1, 0.01), (1, 5000.0))
    company(conn, "A name of more than twenty characters", (-1, 1.0), (1, 2.0))
    company(conn, "Dear", (-1, 1.0), (1, 1e9))
    company(conn, "Nothing", (-1, 0.0), (1, 0.0))
    company(conn, "NotANumber", (1, float("nan")), (2, 3.0))
    found = by_name(track_outcomes(conn, HOUR))
    assert {name: one.change_percent for name, one in found.items()} == {"Rocket": 999.99, "NotANumber": 0.0}


def test_windows_are_due_for_prices_of_the_last_hour_and_for_markets_resolved_since(conn: psycopg.Connection):
    now = (START + timedelta(hours=1, minutes=10)).replace(tzinfo=UTC)
    assert due_windows(conn, now) == []
    company(conn, "Tesla", (1, 100.0))
    market(conn, "late", -180, True)
    market(conn, "too late", -60 * 24 * 8, True)
    market(conn, "later", 90, True)
    assert due_windows(conn, now) == ["2026-11-23T05:00", HOUR]
    track_outcomes(conn, "2026-11-23T05:00")
    assert due_windows(conn, now) == [HOUR]


def test_hours_of_the_last_days_that_were_missed_are_due_until_they_are_written(conn: psycopg.Connection):
    now = (START + timedelta(hours=1, minutes=10)).replace(tzinfo=UTC)
    company(conn, "Tesla", (-60 * 24 * 8, 90.0), (-300, 95.0), (-299, 96.0), (1, 100.0), (61, 110.0))
    position(conn, "Tesla", -90, 97.0)
    missed = ["2026-11-23T03:00", "2026-11-23T06:00"]
    assert due_windows(conn, now) == [*missed, HOUR]
    for window in missed:
        assert track_outcomes(conn, window)
        assert window not in due_windows(conn, now)
    assert due_windows(conn, now + timedelta(hours=2)) == [HOUR, "2026-11-23T09:00"]


def test_an_hour_of_which_nothing_can_be_written_is_never_due(conn: psycopg.Connection):
    now = (START + timedelta(hours=1, minutes=10)).replace(tzinfo=UTC)
    company(conn, "A name of more than twenty characters", (-300, 1.0), (1, 2.0))
    company(conn, "Dear", (-299, 1e9))
    company(conn, "Fallen", (-241, 1e9), (-239, 1.0))
    company(conn, "NotANumber", (-180, float("nan")), (-120, 0.0))
    position(conn, "Nobody", -60, 1.0)
    assert due_windows(conn, now) == []
    hours = [f"2026-11-23T{hour:02}:00" for hour in range(2, 9)]
    assert [track_outcomes(conn, window) for window in hours] == [[]] * len(hours)


def test_no_more_hours_are_due_at_once_than_a_tick_may_request(conn: psycopg.Connection):
    now = (START + timedelta(hours=1, minutes=10)).replace(tzinfo=UTC)
    company(conn, "Tesla", *((-60 * hour, 100.0) for hour in range(40)))
    first = due_windows(conn, now)
    assert (len(first), first[0]) == (MOST_WINDOWS, "2026-11-21T17:00")
    for window in first:
        track_outcomes(conn, window)
    then = due_windows(conn, now)
    assert (len(then), then[-1]) == (40 - MOST_WINDOWS, HOUR)


def test_what_is_due_is_found_by_indexes_and_positions_are_read_once(conn: psycopg.Connection):
    """Postgres reads a table whole, told to avoid it, only where no index answers: Babylon has none on `openedAt`."""
    company(conn, "Tesla", (1, 100.0))
    plans: list[str] = []
    conn.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    for statement in (
        "LOAD 'auto_explain'",
        "SET auto_explain.log_min_duration = 0",
        "SET auto_explain.log_analyze = on",
        "SET client_min_messages = log",
        "SET enable_seqscan = off",
    ):
        conn.execute(statement)
    assert due_windows(conn, (START + timedelta(hours=1)).replace(tzinfo=UTC)) == [HOUR]
    (plan,) = [plan for plan in plans if "generate_series" in plan]
    scans = [line for line in plan.splitlines() if "Seq Scan" in line]
    assert [("PerpPosition" in line, "loops=1)" in line) for line in scans] == [(True, True)]


def test_the_schedule_asks_for_the_hours_that_are_due_and_the_asset_writes_them(
    conn: psycopg.Connection, postgres_url: str
):
    resources = {"database": Database(url=postgres_url)}
    now = (START + timedelta(hours=1, minutes=10)).replace(tzinfo=UTC)

    with dg.instance_for_test() as instance:

        def look() -> Any:
            with dg.build_schedule_context(instance, now, resources=resources) as context:
                return market_outcomes_schedule(context)

        assert isinstance(look(), dg.SkipReason)
        company(conn, "Tesla", (-60 * 24 * 8, 100.0), (59, 103.0))
        market(conn, "m", 30, True)
        (request,) = look()
        assert request.partition_key == HOUR
        launched = instance.create_run_for_job(
            build_defs().resolve_job_def("outcomes"), tags={"dagster/partition": HOUR}
        )
        assert "being written now" in str(look().skip_message)
        instance.report_run_failed(launched)
        assert [again.partition_key for again in look()] == [HOUR]
        for _ in range(2):
            launched = instance.create_run_for_job(
                build_defs().resolve_job_def("outcomes"), tags={"dagster/partition": HOUR}
            )
            instance.report_run_failed(launched)
        assert "1 hour needs a person" in str(look().skip_message)
    result = dg.materialize([market_outcomes], partition_key=HOUR, resources=resources)
    (event,) = result.asset_materializations_for_node("market_outcomes")
    assert event.metadata["markets"].value == 2
    shown = event.metadata["outcomes"]
    assert isinstance(shown, dg.TableMetadataValue)
    assert [row.data for row in shown.records] == [
        {
            "market": "Tesla",
            "start_price_dollars": 100.0,
            "end_price_dollars": 103.0,
            "change_percent": 3.0,
            "outcome": None,
            "final_probability": None,
            "volume_dollars": None,
        },
        {
            "market": "Will m?",
            "start_price_dollars": None,
            "end_price_dollars": None,
            "change_percent": None,
            "outcome": "YES",
            "final_probability": 0.75,
            "volume_dollars": None,
        },
    ]
    assert "data:image/png;base64" in str(event.metadata["outcomes_of_the_hour"].value)
    assert [e.passed for e in result.get_asset_check_evaluations()] == [True]
    conn.execute('UPDATE "Market" SET "endDate" = "endDate" + interval \'1 hour\'')
    late = dg.materialize([market_outcomes], partition_key=HOUR, resources=resources)
    assert late.success and [e.passed for e in late.get_asset_check_evaluations()] == [False]
    assert {one.sentiment for one in recorded_outcomes(conn, HOUR)} == {"BULLISH", None}
