"""Following a batch to its end, and saying what it waits for on the way."""

from __future__ import annotations

import math
from pathlib import Path

import psycopg
import pytest

from rl_assets.errors import RlAssetsError
from rl_assets.follow import Sight, Watch, ended, until
from rl_assets.settings import Settings
from rl_assets.store.ledger import Batch, advance_batch, get_batch
from rl_assets.store.submissions import begin_submission
from rl_assets.training.submission import Submission
from rl_assets.training.trigger import ATTEMPTS, claim
from rl_assets_tests.store.waiting import LINE, a_champion, waiting

SENT = Submission(1, "model-1", "us/rl-assets/line", 0, (), "2026-11-24 10:00:00 UTC")


@pytest.fixture
def batch(conn: psycopg.Connection) -> tuple[Watch, Batch]:
    """A batch that is being trained, and a watch that began before it was claimed."""
    a_champion(conn)
    waiting(conn, 4)
    watch = Watch(conn, Settings(Path("data"), model_line=LINE), list)
    found = claim(conn, model_line=LINE, minimum=4, forced_by=None).batch
    assert found is not None
    return watch, advance_batch(conn, found.id, "training")


def test_a_batch_whose_answer_was_lost_is_followed_until_it_is_known_what_became_of_it(
    conn: psycopg.Connection, batch: tuple[Watch, Batch], monkeypatch: pytest.MonkeyPatch
):
    watch, training = batch
    begin_submission(conn, training.id, SENT)
    advance_batch(conn, training.id, "unknown", error="no answer came")
    monkeypatch.setattr("rl_assets.follow.LOOK_SECONDS", 0.0)
    ahead = iter(("trained", "evaluated", "rejected"))
    seen: list[str] = []

    def on_sight(sight: Sight) -> None:
        seen.append(str(sight))

    def reconciled() -> None:
        advance_batch(conn, training.id, next(ahead))  # pyright: ignore[reportArgumentType]

    last = until(watch, ended, deadline=math.inf, on_sight=on_sight, check=reconciled)
    assert last.batch == get_batch(conn, training.id)
    assert [line.removeprefix(f"{training.id} is ") for line in seen] == [
        "unknown (no answer came): W&B is asked at each tick of the training sensor what became of it",
        "trained",
        "evaluated",
        "rejected",
    ]


def test_time_that_is_up_tells_what_was_waited_for(conn: psycopg.Connection, batch: tuple[Watch, Batch]):
    watch, training = batch
    begin_submission(conn, training.id, SENT)
    advance_batch(conn, training.id, "unknown", error="no answer came")
    with pytest.raises(RlAssetsError, match=r"time is up while .* is unknown \(no answer came\): W&B is asked"):
        until(watch, ended, deadline=-math.inf, on_sight=lambda _: None, check=lambda: None)


def test_what_comes_to_no_end_by_itself_is_not_waited_for(conn: psycopg.Connection, batch: tuple[Watch, Batch]):
    watch, training = batch
    advance_batch(conn, training.id, "unknown", error="the disk was full")
    with pytest.raises(RlAssetsError, match=r"nobody can be asked .*the disk was full; settle it"):
        ended(watch.look())
    for attempt in range(ATTEMPTS):
        failed = advance_batch(conn, training.id, "failed", error="out of memory")
        assert failed.attempt == attempt + 1
        if attempt + 1 < ATTEMPTS:
            assert not ended(watch.look())
            advance_batch(conn, training.id, "reserved")
            advance_batch(conn, training.id, "training")
    with pytest.raises(RlAssetsError, match=f"failed after {ATTEMPTS} attempts: out of memory"):
        ended(watch.look())
