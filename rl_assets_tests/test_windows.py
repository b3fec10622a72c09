"""Windows: when one is settled, what is held back until then, and which windows a look takes."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.errors import MalformedInput
from rl_assets.grouping import Group
from rl_assets.windows import Watch, hold_back, plan, settles_at, start_of, why_quiet

NOON = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Seen:
    window_id: str
    rows: int
    newest_updated_at: datetime


def group(kind: str, size: int) -> Group:
    return Group(
        group_id="g",
        kind=kind,
        key="k",
        window_id="2026-11-23T12:00",
        trajectory_ids=tuple(map(str, range(size))),
        trainable=True,
        reason=None,
    )


def test_an_hour_settles_five_minutes_after_it_closes():
    assert settles_at("2026-11-23T12:00") == datetime(2026, 11, 23, 13, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("watch", "busy", "said"),
    [
        (Watch(), 0, "no episode that waits for a judge has been recorded yet"),
        (Watch(NOON), 0, "no episode is new since 12:30 UTC (23 Nov)"),
        (Watch(NOON), 1, "no episode is new since 12:30 UTC (23 Nov); 1 hour is being read now"),
        (
            Watch(NOON, {}, ("2026-11-23T12:00", "2026-11-23T13:00")),
            2,
            "no episode is new since 12:30 UTC (23 Nov); the hour 2026-11-23T12:00 is read once more when it has "
            "closed, at 13:05 UTC (23 Nov), and 1 later hour after that; 2 hours are being read now",
        ),
    ],
)
def test_a_quiet_look_is_told_in_words(watch: Watch, busy: int, said: str):
    assert why_quiet(watch, busy) == said


@pytest.mark.parametrize("text", ["2026-11-23", "benchmark-7", "2026-11-23T12:30", ""])
def test_what_is_no_window_is_refused(text):
    with pytest.raises(MalformedInput, match="not an hourly window"):
        start_of(text)


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [("live", 8, "window_open"), ("benchmark", 7, "group_incomplete"), ("benchmark", 8, None)],
)
def test_groups_that_may_still_grow_wait_for_the_window(kind, size, reason):
    open_hour = hold_back([group(kind, size)], "2026-11-23T12:00", NOON, group_size=8)[0]
    assert (open_hour.trainable, open_hour.reason) == (reason is None, reason)
    settled = hold_back([group(kind, size)], "2026-11-23T12:00", NOON + timedelta(hours=1), group_size=8)[0]
    assert settled.trainable


def test_a_window_is_taken_when_it_moves_and_once_more_when_it_settles():
    state = [Seen("2026-11-23T12:00", 5, NOON)]
    taken, watch = plan(Watch(), state, set(), NOON, 10)
    assert list(taken) == ["2026-11-23T12:00"]
    again, watch = plan(Watch.from_json(watch.to_json()), state, set(), NOON, 10)
    assert again == {}
    moved, watch = plan(watch, [Seen("2026-11-23T12:00", 6, NOON + timedelta(minutes=1))], set(), NOON, 10)
    assert moved.keys() == taken.keys() and moved != taken
    settled, watch = plan(watch, [], set(), NOON + timedelta(hours=1), 10)
    assert settled == {"2026-11-23T12:00": "2026-11-23T12:00:settled"}
    assert watch.unsettled == ()


def test_a_busy_window_is_taken_later():
    state = [Seen("2026-11-23T10:00", 5, NOON)]
    taken, watch = plan(Watch(), state, {"2026-11-23T10:00"}, NOON, 10)
    assert taken == {} and watch.since == NOON
    taken, _ = plan(watch, state, set(), NOON, 10)
    assert list(taken) == ["2026-11-23T10:00"]


def test_a_clock_that_is_ahead_hides_nothing_that_others_write():
    ahead = Seen("2026-11-23T12:00", 1, NOON + timedelta(minutes=40))
    taken, watch = plan(Watch(), [ahead], set(), NOON, 10)
    assert list(taken) == ["2026-11-23T12:00"]
    assert watch.since == NOON
    on_time = Seen("2026-11-23T11:00", 1, NOON + timedelta(seconds=5))
    taken, watch = plan(watch, [on_time, ahead], set(), NOON + timedelta(seconds=5), 10)
    assert list(taken) == ["2026-11-23T11:00"]
    assert watch.since == NOON + timedelta(seconds=5)


def test_a_clock_that_is_half_an_hour_behind_is_asked_for():
    _, watch = plan(Watch(), [Seen("2026-11-23T12:00", 1, NOON)], set(), NOON, 10)
    assert watch.horizon is not None and watch.horizon < NOON - timedelta(minutes=30)


@given(
    changes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10_000)), max_size=40),
    most=st.integers(1, 5),
)
def test_every_change_is_taken_whatever_the_pace(changes, most):
    """Rows arrive at any time in any window; looking on until nothing is due has taken each window's last state."""
    rows: dict[str, tuple[int, datetime]] = {}
    watch, last = Watch(), {}

    def look(now: datetime) -> int:
        nonlocal watch
        horizon = watch.horizon
        states = [Seen(w, n, at) for w, (n, at) in rows.items() if horizon is None or at > horizon]
        taken, watch = plan(watch, states, set(), now, most)
        watch = Watch.from_json(watch.to_json())
        last.update({window: rows[window] for window in taken})
        return len(taken)

    for hour, second in sorted(changes, key=lambda change: change[1]):
        window = (NOON - timedelta(hours=hour)).strftime("%Y-%m-%dT%H:00")
        now = NOON + timedelta(seconds=second)
        rows[window] = (rows.get(window, (0, now))[0] + 1, now)
        look(now)
    for _ in range(len(rows) + 1):
        look(NOON + timedelta(days=1))
    assert last == rows
    assert look(NOON + timedelta(days=1)) == 0
