"""Many hands on one ledger: claims at once, and long histories, in which no episode may be lost or trained on twice."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl_assets.episodes import WINDOW_FORMAT, Episode, Policy
from rl_assets.errors import LedgerConflict
from rl_assets.judging import JudgementSet, OutcomeJudge, unjudged
from rl_assets.store.database import connect
from rl_assets.store.ledger import (
    IN_FLIGHT,
    NEXT,
    Batch,
    advance_batch,
    batches,
    claim_batch,
    claimed_ids,
    readiness,
    record_judgements,
)
from rl_assets_tests.store.waiting import LINE, Stricter, brought_to, ids_of, judged, recorded, waiting


def test_of_many_claims_at_once_one_succeeds(conn: psycopg.Connection, postgres_url: str):
    waiting(conn, 8)
    start = threading.Barrier(8)

    def rush(_: int) -> Batch | None:
        with connect(postgres_url) as own:
            start.wait()
            return claim_batch(own, model_line=LINE, base_step=0, minimum=2, forced_by=None)

    with ThreadPoolExecutor(8) as pool:
        claimed = [batch for batch in pool.map(rush, range(8)) if batch is not None]
    assert len(claimed) == 1
    assert readiness(conn, LINE, 0).fresh == 6


def test_episodes_are_trained_on_once_while_everybody_works_at_once(conn: psycopg.Connection, postgres_url: str):
    """Claimers that fail, free, retry and train race with judges that record and re-judge windows."""
    windows = [f"2026-11-23T{hour:02d}:00" for hour in range(6)]
    recorded_in = {window: recorded(conn, 10, window=window) for window in windows}
    judges_done = threading.Event()

    def judging(own_windows: Sequence[str]) -> None:
        with connect(postgres_url) as own:
            for judge, window in itertools.product((OutcomeJudge(), Stricter(), OutcomeJudge()), own_windows):
                record_judgements(own, judged(recorded_in[window], window=window, judge=judge))

    def training(number: int) -> None:
        with connect(postgres_url) as own:
            for turn in itertools.count():
                finished = judges_done.is_set()
                batch = claim_batch(own, model_line=LINE, base_step=0, minimum=4, forced_by=None)
                if batch is not None:
                    if (turn + number) % 3 == 0:
                        brought_to(own, batch, "freed")
                        continue
                    if (turn + number) % 3 == 1:
                        brought_to(own, batch, "failed")
                        try:
                            advance_batch(own, batch.id, "reserved")
                        except LedgerConflict:  # another claimer was quicker
                            advance_batch(own, batch.id, "freed")
                            continue
                    brought_to(own, batch, "rejected")
                elif finished and readiness(own, LINE, 0).fresh < 4:
                    return

    with ThreadPoolExecutor(6) as pool:
        trainers = [pool.submit(training, number) for number in range(4)]
        judges = [pool.submit(judging, part) for part in (windows[:3], windows[3:])]
        for judge in judges:
            judge.result()
        judges_done.set()
        for trainer in trainers:
            trainer.result()
    trained = Counter(i for b in batches(conn, model_line=LINE, states=("rejected",), limit=1000) for i in ids_of(b))
    everybody = {episode.trajectory_id for episodes in recorded_in.values() for episode in episodes}
    assert set(trained.values()) == {1}
    assert len(everybody - trained.keys()) == readiness(conn, LINE, 0).fresh < 4
    used = conn.execute('SELECT count(*) FROM trajectories WHERE "usedInTraining"').fetchone()
    assert used == (len(trained),)


@dataclass
class Bookkeeping:
    """One model line in a history of its own, and what must be true of it at any time."""

    conn: psycopg.Connection
    line: str
    windows: Iterator[str]
    judged: dict[str, list[Episode]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    late: dict[str, list[Episode]] = field(default_factory=dict)

    def record(self, groups: int) -> None:
        window = next(self.windows)
        self.judged[window] = recorded(self.conn, groups * 2, window=window, policy=Policy(self.line, 0))
        self.judge(window, 1)

    def judge(self, window: str, version: int) -> None:
        judge = OutcomeJudge()
        judge.version = str(version)
        record_judgements(self.conn, judged(self.judged[window], window=window, judge=judge))
        self.versions[window] = version

    def grow(self, groups: int) -> None:
        for window, version in list(self.versions.items())[-1:]:
            more = recorded(
                self.conn,
                groups * 2,
                window=window,
                policy=Policy(self.line, 0),
                first_snapshot=len(self.judged[window]),
            )
            self.judged[window] += more
            self.judge(window, version)

    def judge_again(self, which: int) -> None:
        windows = list(self.versions)
        if windows:
            window = windows[which % len(windows)]
            self.judge(window, self.versions[window] + 1)

    def leave_unjudged(self, which: int) -> None:
        windows = list(self.versions)
        if windows:
            window = windows[which % len(windows)]
            given = judged(self.judged[window], window=window)
            rankings = [unjudged(group, "judge_failed") for group in given.groups]
            record_judgements(self.conn, JudgementSet.of(window, Stricter(), rankings, given.groups))

    def record_unjudged(self, groups: int) -> None:
        window = next(self.windows)
        episodes = recorded(self.conn, groups * 2, window=window, policy=Policy(self.line, 0))
        given = judged(episodes, window=window)
        rankings = [unjudged(group, "judge_failed") for group in given.groups]
        record_judgements(self.conn, JudgementSet.of(window, OutcomeJudge(), rankings, given.groups))
        self.late[window] = episodes

    def judge_late(self) -> None:
        for window in list(self.late)[:1]:
            self.judged[window] = self.late.pop(window)
            self.judge(window, 1)

    def claim(self, minimum: int) -> None:
        claim_batch(self.conn, model_line=self.line, base_step=0, minimum=minimum, forced_by=None)

    def advance(self, which: int, state: str) -> None:
        able = [b for b in batches(self.conn, model_line=self.line) if state in NEXT[b.state]]
        if able:
            batch = able[which % len(able)]
            try:
                advance_batch(self.conn, batch.id, state)
            except LedgerConflict:
                assert state == "reserved" and readiness(self.conn, self.line, 0).in_flight_batch

    def check(self) -> None:
        made = batches(self.conn, model_line=self.line)
        held = {batch.id: claimed_ids(self.conn, batch.id) for batch in made}
        for batch in made:
            assert held[batch.id] == ([] if batch.state == "freed" else sorted(ids_of(batch)))
        times = Counter(identity for ids in held.values() for identity in ids)
        assert set(times.values()) <= {1}
        everybody = {episode.trajectory_id for episodes in self.judged.values() for episode in episodes}
        ready = readiness(self.conn, self.line, 0)
        assert times.keys() <= everybody
        assert ready.fresh + len(times) == len(everybody)
        assert ready.claimed == len(times)
        assert sum(batch.state in IN_FLIGHT for batch in made) <= 1
        assert (ready.fresh, ready.trainable_groups, ready.waiting_groups) == self.counted()

    def counted(self) -> tuple[int, ...] | None:
        """What the ledger keeps count of, counted from the rows."""
        return self.conn.execute(
            """SELECT coalesce(sum(members), 0), count(*),
                      (SELECT count(*) FROM rl_assets.groups WHERE model_line = %(line)s AND judged_in IS NULL)
               FROM rl_assets.offers WHERE model_line = %(line)s AND batch_id IS NULL""",
            {"line": self.line},
        ).fetchone()


operations = st.one_of(
    st.tuples(st.just("record"), st.integers(1, 3)),
    st.tuples(st.just("grow"), st.integers(1, 2)),
    st.tuples(st.just("judge_again"), st.integers(0, 9)),
    st.tuples(st.just("leave_unjudged"), st.integers(0, 9)),
    st.tuples(st.just("record_unjudged"), st.integers(1, 2)),
    st.tuples(st.just("judge_late")),
    st.tuples(st.just("claim"), st.integers(1, 8)),
    st.tuples(st.just("advance"), st.integers(0, 9), st.sampled_from(sorted(NEXT))),
)
_hours = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(operations, min_size=5, max_size=25))
def test_no_episode_is_lost_or_in_two_batches_whatever_happens(conn: psycopg.Connection, history: list[tuple]):
    first = next(_hours)
    hours = (datetime(2027, 1, 1, tzinfo=UTC) + timedelta(hours=first * 100 + n) for n in itertools.count())
    books = Bookkeeping(conn, f"line-{first}", (hour.strftime(WINDOW_FORMAT) for hour in hours))
    books.record(2)
    for operation, *arguments in history:
        getattr(books, operation)(*arguments)
        books.check()
