"""A rollout with checkpoints that play: the harness records both models, and their episodes decide."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from rl_assets import harness
from rl_assets.assets.deployments import carry_out
from rl_assets.registry.health import probe
from rl_assets.registry.models import champion_step, get_latest_rl_model, get_model, list_models, playable
from rl_assets.registry.rollout import events_of, last_rollout
from rl_assets.registry.stages import advance, begin, look
from rl_assets.registry.terms import Terms
from rl_assets.settings import Settings
from rl_assets.store.ledger import Batch, advance_batch, get_batch
from rl_assets_tests.registry.made import LINE, evaluated


def test_the_harness_plays_both_models_and_their_episodes_take_the_candidate_on(
    conn: psycopg.Connection, trained: Path, batch: Batch
):
    health = probe(playable(get_model(conn, LINE, 1)), 1)
    assert (health.fault, health.answers) == (None, 12)
    evaluated(conn, get_model(conn, LINE, 1), promote=True)
    terms = Terms(stages=(50, 100), harm_dollars=240.0, harm_errors=0.9, least_pairs=8, days=1)
    assert begin(conn, LINE, 1, terms, probe).live

    champion = get_latest_rl_model(conn, LINE)
    plan = harness.Plan(snapshots=4, siblings=8, seed=0, agents=("model",), gate_snapshots=0)
    played = harness.run(conn, Settings(trained), plan, champion, lambda *_: None)
    assert {row.policy: row.episodes for row in played.rows} == {f"{LINE}@0": 16, f"{LINE}@1": 16}
    verdict = look(conn, LINE)
    assert verdict is not None
    assert (verdict.figures["pairs"], verdict.figures["pnl_pairs"]) == (16, 16)
    assert verdict.decision == "advance", verdict.reason

    assert "step 1 is with 100 % of the agents" in str(advance(conn, LINE, probe))
    assert champion_step(conn, LINE) == 1
    assert {model.state for model in list_models(conn, LINE)} == {"champion", "retired"}
    rollout = last_rollout(conn, LINE)
    assert rollout is not None
    assert [event.decision for event in events_of(conn, rollout.id)] == ["started", "promoted"]
    assert "12 answers, 100 in a hundred legal" in events_of(conn, rollout.id)[0].reason


def test_a_batch_that_passed_the_gate_begins_in_the_first_stage(
    conn: psycopg.Connection, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ROLLOUT_STAGES", "5,100")
    evaluated(conn, get_model(conn, LINE, 1), promote=True)
    found = advance_batch(conn, batch.id, "evaluated")
    assert "step 1 is with 5 % of the agents" in carry_out(conn, found, "a run")
    assert (champion_step(conn, LINE), get_batch(conn, batch.id).state) == (0, "promoted")
    # The same once more, as after a crash.
    assert "is promoted already" in carry_out(conn, get_batch(conn, batch.id), "a run")
    rollout = last_rollout(conn, LINE)
    assert rollout is not None
    assert (rollout.state, rollout.percentage) == ("staged", 5)
