"""Episodes and rows made for tests of the store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from hypothesis import strategies as st
from psycopg.sql import SQL, Identifier

from rl_assets.episodes import Episode, Policy, Sampling, Step
from rl_assets.store.episodes import new_ids

WINDOW = "2026-11-23T08:00"
STARTED = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)

SAMPLE = Episode(
    trajectory_id="",
    agent_id="agent",
    policy=Policy("babylon-agent", 0),
    scenario_id="benchmark-train-000001-0123456789ab",
    window_id=WINDOW,
    started_at=STARTED,
    ended_at=STARTED + timedelta(seconds=3),
    system="Trade.",
    steps=(
        Step(0, "A 41", '{"do":"hold"}', {"do": "hold"}, True, 0.0, 1000.0, 0.5, None, (3, 4), (-0.1, -0.25), 7, 12),
        Step(1, "A 44", "?", {}, False, -5.0, 995.0, 0.0, "not JSON", (5, 6), (-2.0, -0.0), 9, 11),
    ),
    prompt_version="market-1",
    sampling=Sampling(0.8, 16, 1.0, 5),
    snapshot_id="train-000001-0123456789ab",
    sibling=3,
    realised_pnl=-5.0,
    expected_pnl=0.5,
    max_drawdown=5.0,
    breaches=1,
    trades=4,
    fees=0.25,
)


def an_episode(base: Episode = SAMPLE, **changes: Any) -> Episode:
    """An episode like `base`, with an id of its own unless it has one."""
    changes.setdefault("trajectory_id", base.trajectory_id or new_ids(1)[0])
    return replace(base, **changes)


def insert_row(conn: psycopg.Connection, table: str, row: dict[str, Any]) -> None:
    """Insert a row as a recorder of Babylon would."""
    conn.execute(
        SQL("INSERT INTO {} ({}) VALUES ({})").format(
            Identifier(table), SQL(", ").join(map(Identifier, row)), SQL(", ").join([SQL("%s")] * len(row))
        ),
        list(row.values()),
    )


numbers = st.floats(-1e6, 1e6, allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | numbers | texts
actions = st.dictionaries(texts, scalars | st.lists(scalars, max_size=3), max_size=4)
moments = st.datetimes(datetime(2026, 11, 23, 8), datetime(2026, 11, 23, 8, 59)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
)


@st.composite
def steps(draw: st.DrawFn, tick: int) -> Step:
    tokens = draw(st.lists(st.tuples(st.integers(0, 150_000), st.floats(-50, 0)), max_size=4))
    return Step(
        tick=tick,
        observation=draw(texts),
        response=draw(texts),
        action=draw(actions),
        valid=draw(st.booleans()),
        reward=draw(numbers),
        equity=draw(numbers),
        credit=draw(st.none() | numbers),
        error=draw(st.none() | texts),
        token_ids=tuple(token for token, _ in tokens),
        logprobs=tuple(logprob for _, logprob in tokens),
        prompt_tokens=draw(st.integers(0, 10_000)),
        latency_ms=draw(st.integers(0, 10_000)),
    )


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    started = draw(moments)
    return Episode(
        trajectory_id=new_ids(1)[0],
        agent_id="agent",
        policy=Policy(draw(texts), draw(st.none() | st.integers(0, 1000))),
        scenario_id=draw(st.none() | st.text("abc-0123", min_size=1)),
        window_id=WINDOW,
        started_at=started,
        ended_at=started + timedelta(milliseconds=draw(st.integers(0, 60_000))),
        system=draw(texts),
        steps=tuple(draw(steps(tick)) for tick in range(draw(st.integers(0, 3)))),
        prompt_version=draw(st.none() | texts),
        sampling=draw(st.none() | st.builds(Sampling, numbers, st.integers(0, 99), numbers, st.integers(0, 2**40))),
        snapshot_id=draw(st.none() | texts),
        sibling=draw(st.integers(0, 99)),
        realised_pnl=draw(st.none() | numbers),
        expected_pnl=draw(st.none() | numbers),
        max_drawdown=draw(st.none() | numbers),
        breaches=draw(st.integers(0, 99)),
        trades=draw(st.integers(0, 99)),
        fees=draw(numbers),
        is_evaluation=draw(st.booleans()),
    )


def episodes_in_a_window() -> st.SearchStrategy[list[Episode]]:
    return st.lists(episodes(), max_size=4)
