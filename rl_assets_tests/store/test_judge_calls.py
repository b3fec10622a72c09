from __future__ import annotations

import threading

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rl_assets.store.database import connect
from rl_assets.store.judge_calls import CachedAnswer, Exhausted, Limits, cached_answers, reserve, settle, spent
from rl_assets_tests.store.made import WINDOW

HOUR = 3600.0
MODEL = "openai/judge"


def test_an_answer_is_kept_with_its_settlement_and_the_first_one_stays(conn: psycopg.Connection):
    for score in (0.25, 0.75):
        reservation = reserve(conn, WINDOW, MODEL, 500, None, Limits(), HOUR)
        assert isinstance(reservation, int)
        settle(conn, reservation, "ok", 120, None, CachedAnswer("k", {"scores": [score]}, 100, 20, None))
    assert cached_answers(conn, ["k", "other"]) == {"k": CachedAnswer("k", {"scores": [0.25]}, 100, 20, None)}
    assert spent(conn, WINDOW).window_tokens == 240


@pytest.mark.parametrize(
    "limits, limit",
    [
        (Limits(window_tokens=99), "window_tokens"),
        (Limits(day_tokens=99), "day_tokens"),
        (Limits(window_dollars=0.49), "window_dollars"),
        (Limits(day_dollars=0.49), "day_dollars"),
    ],
)
def test_each_limit_binds_alone_and_is_named(conn: psycopg.Connection, limits: Limits, limit: str):
    found = reserve(conn, WINDOW, MODEL, 100, 0.5, limits, HOUR)
    assert isinstance(found, Exhausted)
    assert (found.limit, found.spent) == (limit, 0)
    assert isinstance(reserve(conn, WINDOW, MODEL, 99, 0.49, limits, HOUR), int)


def test_a_window_has_its_own_budget_and_the_day_one_for_all(conn: psycopg.Connection):
    reserve(conn, "2026-11-23T07:00", MODEL, 60, None, Limits(), HOUR)
    assert isinstance(reserve(conn, WINDOW, MODEL, 60, None, Limits(window_tokens=100), HOUR), int)
    assert isinstance(reserve(conn, WINDOW, MODEL, 60, None, Limits(day_tokens=150), HOUR), Exhausted)
    conn.execute("UPDATE rl_assets.judge_spending SET day = day - 1")
    assert isinstance(reserve(conn, WINDOW, MODEL, 60, None, Limits(day_tokens=60), HOUR), int)


def test_what_a_crash_left_reserved_is_free_again_once_it_expires(conn: psycopg.Connection):
    limits = Limits(window_tokens=100, day_tokens=100)
    reservation = reserve(conn, WINDOW, MODEL, 100, 2.0, limits, HOUR)
    assert isinstance(reserve(conn, WINDOW, MODEL, 1, None, limits, HOUR), Exhausted)
    conn.execute("UPDATE rl_assets.judge_spending SET expires_at = now() - interval '1 second'")
    assert spent(conn, WINDOW).window_tokens == 0
    assert isinstance(reserve(conn, WINDOW, MODEL, 60, None, limits, HOUR), int)
    assert isinstance(reservation, int)
    settle(conn, reservation, "ok", 30, 0.5)  # it was slow, not gone
    assert (spent(conn, WINDOW).window_tokens, spent(conn, WINDOW).window_dollars) == (90, 0.5)


def test_two_processes_cannot_both_take_the_rest(conn: psycopg.Connection, postgres_url: str):
    found: list[int | Exhausted] = []
    start = threading.Barrier(6)

    def take() -> None:
        with connect(postgres_url) as own:
            start.wait(30)
            found.append(reserve(own, WINDOW, MODEL, 40, None, Limits(window_tokens=100), HOUR))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, int) for one in found) == 2
    assert spent(conn, WINDOW).window_tokens == 80


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 60), st.none() | st.integers(0, 60)), max_size=12))
def test_no_sequence_of_requests_passes_the_limit(conn: psycopg.Connection, asked: list[tuple[int, int | None]]):
    """Each asks for tokens, and settles at once for at most those, or never."""
    conn.execute("TRUNCATE rl_assets.judge_spending")
    expected = 0
    for most, used in asked:
        reservation = reserve(conn, WINDOW, MODEL, most, None, Limits(window_tokens=100), HOUR)
        assert isinstance(reservation, int) == (expected + most <= 100)
        if isinstance(reservation, int):
            cost = most if used is None else min(used, most)
            if used is not None:
                settle(conn, reservation, "ok", cost, None)
            expected += cost
        assert spent(conn, WINDOW).window_tokens == expected <= 100
