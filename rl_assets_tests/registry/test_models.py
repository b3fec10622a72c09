from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from rl_assets.errors import LedgerConflict, MissingCheckpoint, RlAssetsError
from rl_assets.registry.by_hand import rollback_by_hand
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.registry.models import (
    champion_step,
    get_latest_rl_model,
    lineage,
    list_models,
    promote,
    protected_steps,
    register_base,
    register_candidate,
    reject,
    rollback,
)
from rl_assets.store.database import connect
from rl_assets_tests.registry.made import (
    LINE,
    a_base,
    a_batch,
    a_candidate,
    a_checkpoint,
    a_result,
    evaluated,
)


def babylon(conn: psycopg.Connection) -> dict[str, dict]:
    """Babylon's rows by version."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return {row["version"]: row for row in cursor.execute("SELECT * FROM trained_models ORDER BY version")}


def live_for_babylon(conn: psycopg.Connection) -> str | None:
    """The version that Babylon's app would play with."""
    row = conn.execute(
        """SELECT version FROM trained_models WHERE status IN ('ready', 'deployed') ORDER BY "createdAt" DESC LIMIT 1"""
    ).fetchone()
    return None if row is None else row[0]


def states(conn: psycopg.Connection) -> dict[int, str]:
    return {model.step: model.state for model in list_models(conn, LINE)}


def promoted(conn: psycopg.Connection, root: Path, step: int) -> None:
    evaluated(conn, a_candidate(conn, root, step), promote=True)
    promote(conn, LINE, step)


def test_a_line_without_a_model_says_how_to_get_one(conn: psycopg.Connection):
    assert champion_step(conn, LINE) is None
    assert list_models(conn, LINE) == []
    with pytest.raises(MissingCheckpoint, match=f"{LINE} has no model yet; materialize base_policy"):
        get_latest_rl_model(conn, LINE)
    with pytest.raises(LedgerConflict, match="has no champion yet"):
        rollback(conn, LINE, "no reason")


def test_the_base_policy_is_champion_until_a_candidate_is_better(conn: psycopg.Connection, tmp_path: Path):
    base = a_base(conn, tmp_path)
    live = get_latest_rl_model(conn, LINE)
    assert (live.step, live.version, live.checkpoint_path, live.digest) == (
        0,
        "v1.0.0",
        base.checkpoint_path,
        checkpoint_digest(base.checkpoint_path),
    )
    # No gate has seen it, so an app of Babylon that has models of its own is to stay with them.
    assert babylon(conn) == {}


def test_registering_again_changes_nothing(conn: psycopg.Connection, tmp_path: Path):
    base = a_base(conn, tmp_path)
    again = register_base(conn, LINE, base.checkpoint_path, base.digest, metrics={})
    assert again == base
    candidate = a_candidate(conn, tmp_path, 1)
    before = babylon(conn)
    assert candidate.batch_id is not None
    assert isinstance(candidate.checkpoint_path, Path)
    result = a_result(candidate.batch_id, candidate.checkpoint_path, 0, 1)
    assert register_candidate(conn, result) == candidate
    assert babylon(conn) == before
    promoted_rows = conn.execute("SELECT count(*) FROM rl_assets.champion_history").fetchone()
    assert promoted_rows == (1,)


def test_a_base_that_was_altered_keeps_the_registered_digest(conn: psycopg.Connection, tmp_path: Path):
    base = a_base(conn, tmp_path)
    assert register_base(conn, LINE, base.checkpoint_path, "0" * 64, metrics={}).digest == base.digest


def test_a_moved_data_directory_is_followed_where_the_files_are_the_same(conn: psycopg.Connection, tmp_path: Path):
    base, candidate = a_base(conn, tmp_path), a_candidate(conn, tmp_path, 1)
    (tmp_path / LINE).rename(tmp_path / "moved")
    register_base(conn, LINE, tmp_path / "moved" / "0000", base.digest, metrics={})
    assert get_latest_rl_model(conn, LINE).checkpoint_path == tmp_path / "moved" / "0000"
    assert candidate.batch_id is not None
    register_candidate(conn, a_result(candidate.batch_id, tmp_path / "moved" / "0001", 0, 1))
    assert babylon(conn)["v1.0.1"]["storagePath"] == str(tmp_path / "moved" / "0001")


