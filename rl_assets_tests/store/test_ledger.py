"""The ledger on a real Postgres: who waits, who is claimed, and what becomes of a batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest

from rl_assets.episodes import Policy
from rl_assets.errors import DatabaseError, LedgerConflict
from rl_assets.grouping import group_id
from rl_assets.judging import JudgementSet, OutcomeJudge, unjudged
from rl_assets.store import ledger
from rl_assets.store.database import connect
from rl_assets.store.episodes import read_episodes
from rl_assets.store.ledger import (
    NEXT,
    Batch,
    advance_batch,
    batches,
    claim_batch,
    claimed_ids,
    get_batch,
    readiness,
    record_judgements,
)
from rl_assets.store.locks import Lock
from rl_assets.training.manifest import Manifest
from rl_assets_tests.store.made import WINDOW
from rl_assets_tests.store.waiting import LINE, PATHS, Stricter, brought_to, ids_of, judged, news, recorded, waiting

LATER = "2026-11-23T09:00"


def claim(conn: psycopg.Connection, minimum: int = 2, *, line: str = LINE, forced_by: str | None = None) -> Batch:
    batch = claim_batch(conn, model_line=line, base_step=0, minimum=minimum, forced_by=forced_by)
    assert batch is not None
    return batch


def one(conn: psycopg.Connection, query: str, *parameters: object) -> tuple:
    row = conn.execute(query, parameters or None).fetchone()  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert row is not None
    return row


def test_judged_episodes_wait_until_a_batch_claims_them_in_whole_groups(conn: psycopg.Connection):
    episodes = recorded(conn, 12, siblings=4)
    assert record_judgements(conn, judged(episodes, group_size=4)) == 12
    batch = claim(conn, 5)
    manifest = Manifest.from_json(batch.manifest)
    assert (batch.state, batch.attempt, batch.episodes, batch.groups) == ("reserved", 1, 8, 2)
    assert sorted(manifest.trajectory_ids) == claimed_ids(conn, batch.id)
    assert {len(group.trajectory_ids) for group in manifest.groups} == {4}
    assert manifest.windows == (WINDOW,)
    assert manifest.batch_id == batch.id
    scores = {v.trajectory_id: v.score for r in judged(episodes, group_size=4).rankings for v in r.verdicts}
    assert {i: r for g in manifest.groups for i, r in zip(g.trajectory_ids, g.rewards, strict=True)} == {
        identity: scores[identity] for identity in manifest.trajectory_ids
    }
    ready = readiness(conn, LINE, 0)
    assert (ready.fresh, ready.trainable_groups, ready.claimed, ready.in_flight_batch) == (4, 1, 8, batch.id)


def test_a_second_claim_takes_only_what_is_new(conn: psycopg.Connection):
    waiting(conn, 6)
    first = brought_to(conn, claim(conn, 6), "rejected")
    assert claim_batch(conn, model_line=LINE, base_step=0, minimum=1, forced_by=None) is None
    new = waiting(conn, 4, window=LATER)
    second = claim(conn, 4)
    assert ids_of(second) == {episode.trajectory_id for episode in new}
    assert not ids_of(first) & ids_of(second)


def test_too_few_are_not_claimed_unless_somebody_forces_it(conn: psycopg.Connection):
    waiting(conn, 6)
    assert claim_batch(conn, model_line=LINE, base_step=0, minimum=7, forced_by=None) is None
    assert readiness(conn, LINE, 0).fresh == 6
    forced = claim(conn, 7, forced_by="a test")
    assert (forced.episodes, forced.forced_by) == (6, "a test")
    with pytest.raises(LedgerConflict, match=f"{forced.id} of {LINE} is reserved"):
        claim(conn, 7, forced_by="a test")
    brought_to(conn, forced, "promoted")
    with pytest.raises(LedgerConflict, match="no fresh episode"):
        claim(conn, 7, forced_by="a test")


def test_only_episodes_of_the_step_that_is_trained_on_are_claimed(conn: psycopg.Connection):
    episodes = [
        *recorded(conn, 2, policy=Policy(LINE, 0)),
        *recorded(conn, 4, policy=Policy(LINE, 1)),
        *recorded(conn, 2, policy=Policy("another", 1)),
        *recorded(conn, 2, policy=Policy("hold")),
    ]
    record_judgements(conn, judged(episodes))
    assert [readiness(conn, LINE, step).fresh for step in (0, 1, 2, None)] == [2, 4, 0, 0]
    batch = claim_batch(conn, model_line=LINE, base_step=1, minimum=1, forced_by=None)
    assert batch is not None
    assert {episode.policy.step for episode in read_episodes(conn, claimed_ids(conn, batch.id)).values()} == {1}


@pytest.mark.parametrize(("most_stale", "played"), [(0, {3}), (1, {2, 3}), (2, {1, 2, 3}), (9, {0, 1, 2, 3})])
def test_episodes_of_steps_shortly_before_are_claimed_where_they_may_be_stale(
    conn: psycopg.Connection, most_stale: int, played: set[int]
):
    record_judgements(conn, judged([e for step in range(5) for e in recorded(conn, 2, policy=Policy(LINE, step))]))
    assert readiness(conn, LINE, 3, most_stale).fresh == 2 * len(played)
    batch = claim_batch(
        conn, model_line=LINE, base_step=3, minimum=2 * len(played), forced_by=None, most_stale=most_stale
    )
    assert batch is not None and batch.episodes == 2 * len(played)
    assert {e.policy.step for e in read_episodes(conn, claimed_ids(conn, batch.id)).values()} == played


def test_of_several_steps_the_oldest_window_is_claimed_first(conn: psycopg.Connection):
    later = WINDOW.replace("T08", "T09")
    assert later > WINDOW
    for window, step in ((WINDOW, 1), (later, 0)):
        record_judgements(conn, judged(recorded(conn, 2, window=window, policy=Policy(LINE, step)), window=window))
    batch = claim_batch(conn, model_line=LINE, base_step=1, minimum=2, forced_by=None, most_stale=1)
    assert batch is not None
    assert Manifest.from_json(batch.manifest).windows == (WINDOW,)


def test_recording_a_judgement_again_changes_nothing(conn: psycopg.Connection):
    episodes = recorded(conn, 4)
    assert record_judgements(conn, judged(episodes)) == 4
    assert record_judgements(conn, judged(episodes)) == 0
    assert readiness(conn, LINE, 0).fresh == 4
    assert one(conn, "SELECT count(*) FROM rl_assets.judgement_sets") == (1,)
    assert one(conn, "SELECT count(*) FROM reward_judgments") == (4,)


def test_a_newer_judgement_replaces_what_is_not_claimed_and_leaves_the_rest(conn: psycopg.Connection):
    episodes = recorded(conn, 8)
    record_judgements(conn, judged(episodes))
    before = claim(conn, 4)
    richer = [replace(episode, expected_pnl=(episode.expected_pnl or 0) * 3) for episode in episodes]
    newest = judged(richer, judge=Stricter())
    assert record_judgements(conn, newest) == 0
    assert get_batch(conn, before.id) == before
    brought_to(conn, before, "rejected")
    after = claim(conn, 4)
    assert Manifest.from_json(after.manifest).judgement_sets == (newest.id,)
    assert ids_of(after) == {e.trajectory_id for e in episodes} - ids_of(before)


def test_freed_episodes_come_back_as_the_newest_judgement_sees_them(conn: psycopg.Connection):
    episodes = recorded(conn, 8)
    record_judgements(conn, judged(episodes))
    batch = claim(conn, 4)
    newest = judged(episodes, judge=Stricter())
    record_judgements(conn, newest)
    brought_to(conn, batch, "freed")
    assert claimed_ids(conn, batch.id) == []
    assert readiness(conn, LINE, 0).fresh == 8
    again = claim(conn, 8)
    assert Manifest.from_json(again.manifest).judgement_sets == (newest.id,)


def test_the_same_episodes_claimed_again_are_another_batch_and_names_repeat_on_another_machine(
    conn: psycopg.Connection,
):
    waiting(conn, 4)
    names = []
    for _ in range(3):
        batch = claim(conn, 4)
        names.append(batch.id)
        brought_to(conn, batch, "freed")
    assert len(set(names)) == 3
    assert all(name.startswith("batch-") and len(name) == len("batch-") + 16 for name in names)
    conn.execute("DELETE FROM rl_assets.offers")
    conn.execute("TRUNCATE rl_assets.batches, rl_assets.groups CASCADE")
    episodes = read_episodes(conn, [i for (i,) in conn.execute('SELECT "trajectoryId" FROM trajectories').fetchall()])
    record_judgements(conn, judged(list(episodes.values())))
    assert claim(conn, 4).id == names[0]


def test_of_a_group_that_grew_after_a_claim_only_the_new_members_wait(conn: psycopg.Connection):
    early = recorded(conn, 4, siblings=4)
    record_judgements(conn, judged(early, group_size=8))
    batch = claim(conn, 4)
    late = [replace(e, expected_pnl=100.0 + n) for n, e in enumerate(recorded(conn, 3, siblings=4))]
    whole = judged([*early, *late], group_size=8)
    assert record_judgements(conn, whole) == 3
    brought_to(conn, batch, "rejected")
    (group,) = Manifest.from_json(claim(conn, 3).manifest).groups
    new = {episode.trajectory_id for episode in late}
    assert set(group.trajectory_ids) == new
    assert group.group_id == group_id(whole.groups[0].kind, whole.groups[0].key, new)


def test_what_is_gone_or_was_used_by_somebody_else_does_not_wait(conn: psycopg.Connection):
    episodes = recorded(conn, 8)
    conn.execute('DELETE FROM trajectories WHERE "trajectoryId" = %s', [episodes[0].trajectory_id])
    conn.execute(
        'UPDATE trajectories SET "usedInTraining" = true WHERE "trajectoryId" = %s', [episodes[2].trajectory_id]
    )
    assert record_judgements(conn, judged(episodes)) == 4


def test_what_is_gone_or_was_used_since_it_was_offered_is_not_claimed(conn: psycopg.Connection):
    episodes = waiting(conn, 12)
    conn.execute('DELETE FROM trajectories WHERE "trajectoryId" = %s', [episodes[0].trajectory_id])
    conn.execute(
        'UPDATE trajectories SET "usedInTraining" = true WHERE "trajectoryId" = %s', [episodes[2].trajectory_id]
    )
    assert claim_batch(conn, model_line=LINE, base_step=0, minimum=12, forced_by=None) is None
    assert readiness(conn, LINE, 0).fresh == 8
    batch = claim_batch(conn, model_line=LINE, base_step=0, minimum=8, forced_by=None)
    assert batch is not None
    assert ids_of(batch) == {episode.trajectory_id for episode in episodes[4:]}


def test_groups_without_a_verdict_wait_for_a_judge_and_keep_an_earlier_one(conn: psycopg.Connection):
    whole = judged(recorded(conn, 6))
    groups = whole.groups

    def partly(judged_groups: Sequence[int]) -> JudgementSet:
        rankings = [
            whole.rankings[n] if n in judged_groups else unjudged(group, "judge_failed")
            for n, group in enumerate(groups)
        ]
        return JudgementSet.of(WINDOW, OutcomeJudge(), rankings, groups)

    assert record_judgements(conn, partly([0])) == 2
    assert readiness(conn, LINE, 0).waiting_groups == 2
    assert record_judgements(conn, partly([1])) == 2
    ready = readiness(conn, LINE, 0)
    assert (ready.waiting_groups, ready.fresh) == (1, 4)


def test_a_group_that_was_held_back_while_its_hour_was_open_waits_for_a_judge_that_fails_later(
    conn: psycopg.Connection,
):
    whole = judged(recorded(conn, 2))
    held = [replace(group, trainable=False, reason="window_open") for group in whole.groups]
    open_ = JudgementSet.of(WINDOW, OutcomeJudge(), [unjudged(group, "window_open") for group in held], held)
    record_judgements(conn, open_)
    assert readiness(conn, LINE, 0).waiting_groups == 0
    failed = [unjudged(group, "judge_failed") for group in whole.groups]
    record_judgements(conn, JudgementSet.of(WINDOW, OutcomeJudge(), failed, whole.groups))
    assert readiness(conn, LINE, 0).waiting_groups == len(whole.groups) == 1
    record_judgements(conn, whole)
    assert readiness(conn, LINE, 0).waiting_groups == 0


def test_what_no_training_can_use_is_judged_but_does_not_wait(conn: psycopg.Connection):
    episodes = recorded(conn, 5)
    equal = [replace(episode, expected_pnl=1.0) for episode in episodes]
    assert record_judgements(conn, judged(equal)) == 0
    ready = readiness(conn, LINE, 0)
    assert (ready.fresh, ready.trainable_groups, ready.waiting_groups) == (0, 0, 0)
    assert one(conn, "SELECT count(*) FROM reward_judgments") == (5,)


def test_babylon_sees_scores_and_takes_them_for_no_news(conn: psycopg.Connection):
    episodes = recorded(conn, 4)
    assert [state.rows for state in news(conn)] == [4]
    judgement = judged(episodes)
    record_judgements(conn, judgement)
    assert news(conn) == []
    for ranking in judgement.rankings:
        for verdict in ranking.verdicts:
            assert one(
                conn,
                """SELECT "judgeModel", "judgeVersion", "overallScore", "rank", "normalizedScore", "groupId",
                          "reasoning", "aiJudgeReward", "aiJudgeReasoning", t."judgedAt" = j."judgedAt"
                   FROM reward_judgments AS j JOIN trajectories AS t USING ("trajectoryId")
                   WHERE "trajectoryId" = %s""",
                verdict.trajectory_id,
            ) == (
                *("outcome", OutcomeJudge.version, verdict.score, verdict.rank, 2.0 - verdict.rank, ranking.group_id),
                *(verdict.explanation, verdict.score, verdict.explanation, True),
            )
    components, criteria = one(conn, 'SELECT "componentScoresJson", "criteriaJson" FROM reward_judgments LIMIT 1')
    assert set(json.loads(components)) == {"pnl", "drawdown", "breaches"}
    assert json.loads(criteria) == OutcomeJudge().criteria
    record_judgements(conn, judged(episodes, judge=Stricter()))
    assert one(conn, 'SELECT count(*), min("judgeVersion") FROM reward_judgments') == (4, "2")
    assert news(conn) == []


def test_training_marks_exactly_the_episodes_of_the_batch_as_used(conn: psycopg.Connection):
    waiting(conn, 8)
    batch = brought_to(conn, claim(conn, 4), "training")
    result = {"step": 1, "metrics": {"loss": 0.5}}
    trained = advance_batch(conn, batch.id, "trained", run_id="run", result=result)
    assert (trained.state, trained.run_id, trained.result) == ("trained", "run", result)
    used = conn.execute(
        'SELECT "trajectoryId" FROM trajectories WHERE "usedInTraining" AND "trainedInBatch" = %s', [batch.id]
    ).fetchall()
    assert sorted(identity for (identity,) in used) == claimed_ids(conn, batch.id)
    assert one(conn, 'SELECT count(*) FROM trajectories WHERE "usedInTraining"') == (4,)
    status, window, ids, rewards = one(
        conn, 'SELECT "status", "scenarioId", "trajectoryIds", "rewardsJson" FROM training_batches'
    )
    manifest = Manifest.from_json(batch.manifest)
    assert (status, window, tuple(json.loads(ids))) == ("completed", WINDOW, manifest.trajectory_ids)
    assert json.loads(rewards) == [reward for group in manifest.groups for reward in group.rewards]
    assert news(conn) == []


def test_a_training_that_cannot_be_entered_whole_is_not_entered_at_all(conn: psycopg.Connection):
    waiting(conn, 4)
    batch = brought_to(conn, claim(conn, 4), "training")
    conn.execute('ALTER TABLE training_batches ADD CONSTRAINT "closed" CHECK (false)')
    with pytest.raises(psycopg.errors.CheckViolation):
        advance_batch(conn, batch.id, "trained")
    assert get_batch(conn, batch.id) == batch
    assert one(conn, 'SELECT count(*) FROM trajectories WHERE "usedInTraining"') == (0,)
    conn.execute('ALTER TABLE training_batches DROP CONSTRAINT "closed"')
    assert advance_batch(conn, batch.id, "trained").state == "trained"


def test_a_judgement_that_babylons_tables_do_not_take_stays_news_until_it_is_recorded_again(conn: psycopg.Connection):
    judgement = judged(recorded(conn, 4))
    conn.execute('ALTER TABLE reward_judgments ADD CONSTRAINT "closed" CHECK (false)')
    with pytest.raises(psycopg.errors.CheckViolation):
        record_judgements(conn, judgement)
    assert [state.rows for state in news(conn)] == [4]
    assert one(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == (0,)
    conn.execute('ALTER TABLE reward_judgments DROP CONSTRAINT "closed"')
    assert record_judgements(conn, judgement) == 0
    assert (news(conn), readiness(conn, LINE, 0).fresh) == ([], 4)
    assert one(conn, "SELECT count(*) FROM reward_judgments") == (4,)


def test_a_claim_waits_for_no_scores_on_their_way_to_babylons_tables(conn: psycopg.Connection, postgres_url: str):
    episodes = recorded(conn, 4)
    with connect(postgres_url) as babylon, connect(postgres_url) as judging, ThreadPoolExecutor(1) as pool:
        with babylon.transaction():
            babylon.execute("SELECT 1 FROM trajectories FOR UPDATE")
            recording = pool.submit(record_judgements, judging, judged(episodes))
            while readiness(conn, LINE, 0).fresh < 4:
                assert not recording.done()
            assert set(claimed_ids(conn, claim(conn, 4).id)) == {episode.trajectory_id for episode in episodes}
            assert not recording.done()
        assert recording.result() == 4
    assert one(conn, "SELECT count(*) FROM reward_judgments") == (4,)


def test_a_batch_goes_only_where_it_may(conn: psycopg.Connection):
    record_judgements(conn, judged([e for state in PATHS for e in recorded(conn, 2, policy=Policy(state, 0))]))
    for state in PATHS:
        batch = brought_to(conn, claim(conn, line=state), state)
        assert batch.state == state
        assert advance_batch(conn, batch.id, state) == batch
        for target in sorted(NEXT.keys() - {state} - set(NEXT[state])):
            with pytest.raises(LedgerConflict, match=f"is {state} and cannot become {target}"):
                advance_batch(conn, batch.id, target)
        assert get_batch(conn, batch.id) == batch


def test_every_change_of_state_is_written_down(conn: psycopg.Connection):
    waiting(conn, 2)
    batch = claim(conn)
    advance_batch(conn, batch.id, "training", run_id="first")
    failed = advance_batch(conn, batch.id, "failed", run_id="first", error="out of memory")
    assert failed.error == "out of memory"
    again = advance_batch(conn, batch.id, "reserved")
    assert (again.attempt, again.error, ids_of(again)) == (2, None, ids_of(batch))
    assert conn.execute(
        "SELECT from_state, to_state, attempt, run_id, error FROM rl_assets.batch_events ORDER BY id"
    ).fetchall() == [
        (None, "reserved", 1, None, None),
        ("reserved", "training", 1, "first", None),
        ("training", "failed", 1, "first", "out of memory"),
        ("failed", "reserved", 2, None, None),
    ]
    with pytest.raises(psycopg.errors.RaiseException, match="only ever added"):
        conn.execute("DELETE FROM rl_assets.batch_events")


def test_a_failed_batch_is_not_tried_again_beside_another(conn: psycopg.Connection):
    waiting(conn, 4)
    failed = brought_to(conn, claim(conn, 2), "failed")
    other = claim(conn, 2)
    assert not ids_of(failed) & ids_of(other)
    with pytest.raises(LedgerConflict, match=f"while {other.id} is reserved"):
        advance_batch(conn, failed.id, "reserved")
    brought_to(conn, other, "rejected")
    assert advance_batch(conn, failed.id, "reserved").attempt == 2


def test_a_batch_that_is_not_there_is_named(conn: psycopg.Connection):
    for ask in (get_batch, lambda c, name: advance_batch(c, name, "training")):
        with pytest.raises(LedgerConflict, match="no batch 'batch-nowhere'"):
            ask(conn, "batch-nowhere")


def test_batches_are_listed_newest_first(conn: psycopg.Connection):
    waiting(conn, 6)
    made = [brought_to(conn, claim(conn, 2), state).id for state in ("rejected", "failed", "trained")]
    assert [batch.id for batch in batches(conn, model_line=LINE)] == made[::-1]
    assert [batch.id for batch in batches(conn, model_line=LINE, limit=1)] == made[-1:]
    assert [batch.id for batch in batches(conn, model_line=LINE, states=("failed",))] == [made[1]]
    assert batches(conn, model_line="another") == []


def test_whoever_holds_the_ledger_for_too_long_is_told_of(
    conn: psycopg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    waiting(conn, 2)
    monkeypatch.setattr(ledger, "LOCK_SECONDS", 0.05)
    with connect(postgres_url) as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", [int(Lock.LEDGER)])
        with pytest.raises(DatabaseError, match="pg_stat_activity"):
            claim(conn)
    assert claim(conn).episodes == 2
