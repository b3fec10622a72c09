"""Whether to train now: what a look at the queue and at the runs leads to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rl_assets.errors import LedgerConflict
from rl_assets.judging import JudgementSet, OutcomeJudge, unjudged
from rl_assets.registry.models import promote
from rl_assets.store.ledger import Batch, advance_batch, batches, claimed_ids, get_batch, readiness, record_judgements
from rl_assets.training import trigger
from rl_assets.training.manifest import Manifest
from rl_assets.training.trigger import ATTEMPTS, Look, Runs, branch, claim, look, record_failure
from rl_assets_tests.registry.made import a_candidate, evaluated
from rl_assets_tests.store.waiting import LINE, a_champion, judged, recorded, waiting

LATER = "2026-11-23T09:00"
NO_RUNS = Runs(None, frozenset())


@pytest.fixture
def line(conn: psycopg.Connection) -> psycopg.Connection:
    """A database with a model line whose champion is step 0."""
    a_champion(conn)
    return conn


def looked(
    conn: psycopg.Connection, runs: Runs | Callable[[str], Runs] = NO_RUNS, *, minimum: int = 4, line: str = LINE
) -> Look:
    runs_of = runs if callable(runs) else lambda _: runs
    return look(conn, model_line=line, minimum=minimum, runs_of=runs_of)


def ended(*run_keys: str) -> Runs:
    return Runs(None, frozenset(run_keys))


def claimed(conn: psycopg.Connection) -> str:
    """The id of a batch of four episodes that a look has just claimed."""
    waiting(conn, 4)
    batch = looked(conn).batch
    assert batch is not None
    return batch.id


def test_999_are_too_few_and_with_one_more_1000_are_claimed(line: psycopg.Connection):
    waiting(line, 990, siblings=10)
    nine = waiting(line, 9, siblings=10, window=LATER)
    found = looked(line, minimum=1000)
    assert (found.reason, found.batch, found.run_key) == ("999 of 1000 fresh episodes", None, None)
    assert batches(line, model_line=LINE) == []
    late = recorded(line, 1, siblings=10, window=LATER)
    record_judgements(line, judged([*nine, *late], window=LATER, group_size=10))
    found = looked(line, minimum=1000)
    assert found.batch is not None
    assert (found.batch.episodes, found.run_key) == (1000, f"{found.batch.id}:1")
    assert found.reason == f"1000 of 1000 fresh episodes: claimed as {found.batch.id}, on top of step 0"


def test_after_a_training_only_new_episodes_are_claimed(line: psycopg.Connection):
    first = claimed(line)
    for state in ("training", "trained", "evaluated", "rejected"):
        advance_batch(line, first, state)
    assert looked(line).reason == "0 of 4 fresh episodes"
    new = waiting(line, 4, window=LATER)
    second = looked(line).batch
    assert second is not None
    assert claimed_ids(line, second.id) == sorted(episode.trajectory_id for episode in new)


def test_a_batch_is_trained_once_more_on_the_same_claim(line: psycopg.Connection):
    first = claimed(line)
    for state in ("training", "trained", "evaluated", "rejected"):
        advance_batch(line, first, state)
    marks = line.execute('SELECT "trajectoryId", "trainedInBatch" FROM trajectories ORDER BY 1').fetchall()
    before = readiness(line, LINE, 0)
    found = branch(line, first, model_line=LINE, forced_by="a test")
    assert found.batch is not None
    again = found.batch
    assert (again.branch_of, again.state, again.forced_by, again.base_step) == (first, "reserved", "a test", 0)
    assert found.run_key == f"{again.id}:1"
    old, new = (Manifest.from_json(get_batch(line, one).manifest) for one in (first, again.id))
    assert (new.groups, new.judgement_sets, new.windows) == (old.groups, old.judgement_sets, old.windows)
    assert claimed_ids(line, again.id) == claimed_ids(line, first) == sorted(old.trajectory_ids)
    assert replace(readiness(line, LINE, 0), in_flight_batch=None) == before

    assert looked(line).batch == again
    with pytest.raises(LedgerConflict, match=f"while {again.id} is reserved"):
        branch(line, first, model_line=LINE, forced_by="a test")
    for state in ("training", "trained", "evaluated", "rejected"):
        advance_batch(line, again.id, state)
    assert line.execute('SELECT "trajectoryId", "trainedInBatch" FROM trajectories ORDER BY 1').fetchall() == marks
    assert line.execute('SELECT "batchId" FROM training_batches ORDER BY 1').fetchall() == sorted(
        [(first,), (again.id,)]
    )
    third = branch(line, again.id, model_line=LINE, forced_by="a test").batch
    assert third is not None
    assert third.branch_of == first
    for state in ("failed", "freed"):
        advance_batch(line, third.id, state)
    assert claimed_ids(line, first) == sorted(old.trajectory_ids)
    assert readiness(line, LINE, 0) == before


def test_only_what_was_decided_upon_is_trained_once_more(line: psycopg.Connection):
    first = claimed(line)
    with pytest.raises(LedgerConflict, match="is reserved; only what was promoted or rejected"):
        branch(line, first, model_line=LINE, forced_by="a test")
    with pytest.raises(LedgerConflict, match=f"is of {LINE} and this is another"):
        branch(line, first, model_line="another", forced_by="a test")


def test_the_reason_says_how_many_groups_wait_for_a_judge(line: psycopg.Connection):
    groups = judged(recorded(line, 4)).groups
    rankings = [unjudged(group, "judge_failed") for group in groups]
    record_judgements(line, JudgementSet.of(groups[0].window_id, OutcomeJudge(), rankings, groups))
    assert looked(line).reason == "0 of 4 fresh episodes; 2 groups wait for a judge"


def test_without_a_champion_nothing_is_claimed(conn: psycopg.Connection):
    waiting(conn, 4)
    assert "materialize base_policy" in looked(conn).reason
    assert batches(conn, model_line=LINE) == []


def test_a_claim_that_lost_its_run_request_is_requested_again_under_the_same_key(line: psycopg.Connection):
    batch_id = claimed(line)
    for _ in range(2):
        found = looked(line)
        assert (found.run_key, found.reason) == (f"{batch_id}:1", f"{batch_id} is claimed and has no run")
    assert looked(line, Runs("run-7", frozenset())).reason == f"{batch_id} is reserved, in run run-7"


def test_a_batch_in_flight_is_left_alone_however_many_episodes_wait(line: psycopg.Connection):
    batch_id = claimed(line)
    waiting(line, 8, window=LATER)
    advance_batch(line, batch_id, "training", run_id="run-7")
    found = looked(line, Runs("run-7", frozenset()))
    assert (found.run_key, found.reason) == (None, f"{batch_id} is training, in run run-7")
    for forced_by in (None, "a test"):
        found = claim(line, model_line=LINE, minimum=4, forced_by=forced_by)
        assert found.batch is None
        assert found.reason.startswith(f"{batch_id} is in flight")
    assert len(batches(line, model_line=LINE)) == 1


@pytest.mark.parametrize("state", ["reserved", "training"])
def test_a_run_that_died_is_a_failed_attempt_and_attempts_are_counted(line: psycopg.Connection, state: str):
    batch_id = claimed(line)
    for attempt in range(1, ATTEMPTS + 1):
        if state == "training":
            advance_batch(line, batch_id, state, run_id=f"run-{attempt}")
        found = looked(line, ended(f"{batch_id}:{attempt}"))
        assert found.run_key is None
        assert get_batch(line, batch_id).state == "failed"
        if attempt < ATTEMPTS:
            again = looked(line)
            assert again.run_key == f"{batch_id}:{attempt + 1}"
            assert again.reason == f"{batch_id} is tried again: attempt {attempt + 1} of {ATTEMPTS}"
    assert looked(line).batch is None
    assert get_batch(line, batch_id).state == "failed"
    assert len(claimed_ids(line, batch_id)) == 4


def test_new_episodes_are_trained_on_although_an_older_batch_has_failed_for_good(line: psycopg.Connection):
    batch_id = claimed(line)
    for attempt in range(1, ATTEMPTS + 1):
        looked(line, ended(f"{batch_id}:{attempt}"))
        if attempt < ATTEMPTS:
            looked(line)
    waiting(line, 4, window=LATER)
    found = looked(line)
    assert found.batch is not None
    assert not set(claimed_ids(line, found.batch.id)) & set(claimed_ids(line, batch_id))


def test_what_follows_a_training_is_repeated_under_new_keys_and_then_left_to_a_person(line: psycopg.Connection):
    batch_id = claimed(line)
    for state in ("training", "trained"):
        advance_batch(line, batch_id, state)
    keys = [f"{batch_id}:1"]
    for turn in range(1, ATTEMPTS + 1):
        found = looked(line, ended(*keys))
        assert found.run_key == f"{batch_id}:1:after-{turn}"
        keys.append(f"{batch_id}:1:after-{turn}")
    found = looked(line, ended(*keys))
    assert found.run_key is None
    assert "read the error of its run" in found.reason
    assert f"rl-assets batches reject {batch_id} --reason" in found.reason
    assert get_batch(line, batch_id).state == "trained"


def test_a_batch_of_which_nobody_knows_is_left_to_a_person(line: psycopg.Connection):
    batch_id = claimed(line)
    for state in ("training", "unknown"):
        advance_batch(line, batch_id, state)
    found = looked(line, ended(f"{batch_id}:1"))
    assert found.run_key is None
    assert "nobody knows" in found.reason
    assert "settle" in found.reason


@pytest.mark.parametrize("meanwhile", [("trained",), ("trained", "evaluated", "rejected"), ("failed", "reserved")])
def test_what_happens_to_a_batch_while_it_is_looked_at_stands(line: psycopg.Connection, meanwhile: tuple[str, ...]):
    batch_id = claimed(line)
    advance_batch(line, batch_id, "training", run_id="run-7")

    def runs_of(_: str) -> Runs:
        for state in meanwhile:
            advance_batch(line, batch_id, state)
        return ended(f"{batch_id}:1")

    found = looked(line, runs_of)
    assert (found.run_key, found.reason) == (
        None,
        f"{batch_id} has moved while it was looked at; the next look decides",
    )
    assert get_batch(line, batch_id).state == meanwhile[-1]


@pytest.mark.parametrize(
    ("meanwhile", "said"), [("trained", "stays trained"), ("failed", "stays failed"), ("reserved", "earlier attempt")]
)
def test_a_failure_that_is_told_late_changes_nothing_that_was_decided_meanwhile(
    line: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, meanwhile: str, said: str
):
    batch_id = claimed(line)
    advance_batch(line, batch_id, "training", run_id="run-7")
    late = {"trained": ["trained"], "failed": ["failed"], "reserved": ["failed", "reserved"]}[meanwhile]

    def read(conn: psycopg.Connection, wanted: str) -> Batch:
        batch = get_batch(conn, wanted)
        while late:
            advance_batch(conn, wanted, late.pop(0))
        return batch

    monkeypatch.setattr(trigger, "get_batch", read)
    assert said in record_failure(line, batch_id, run_id="run-7", run_key=f"{batch_id}:1", error="out of memory")
    assert get_batch(line, batch_id).state == meanwhile


def test_a_failed_batch_that_another_look_took_first_is_left_to_it(
    line: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    batch_id = claimed(line)
    waiting(line, 4, window=LATER)
    advance_batch(line, batch_id, "failed", error="out of memory")
    advancing = trigger.advance_batch

    def late(conn: psycopg.Connection, *arguments: Any, **named: Any) -> Batch:
        assert claim(conn, model_line=LINE, minimum=4, forced_by="somebody else").batch is not None
        return advancing(conn, *arguments, **named)

    monkeypatch.setattr(trigger, "advance_batch", late)
    found = looked(line)
    assert (found.run_key, found.reason) == (
        None,
        f"{batch_id} has moved while it was looked at; the next look decides",
    )
    assert get_batch(line, batch_id).state == "failed"


def test_a_failure_counts_for_the_attempt_that_it_belongs_to(line: psycopg.Connection):
    batch_id = claimed(line)
    said = record_failure(line, batch_id, run_id="r1", run_key=f"{batch_id}:1", error="out of memory")
    assert said == f"{batch_id} is failed: out of memory"
    assert get_batch(line, batch_id).error == "out of memory"
    looked(line)
    said = record_failure(line, batch_id, run_id="r1", run_key=f"{batch_id}:1", error="out of memory")
    assert "earlier attempt" in said
    assert get_batch(line, batch_id).state == "reserved"


def test_a_second_run_that_is_cancelled_leaves_the_one_that_trains_alone(line: psycopg.Connection):
    batch_id = claimed(line)
    advance_batch(line, batch_id, "training", run_id="run-1")
    before = get_batch(line, batch_id)
    said = record_failure(line, batch_id, run_id="run-2", run_key=None, error="the run was cancelled")
    assert said == f"{batch_id} stays training in run run-1: run run-2 ended with the run was cancelled"
    assert get_batch(line, batch_id) == before
    assert advance_batch(line, batch_id, "trained", run_id="run-1").state == "trained"


def test_the_run_that_trains_fails_its_batch_though_it_has_no_key(line: psycopg.Connection):
    batch_id = claimed(line)
    advance_batch(line, batch_id, "training", run_id="run-1")
    said = record_failure(line, batch_id, run_id="run-1", run_key=None, error="the run was cancelled")
    assert said == f"{batch_id} is failed: the run was cancelled"


def test_a_training_whose_run_is_not_known_is_failed_by_any_run_of_its_attempt(line: psycopg.Connection):
    batch_id = claimed(line)
    advance_batch(line, batch_id, "training")
    assert "is failed" in record_failure(line, batch_id, run_id="run-2", run_key=None, error="out of memory")


def test_a_failed_batch_is_not_tried_again_while_a_run_of_it_lives(line: psycopg.Connection):
    batch_id = claimed(line)
    record_failure(line, batch_id, run_id="run-2", run_key=None, error="the run was cancelled")
    before = get_batch(line, batch_id)
    found = looked(line, Runs("run-1", frozenset({"run-2"})))
    assert (found.batch, found.run_key) == (None, None)
    assert found.reason == f"{batch_id} is failed and is in run run-1; it is tried again once that has ended"
    assert get_batch(line, batch_id) == before
    assert looked(line, ended("run-1", "run-2")).run_key == f"{batch_id}:2"


def test_a_failure_after_the_training_takes_nothing_back(line: psycopg.Connection):
    batch_id = claimed(line)
    for state in ("training", "trained"):
        advance_batch(line, batch_id, state)
    said = record_failure(line, batch_id, run_id="r2", run_key=f"{batch_id}:1:after-1", error="no gate")
    assert said == f"{batch_id} stays trained: run r2 failed with no gate"
    assert get_batch(line, batch_id).state == "trained"


def test_stale_episodes_count_towards_the_threshold_as_far_as_they_are_wanted(line: psycopg.Connection, tmp_path: Path):
    waiting(line, 4)
    evaluated(line, a_candidate(line, tmp_path, 1), promote=True)
    promote(line, LINE, 1)
    terms = {"model_line": LINE, "minimum": 4, "runs_of": lambda _: Runs(None, frozenset())}
    assert look(line, **terms).reason == "0 of 4 fresh episodes"
    taken = look(line, **terms, most_stale=1)
    assert taken.batch is not None
    assert (taken.batch.base_step, taken.batch.episodes) == (1, 4)


def test_forcing_overrides_the_threshold_and_says_so(line: psycopg.Connection, caplog: pytest.LogCaptureFixture):
    with pytest.raises(LedgerConflict, match="no fresh episode"):
        claim(line, model_line=LINE, minimum=1000, forced_by="a test")
    waiting(line, 6)
    with caplog.at_level(logging.WARNING):
        found = claim(line, model_line=LINE, minimum=1000, forced_by="a test")
    assert found.batch is not None
    assert (found.batch.episodes, found.batch.forced_by) == (6, "a test")
    assert "the threshold of 1000 is overridden by a test: 6 fresh episodes" in caplog.text


def test_runs_are_asked_for_once_and_only_of_the_batch_in_flight(line: psycopg.Connection):
    asked: list[str] = []

    def runs_of(batch_id: str) -> Runs:
        asked.append(batch_id)
        return NO_RUNS

    batch_id = claimed(line)
    asked.clear()
    looked(line, runs_of)
    assert asked == [batch_id]
