"""Windows: when one is settled, what is held back until then, and which windows a look takes."""

from collections import Counter
from collections.abc import Iterator, Set
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.errors import MalformedInput
from rl_assets.grouping import Group
from rl_assets.windows import Changes, Watch, WindowState, hold_back, plan, settles_at, start_of, why_quiet

NOON = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)


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
    state = [Changes([WindowState("2026-11-23T12:00", 5, NOON)])]
    taken, watch = plan(Watch(), state, set(), NOON, 10)
    assert list(taken) == ["2026-11-23T12:00"]
    again, watch = plan(Watch.from_json(watch.to_json()), state, set(), NOON, 10)
    assert again == {}
    moved, watch = plan(
        watch, [Changes([WindowState("2026-11-23T12:00", 6, NOON + timedelta(minutes=1))])], set(), NOON, 10
    )
    assert moved.keys() == taken.keys() and moved != taken
    settled, watch = plan(watch, [Changes([])], set(), NOON + timedelta(hours=1), 10)
    assert settled == {"2026-11-23T12:00": "2026-11-23T12:00:settled"}
    assert watch.unsettled == ()


def test_a_busy_window_is_taken_later():
    state = [Changes([WindowState("2026-11-23T10:00", 5, NOON)])]
    taken, watch = plan(Watch(), state, {"2026-11-23T10:00"}, NOON, 10)
    assert taken == {} and watch.since == NOON
    taken, _ = plan(watch, state, set(), NOON, 10)
    assert list(taken) == ["2026-11-23T10:00"]


def test_a_clock_that_is_ahead_hides_nothing_that_others_write():
    ahead = WindowState("2026-11-23T12:00", 1, NOON + timedelta(minutes=40))
    taken, watch = plan(Watch(), [Changes([ahead])], set(), NOON, 10)
    assert list(taken) == ["2026-11-23T12:00"]
    assert watch.since == NOON
    on_time = WindowState("2026-11-23T11:00", 1, NOON + timedelta(seconds=5))
    taken, watch = plan(watch, [Changes([on_time, ahead])], set(), NOON + timedelta(seconds=5), 10)
    assert list(taken) == ["2026-11-23T11:00"]
    assert watch.since == NOON + timedelta(seconds=5)


def test_a_clock_that_is_half_an_hour_behind_is_asked_for():
    _, watch = plan(Watch(), [Changes([WindowState("2026-11-23T12:00", 1, NOON)])], set(), NOON, 10)
    assert watch.horizon is not None and watch.horizon < NOON - timedelta(minutes=30)


def parts(rows: list[tuple[str, datetime]], horizon: datetime | None, most: int) -> Iterator[Changes]:
    """What `changed_windows` tells of rows, each a window and when it changed."""
    totals, newest = Counter(window for window, _ in rows), dict[str, datetime]()
    for window, at in rows:
        newest[window] = max(at, newest.get(window, at))
    news = sorted((at, window) for window, at in rows if horizon is None or at >= horizon)
    while True:
        found = news[:most]
        found += [one for one in news[most:] if found and one[0] == found[-1][0]]
        news = news[len(found) :]
        states = [WindowState(window, totals[window], newest[window]) for window in {window for _, window in found}]
        yield Changes(sorted(states, key=lambda state: state.newest_updated_at), found[-1][0] if news else None)
        if not news:
            return


@given(
    changes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10_000), st.integers(0, 3_600)), max_size=40),
    most=st.integers(1, 5),
    at_once=st.integers(1, 50),
    busy=st.sets(st.integers(0, 30)),
)
def test_every_change_is_taken_whatever_the_pace(changes, most, at_once, busy):
    """Rows arrive at any time in any window, up to an hour late, and stay news; looking on until nothing is due has
    taken each window's last state, with windows in between that somebody works on."""
    rows: list[tuple[str, datetime]] = []
    watch, last = Watch(), {}

    def window_of(hour: int) -> str:
        return (NOON - timedelta(hours=hour)).strftime("%Y-%m-%dT%H:00")

    def look(now: datetime, busy: Set[str] = frozenset()) -> int:
        nonlocal watch
        taken, watch = plan(watch, parts(rows, watch.horizon, at_once), busy, now, most)
        watch = Watch.from_json(watch.to_json())
        assert not taken.keys() & busy
        last.update({window: sorted(at for name, at in rows if name == window) for window in taken})
        return len(taken)

    for hour, second, late in sorted(changes, key=lambda change: change[1]):
        now = NOON + timedelta(seconds=second)
        rows.append((window_of(hour), now - timedelta(seconds=late)))
        look(now, set(map(window_of, busy)))
    later = NOON + timedelta(days=1)
    for _ in range(2 * len(rows) + 1):  # each window is taken once, and once more where its hour was open
        look(later)
    assert last == {window: sorted(at for name, at in rows if name == window) for window, _ in rows}
    assert look(later) == 0


def test_no_more_is_read_than_what_is_taken_now_needs():
    """A database full of what nobody has read yet: a tick looks at its beginning alone, and goes on from there."""
    hours = [f"2026-10-{day:02}T{hour:02}:00" for day in range(1, 11) for hour in range(24)]
    rows = [(hour, start_of(hour) + timedelta(seconds=100 * n)) for hour in hours for n in range(10)]
    watch, last, read = Watch(), set[str](), []
    while len(last) < len(hours):
        looked = []
        taken, watch = plan(
            watch, (looked.append(part) or part for part in parts(rows, watch.horizon, 35)), set(), NOON, 24
        )
        assert taken
        assert not last & taken.keys()
        last |= taken.keys()
        read.append(len(looked))
    assert max(read) <= 2
