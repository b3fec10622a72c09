"""What a person turns down because the gate cannot: ledger, registry and Babylon's tables move together."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest

from rl_assets.assets.deployments import carry_out
from rl_assets.errors import LedgerConflict
from rl_assets.registry.by_hand import turn_down
from rl_assets.registry.models import Model, champion_step, get_latest_rl_model, promote, register_candidate
from rl_assets.registry.rollout import insert
from rl_assets.registry.rows import get_model, set_state
from rl_assets.registry.terms import Terms
from rl_assets.store.ledger import get_batch
from rl_assets_tests.registry.made import LINE, a_base, a_batch, a_checkpoint, a_result, evaluated

WHY = "its checkpoint is lost"


def trained(conn: psycopg.Connection, root: Path, state: str = "trained") -> tuple[str, Model]:
    """A batch in a state, and its candidate, on top of step 0."""
    a_base(conn, root)
    batch_id = a_batch(conn, "1", 0, state)
    return batch_id, register_candidate(conn, a_result(batch_id, a_checkpoint(root / LINE, 1), 0, 1))


def found(conn: psycopg.Connection, batch_id: str) -> tuple[object, ...]:
    """The states of a batch and its model, in ledger, registry and Babylon's table, and each move of the batch."""
    shown = conn.execute('SELECT status FROM trained_models WHERE "trainingBatch" = %s', [batch_id]).fetchall()
    moves = conn.execute("SELECT from_state, to_state, error FROM rl_assets.batch_events ORDER BY id").fetchall()
    batch = get_batch(conn, batch_id)
    return batch.state, batch.error, get_model(conn, LINE, 1).state, shown, moves


@pytest.mark.parametrize("state", ["trained", "evaluated"])
def test_a_candidate_that_is_lost_is_rejected_everywhere(conn: psycopg.Connection, tmp_path: Path, state: str):
    batch_id, candidate = trained(conn, tmp_path, state)
    if state == "evaluated":
        evaluated(conn, candidate, promote=True)
    shutil.rmtree(str(candidate.checkpoint_path))
    assert turn_down(conn, batch_id, WHY).state == "rejected"
    assert found(conn, batch_id) == ("rejected", WHY, "rejected", [("archived",)], [(state, "rejected", WHY)])
    assert get_latest_rl_model(conn, LINE).step == 0
    assert carry_out(conn, get_batch(conn, batch_id), "run-1") == f"{batch_id} is rejected already: {WHY}"


def test_a_batch_whose_candidate_was_taken_back_is_rejected(conn: psycopg.Connection, tmp_path: Path):
    batch_id, candidate = trained(conn, tmp_path)
    set_state(conn, candidate, "rejected")
    turn_down(conn, batch_id, WHY)
    assert get_batch(conn, batch_id).state == "rejected"


@pytest.mark.parametrize("state", ["reserved", "training", "unknown", "failed", "promoted", "rejected", "freed"])
def test_a_batch_of_another_state_is_refused(conn: psycopg.Connection, tmp_path: Path, state: str):
    batch_id, _ = trained(conn, tmp_path, state)
    before = found(conn, batch_id)
    with pytest.raises(LedgerConflict, match=f"{batch_id} is {state}, and only what is trained or evaluated"):
        turn_down(conn, batch_id, WHY)
    assert found(conn, batch_id) == before


def test_a_candidate_that_is_on_its_way_is_refused(conn: psycopg.Connection, tmp_path: Path):
    batch_id, _ = trained(conn, tmp_path, "evaluated")
    insert(conn, line=LINE, step=1, champion_step=0, percentage=10, terms=Terms.from_env(), reason="it is better")
    before = found(conn, batch_id)
    with pytest.raises(LedgerConflict, match="is with 10 % of the agents; take it back with `rl-assets models rollb"):
        turn_down(conn, batch_id, WHY)
    assert found(conn, batch_id) == before


def test_a_model_that_is_live_is_refused(conn: psycopg.Connection, tmp_path: Path):
    batch_id, candidate = trained(conn, tmp_path, "evaluated")
    evaluated(conn, candidate, promote=True)
    promote(conn, LINE, 1)
    before = found(conn, batch_id)
    with pytest.raises(LedgerConflict, match="step 1 of babylon-agent is champion; take a champion back"):
        turn_down(conn, batch_id, WHY)
    assert (found(conn, batch_id), champion_step(conn, LINE)) == (before, 1)


def test_a_rejection_that_cannot_be_entered_whole_is_not_entered_at_all(conn: psycopg.Connection, tmp_path: Path):
    batch_id, _ = trained(conn, tmp_path)
    before = found(conn, batch_id)
    conn.execute("ALTER TABLE rl_assets.batch_events ADD CONSTRAINT closed CHECK (false)")
    with pytest.raises(psycopg.errors.CheckViolation):
        turn_down(conn, batch_id, WHY)
    assert found(conn, batch_id) == before
