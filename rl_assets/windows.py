"""Hourly windows: when one is settled, what must wait until it is, and which ones need work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from rl_assets.episodes import WINDOW_FORMAT
from rl_assets.errors import MalformedInput
from rl_assets.grouping import Group
from rl_assets.wording import counted, moment

LENGTH = timedelta(hours=1)
GRACE = timedelta(minutes=5)
"""An hour is settled this long after it closes: recorders write a row when an episode ends, which is a little later."""

ATTEMPTS = 3
"""Times that what a window holds is read and judged before a person is needed."""
OVERLAP = timedelta(hours=1)
"""How far back changes are asked for again: longer than a transaction that writes episodes takes, and as far as the
clock of a recorder may be behind. Rows that are judged are not among them any more."""


def start_of(window_id: str) -> datetime:
    """The aware start of a window. Raises `MalformedInput` if the id is not `YYYY-MM-DDTHH:00`."""
    try:
        return datetime.strptime(window_id, WINDOW_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise MalformedInput(f"{window_id!r} is not an hourly window; write it like 2026-11-23T08:00") from None


def settles_at(window_id: str) -> datetime:
    """The moment from which no more rows of a window are expected."""
    return start_of(window_id) + LENGTH + GRACE


def hold_back(groups: Sequence[Group], window_id: str, now: datetime, group_size: int) -> list[Group]:
    """Take from training, until the window is settled, each group that may still grow.

    A live group grows until its hour is settled; a benchmark group is complete at `group_size` members and then need
    not wait. What is held back is kept, not trainable, with the reason `window_open` or `group_incomplete`.
    """
    if now >= settles_at(window_id):
        return list(groups)
    return [_held(group, group_size) for group in groups]


def _held(group: Group, group_size: int) -> Group:
    if not group.trainable:
        return group
    if group.kind == "live":
        return replace(group, trainable=False, reason="window_open")
    if len(group.trajectory_ids) < group_size:
        return replace(group, trainable=False, reason="group_incomplete")
    return group


def next_attempt(key: str) -> str | None:
    """The key under which a window is taken once more after a run of it has failed; None after the last attempt."""
    first, _, number = key.partition(":attempt-")
    attempt = int(number or 1) + 1
    return f"{first}:attempt-{attempt}" if attempt <= ATTEMPTS else None


def why_quiet(watch: Watch, busy: int) -> str:
    """Why no window is taken. busy: how many somebody works on."""
    said = (
        f"no episode is new since {moment(watch.since)}"
        if watch.since is not None
        else "no episode that waits for a judge has been recorded yet"
    )
    if watch.unsettled:
        first, more = watch.unsettled[0], len(watch.unsettled) - 1
        others = f", and {counted(more, 'later hour')} after that" if more else ""
        said += f"; the hour {first} is read once more when it has closed, at {moment(settles_at(first))}{others}"
    if busy:
        said += f"; {counted(busy, 'hour')} {'is' if busy == 1 else 'are'} being read now"
    return said


@dataclass(frozen=True, slots=True)
class WindowState:
    """How many rows a window has, and when one last changed other than by being judged or trained on."""

    window_id: str
    rows: int
    newest_updated_at: datetime


@dataclass(frozen=True, slots=True)
class Changes:
    """Part of what changed, in order of time: the windows, and up to when it goes, where more follows."""

    states: Sequence[WindowState]
    reached: datetime | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """What a watcher of windows remembers between two looks.

    `since` is the newest change that is wholly dealt with; `horizon` is from when on to ask for changes, since a
    transaction that commits late carries an earlier time than others; `seen` maps each window changed from then on to
    its fingerprint when it was last taken; `unsettled` are windows taken before they were settled, to be taken once
    more.
    """

    since: datetime | None = None
    seen: Mapping[str, str] = field(default_factory=dict)
    unsettled: tuple[str, ...] = ()
    horizon: datetime | None = None

    def to_json(self) -> str:
        moments = {"since": self.since, "horizon": self.horizon}
        told = {name: None if moment is None else moment.isoformat() for name, moment in moments.items()}
        return json.dumps(told | {"seen": dict(self.seen), "unsettled": list(self.unsettled)})

    @classmethod
    def from_json(cls, text: str | None) -> Watch:
        if not text:
            return cls()
        value = json.loads(text)
        since, horizon = value["since"], value.get("horizon")  # a cursor of before there were parts has no horizon
        return cls(
            None if since is None else datetime.fromisoformat(since),
            value["seen"],
            tuple(value["unsettled"]),
            None if horizon is None else datetime.fromisoformat(horizon),
        )


def plan(
    watch: Watch, parts: Iterable[Changes], busy: Set[str], now: datetime, most: int
) -> tuple[dict[str, str], Watch]:
    """Which windows to take now, oldest first, each with a key that is new for a new content; and what to remember.

    parts: what has changed since the watch's horizon, of which no more is asked for once something is to be taken. A
    window is taken when its rows moved since it was last taken, or when it has settled since. One that is `busy`, or
    whose hour has not come, is left for a later look, as is what exceeds `most`.
    """
    states: dict[str, WindowState] = {}
    taken, after = dict[str, str](), watch
    for part in parts:
        states |= {state.window_id: state for state in part.states}
        taken, after = _plan(watch, list(states.values()), part.reached, busy, now, most)
        if taken:
            break
    return taken, after


def _plan(
    watch: Watch, states: Sequence[WindowState], reached: datetime | None, busy: Set[str], now: datetime, most: int
) -> tuple[dict[str, str], Watch]:
    prints = {state.window_id: f"{state.rows}:{state.newest_updated_at.isoformat()}" for state in states}
    due = {window: f"{window}:{mark}" for window, mark in prints.items() if watch.seen.get(window) != mark}
    for window in watch.unsettled:
        if settles_at(window) <= now:
            due.setdefault(window, f"{window}:settled")
    free = sorted(window for window in due.keys() - busy if start_of(window) <= now)
    taken = {window: due[window] for window in free[:most]}
    seen = {w: mark for w, mark in prints.items() if w in taken or watch.seen.get(w) == mark}
    if reached is not None:  # the windows of what follows are as they were
        seen |= {w: mark for w, mark in watch.seen.items() if w not in prints}
    waiting = {w for w in watch.unsettled if w not in taken} | {w for w in taken if settles_at(w) > now}
    left = [state.newest_updated_at for state in states if state.window_id not in seen]
    changes = [state.newest_updated_at for state in states]
    since = min(left) if left else max(changes, default=watch.since or reached)
    if since is None:
        return taken, Watch(None, seen, tuple(sorted(waiting)))
    # A recorder whose clock is ahead must not hide what others write until then.
    since = min(since, now, reached or now)
    return taken, Watch(since, seen, tuple(sorted(waiting)), min(since, now - OVERLAP))