def test_a_candidate_is_there_for_babylon_but_not_live(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    candidate = a_candidate(conn, tmp_path, 1)
    row = babylon(conn)["v1.0.1"]
    assert (row["modelId"], row["status"], row["trainingBatch"]) == (f"{LINE}-v1.0.1", "training", candidate.batch_id)
    assert row["storagePath"] == str(candidate.checkpoint_path)
    assert row["deployedAt"] is None
    assert row["updatedAt"] >= row["createdAt"]
    assert live_for_babylon(conn) is None
    assert champion_step(conn, LINE) == 0


def test_a_version_follows_the_highest_that_babylon_has(conn: psycopg.Connection, tmp_path: Path):
    conn.execute(
        """INSERT INTO trained_models ("id", "modelId", "version", "baseModel", "storagePath", "status", "updatedAt")
           VALUES ('1', 'babylon-agent-v2.3.99', 'v2.3.99', 'Qwen', 'wandb', 'ready', now()),
                  ('2', 'babylon-agent-v2.3.9', 'v2.3.9', 'Qwen', 'wandb', 'ready', now()),
                  ('3', 'babylon-agent-latest', 'latest', 'Qwen', 'wandb', 'archived', now())"""
    )
    a_base(conn, tmp_path)
    assert a_candidate(conn, tmp_path, 1).version == "v2.3.101"
    assert live_for_babylon(conn) in ("v2.3.99", "v2.3.9")


def test_a_batch_and_a_step_make_one_model(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    candidate = a_candidate(conn, tmp_path, 1)
    assert candidate.batch_id is not None
    other = a_checkpoint(tmp_path / "other", 2)
    with pytest.raises(LedgerConflict, match="cannot be step 2 of babylon-agent: it is step 1"):
        register_candidate(conn, a_result(candidate.batch_id, other, 0, 2))
    with pytest.raises(LedgerConflict, match="cannot be step 1 of babylon-agent: that is a model of"):
        register_candidate(conn, a_result(a_batch(conn, "other", 0), other, 0, 1))
    with pytest.raises(LedgerConflict, match="step 5 of babylon-agent is not registered"):
        register_candidate(conn, a_result(a_batch(conn, "orphan", 5), other, 5, 6))
    assert states(conn) == {0: "champion", 1: "candidate"}


def test_promotion_moves_pointer_history_and_babylon_together(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    candidate = a_candidate(conn, tmp_path, 1)
    before = babylon(conn)["v1.0.1"]
    decision = evaluated(conn, candidate, promote=True)
    change = promote(conn, LINE, 1)
    assert str(change) == "step 1, version v1.0.1 (before: step 0, version v1.0.0)"
    assert get_latest_rl_model(conn, LINE).step == 1
    assert states(conn) == {0: "retired", 1: "champion"}
    row = babylon(conn)["v1.0.1"]
    assert row["status"] == "deployed"
    assert row["deployedAt"] >= before["updatedAt"]
    assert row["updatedAt"] >= before["updatedAt"]
    assert row["createdAt"] == before["createdAt"]
    assert row["benchmarkScore"] == decision.candidate.expected_pnl
    assert row["evalMetrics"]["promote"] is True
    assert live_for_babylon(conn) == "v1.0.1"
    history = conn.execute("SELECT step, previous_step, reason FROM rl_assets.champion_history ORDER BY id").fetchall()
    assert history[1:] == [(1, 0, decision.reason)]


def test_promoting_the_champion_again_does_nothing(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    before = babylon(conn)
    assert promote(conn, LINE, 1).before.step == 0
    assert babylon(conn) == before
    assert conn.execute("SELECT count(*) FROM rl_assets.champion_history").fetchone() == (2,)


@pytest.mark.parametrize("decided", [None, False, "against another champion"])
def test_nothing_is_promoted_without_the_gate(conn: psycopg.Connection, tmp_path: Path, decided: object):
    a_base(conn, tmp_path)
    candidate = a_candidate(conn, tmp_path, 1)
    if decided is False:
        evaluated(conn, candidate, promote=False)
    elif decided is not None:
        evaluated(conn, candidate, promote=True)
        promoted(conn, tmp_path, 2)
    champion = champion_step(conn, LINE)
    with pytest.raises(LedgerConflict, match="step 1 of babylon-agent cannot be promoted"):
        promote(conn, LINE, 1)
    assert champion_step(conn, LINE) == champion
    assert states(conn)[1] == "candidate"
    assert babylon(conn)["v1.0.1"]["status"] == "training"


def test_the_newest_decision_counts(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    candidate = a_candidate(conn, tmp_path, 1)
    evaluated(conn, candidate, promote=True)
    evaluated(conn, candidate, promote=False)
    with pytest.raises(LedgerConflict, match="cannot be promoted, for the gate decided: rejected"):
        promote(conn, LINE, 1)


def test_a_rejected_candidate_is_archived_and_stays_so(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    candidate = a_candidate(conn, tmp_path, 1)
    with pytest.raises(LedgerConflict, match="the gate has not compared it"):
        reject(conn, LINE, 1)
    evaluated(conn, candidate, promote=False)
    assert reject(conn, LINE, 1) == reject(conn, LINE, 1)
    row = babylon(conn)["v1.0.1"]
    assert row["status"] == "archived"
    assert row["archivedAt"] is not None
    evaluated(conn, candidate, promote=True)
    with pytest.raises(LedgerConflict, match="is rejected and cannot be promoted"):
        promote(conn, LINE, 1)
    assert champion_step(conn, LINE) == 0


def test_the_champion_cannot_be_rejected(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    with pytest.raises(LedgerConflict, match="step 1 of babylon-agent is champion and cannot be rejected"):
        reject(conn, LINE, 1)


def test_rollback_goes_back_one_champion_at_a_time(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    promoted(conn, tmp_path, 2)
    change = rollback(conn, LINE, "agents lose money")
    assert str(change) == "step 1, version v1.0.1 (before: step 2, version v1.0.2)"
    assert get_latest_rl_model(conn, LINE).step == 1
    assert states(conn) == {0: "retired", 1: "champion", 2: "rejected"}
    rows = babylon(conn)
    assert {version: row["status"] for version, row in rows.items()} == {"v1.0.1": "deployed", "v1.0.2": "archived"}
    assert rows["v1.0.2"]["archivedAt"] is not None
    assert live_for_babylon(conn) == "v1.0.1"

    assert rollback(conn, LINE, "still").model.step == 0
    assert live_for_babylon(conn) is None
    with pytest.raises(LedgerConflict, match="has no champion before step 0; there is nothing to go back to"):
        rollback(conn, LINE, "once more")
    reasons = conn.execute("SELECT step, reason FROM rl_assets.champion_history ORDER BY id").fetchall()
    assert reasons[3:] == [(1, "agents lose money"), (0, "still")]


def test_what_is_asked_for_twice_takes_back_one_champion(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    for step in (1, 2, 3):
        promoted(conn, tmp_path, step)
    assert rollback_by_hand(conn, LINE, "loses").model.step == 2
    with pytest.raises(
        LedgerConflict, match="step 3 of babylon-agent was taken back less than 10 minutes ago; to take"
    ):
        rollback_by_hand(conn, LINE, "loses")
    with pytest.raises(LedgerConflict, match="step 3 of babylon-agent is not the one to take back, which is step 2"):
        rollback_by_hand(conn, LINE, "loses", 3)
    assert champion_step(conn, LINE) == 2
    assert rollback_by_hand(conn, LINE, "loses as well", 2).model.step == 1
    assert states(conn) == {0: "retired", 1: "champion", 2: "rejected", 3: "rejected"}


def test_a_line_goes_on_after_a_rollback(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    rollback(conn, LINE, "worse than it looked")
    with pytest.raises(LedgerConflict, match="is rejected and cannot be promoted"):
        promote(conn, LINE, 1)
    promoted(conn, tmp_path, 2)
    assert [model.step for model in lineage(conn, LINE, 2)] == [2, 0]
    assert live_for_babylon(conn) == "v1.0.2"
    assert rollback(conn, LINE, "again").model.step == 0


@pytest.mark.parametrize("damage", ["altered", "added", "missing"])
def test_a_checkpoint_that_is_not_whole_is_not_made_live(conn: psycopg.Connection, tmp_path: Path, damage: str):
    def harm(path: Path) -> None:
        if damage == "altered":
            (path / "config.json").write_text("{}", encoding="utf-8")
        elif damage == "added":
            (path / "pytorch_model.bin").write_bytes(b"something else")
        else:
            (path / "config.json").unlink()
            path.rmdir()

    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    candidate = a_candidate(conn, tmp_path, 2)
    evaluated(conn, candidate, promote=True)
    assert isinstance(candidate.checkpoint_path, Path)
    harm(candidate.checkpoint_path)
    with pytest.raises(MissingCheckpoint, match=r"restore it, or (take|roll back)"):
        promote(conn, LINE, 2)
    harm(tmp_path / LINE / "0000")
    with pytest.raises(MissingCheckpoint, match="0000"):
        rollback(conn, LINE, "there is nothing whole to go back to")
    assert champion_step(conn, LINE) == 1
    assert states(conn) == {0: "retired", 1: "champion", 2: "candidate"}
    harm(tmp_path / LINE / "0001")
    with pytest.raises(MissingCheckpoint, match="0001"):
        get_latest_rl_model(conn, LINE)


def test_checkpoints_that_may_be_needed_are_protected(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    rejected = a_candidate(conn, tmp_path, 2)
    evaluated(conn, rejected, promote=False)
    reject(conn, LINE, 2)
    promoted(conn, tmp_path, 3)
    a_candidate(conn, tmp_path, 4)
    assert protected_steps(conn, LINE) == {0, 1, 3, 4}
    a_batch(conn, "flying", 2, state="training")
    assert protected_steps(conn, LINE) == {0, 1, 2, 3, 4}


def at_once(url: str, *actions: Callable[[psycopg.Connection], object]) -> list[object]:
    """Do several things at the same moment, each on its own connection; gives results and refusals."""
    barrier = threading.Barrier(len(actions))

    def work(action: Callable[[psycopg.Connection], object]) -> object:
        with connect(url) as conn:
            barrier.wait()
            try:
                return action(conn)
            except RlAssetsError as error:
                return error

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(work, actions))


def test_of_two_candidates_promoted_at_once_one_wins(conn: psycopg.Connection, postgres_url: str, tmp_path: Path):
    a_base(conn, tmp_path)
    for step in (1, 2):
        evaluated(conn, a_candidate(conn, tmp_path, step), promote=True)
    results = at_once(postgres_url, lambda c: promote(c, LINE, 1), lambda c: promote(c, LINE, 2))
    assert sum(isinstance(result, LedgerConflict) for result in results) == 1
    assert sorted(states(conn).values()) == ["candidate", "champion", "retired"]
    assert [row["status"] for row in babylon(conn).values()].count("deployed") == 1


def test_one_candidate_promoted_many_times_at_once_is_promoted_once(
    conn: psycopg.Connection, postgres_url: str, tmp_path: Path
):
    a_base(conn, tmp_path)
    evaluated(conn, a_candidate(conn, tmp_path, 1), promote=True)
    results = at_once(postgres_url, *[lambda c: promote(c, LINE, 1)] * 6)
    assert not [result for result in results if isinstance(result, RlAssetsError)]
    assert conn.execute("SELECT count(*) FROM rl_assets.champion_history").fetchone() == (2,)


def test_rollbacks_at_once_do_not_go_back_further_than_each_has_seen(
    conn: psycopg.Connection, postgres_url: str, tmp_path: Path
):
    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    conn.execute("BEGIN")
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('rl_assets.models ' || %s, 0))", [LINE])
    with ThreadPoolExecutor(1) as pool:
        both = pool.submit(at_once, postgres_url, *[lambda c: rollback(c, LINE, "at once")] * 2)
        while waiting_for_a_lock(conn) < 2:
            pass
        conn.execute("COMMIT")
        results = both.result()
    refused = [result for result in results if isinstance(result, LedgerConflict)]
    assert len(refused) == 1
    assert "changed from step 1 to step 0 meanwhile" in str(refused[0])
    assert champion_step(conn, LINE) == 0


def waiting_for_a_lock(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
    return row[0] if row else 0


def test_registering_at_once_gives_one_row(conn: psycopg.Connection, postgres_url: str, tmp_path: Path):
    path = a_checkpoint(tmp_path, 0)
    digest = checkpoint_digest(path)
    bases = at_once(postgres_url, *[lambda c: register_base(c, LINE, path, digest, metrics={})] * 4)
    assert len(set(map(str, bases))) == 1
    result = a_result(a_batch(conn, "1", 0), a_checkpoint(tmp_path, 1), 0, 1)
    candidates = at_once(postgres_url, *[lambda c: register_candidate(c, result)] * 4)
    assert len(set(map(str, candidates))) == 1
    assert len(babylon(conn)) == 1


def test_two_lines_do_not_touch_each_other(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    promoted(conn, tmp_path, 1)
    a_base(conn, tmp_path, line="other")
    batch_id = a_batch(conn, "o", 0, line="other")
    register_candidate(conn, a_result(batch_id, a_checkpoint(tmp_path / "other", 1), 0, 1, line="other"))
    assert (champion_step(conn, LINE), champion_step(conn, "other")) == (1, 0)
    assert [model.version for model in list_models(conn, "other")] == ["v1.0.1", "v1.0.0"]
    with pytest.raises(LedgerConflict):
        rollback(conn, "other", "nothing before it")
    assert champion_step(conn, LINE) == 1


def test_a_row_of_babylon_that_somebody_deleted_is_there_again(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    evaluated(conn, a_candidate(conn, tmp_path, 1), promote=True)
    conn.execute("DELETE FROM trained_models")
    promote(conn, LINE, 1)
    assert live_for_babylon(conn) == "v1.0.1"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(actions=st.lists(st.sampled_from(["promote", "reject", "rollback", "unasked"]), min_size=1, max_size=8))
def test_whatever_is_done_one_model_is_live_and_babylon_agrees(
    conn: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory, actions: list[str]
):
    conn.execute(
        "TRUNCATE rl_assets.champion, rl_assets.champion_history, rl_assets.evaluations, rl_assets.models, "
        "rl_assets.batches, trained_models CASCADE"
    )
    root = tmp_path_factory.mktemp("line")
    a_base(conn, root)
    champions = [0]
    for step, action in enumerate(actions, start=1):
        if action == "rollback":
            if len(champions) > 1:
                rollback(conn, LINE, "a test")
                champions.pop()
            else:
                with pytest.raises(LedgerConflict):
                    rollback(conn, LINE, "a test")
        else:
            candidate = a_candidate(conn, root, step)
            if action == "unasked":
                with pytest.raises(LedgerConflict):
                    promote(conn, LINE, step)
            elif action == "promote":
                evaluated(conn, candidate, promote=True)
                promote(conn, LINE, step)
                champions.append(step)
            else:
                evaluated(conn, candidate, promote=False)
                reject(conn, LINE, step)
        models = {model.step: model for model in list_models(conn, LINE)}
        assert get_latest_rl_model(conn, LINE).step == champions[-1]
        assert [m.step for m in models.values() if m.state == "champion"] == [champions[-1]]
        deployed = models[champions[-1]].version if champions[-1] else None
        assert live_for_babylon(conn) == deployed
        assert set(champions[-2:]) <= protected_steps(conn, LINE)
