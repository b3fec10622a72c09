from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from rl_assets.agents import skill
from rl_assets.agents.replay import replay
from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput, MissingCheckpoint
from rl_assets.market import leakage
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import save_snapshot
from rl_assets.registry.checkpoints import base_path, checkpoint_digest
from rl_assets.registry.decisions import Evaluation, latest_evaluation, look_number
from rl_assets.registry.evaluate import REFERENCES, evaluate, play_of
from rl_assets.store.episode_files import read_episodes_parquet
from rl_assets.store.ledger import Batch
from rl_assets.store.snapshots import register_snapshots
from rl_assets_tests.registry.made import GATE, LINE
from rl_assets_tests.store.made import an_episode


def measured(conn: psycopg.Connection, batch: Batch, snapshots: Path, record: Path) -> tuple[Evaluation, list[Episode]]:
    return evaluate(conn, batch, snapshots, record, most_snapshots=64, siblings=2, seed=7)


def test_everybody_plays_the_gate_and_the_models_are_paired(
    conn: psycopg.Connection, batch: Batch, trained: Path, tmp_path: Path
):
    record = tmp_path / "evaluation.parquet"
    found, episodes = measured(conn, batch, trained / "snapshots", record)
    assert read_episodes_parquet(record) == episodes
    assert all(episode.is_evaluation and episode.not_trainable == "is_evaluation" for episode in episodes)
    assert conn.execute("SELECT count(*) FROM trajectories").fetchone() == (0,)
    played = {policy: [(e.snapshot_id, e.sibling) for e in episodes if e.policy == policy] for policy in policies()}
    assert len(episodes) == sum(map(len, played.values())) == len(GATE) * (2 * 2 + len(REFERENCES))
    assert played[Policy(LINE, 1)] == played[Policy(LINE, 0)]
    worlds = {snapshot.id: (snapshot, truth) for snapshot, truth in (generate("gate", seed) for seed in GATE)}
    assert replay(episodes[0], *worlds[episodes[0].snapshot_id or ""]) == []

    decision = found.decision
    assert (found.candidate_step, found.champion_step, decision.look) == (1, 0, 1)
    assert (decision.snapshots, decision.siblings, len(decision.days)) == (2, 2, 2)
    snapshots = list(worlds)
    difference = (
        play_of(episodes, Policy(LINE, 1), snapshots).expected_pnl
        - play_of(episodes, Policy(LINE, 0), snapshots).expected_pnl
    )
    assert decision.effect == pytest.approx(difference.mean())
    assert "2 market days cannot decide" in decision.reason
    assert latest_evaluation(conn, batch.id) == found


def policies() -> list[Policy]:
    return [Policy(LINE, 1), Policy(LINE, 0), *map(Policy, REFERENCES)]


def test_a_decision_stands_and_lost_episodes_are_played_again(
    conn: psycopg.Connection, batch: Batch, trained: Path, tmp_path: Path
):
    record = tmp_path / "evaluation.parquet"
    first, played = measured(conn, batch, trained / "snapshots", record)
    again, read = measured(conn, batch, trained / "snapshots", record)
    assert (again, read) == (first, played)
    record.unlink()
    once_more, replayed = measured(conn, batch, trained / "snapshots", record)
    assert once_more == first
    assert [e.content_hash for e in replayed] == [e.content_hash for e in played]
    assert conn.execute("SELECT count(*) FROM rl_assets.evaluations").fetchone() == (1,)
    assert look_number(conn, LINE, 0, 1) == 1
    assert look_number(conn, LINE, 0, 2) == 2
    assert look_number(conn, LINE, 1, 2) == 1


def test_a_checkpoint_or_a_gate_that_is_missing_is_said_and_nothing_is_recorded(
    conn: psycopg.Connection, batch: Batch, trained: Path, tmp_path: Path
):
    record = tmp_path / "evaluation.parquet"
    with pytest.raises(MalformedInput, match=r"public\.json is missing; run `rl-assets snapshots generate`"):
        measured(conn, batch, tmp_path / "nowhere", record)
    conn.execute("UPDATE rl_assets.models SET digest = 'another' WHERE step = 1")
    with pytest.raises(MissingCheckpoint, match="is not what was registered as babylon-agent step 1"):
        measured(conn, batch, trained / "snapshots", record)
    conn.execute("UPDATE rl_assets.models SET digest = %s WHERE step = 1", [checkpoint_digest(step_1(trained))])
    conn.execute("DELETE FROM rl_assets.snapshots")
    with pytest.raises(MalformedInput, match="no gate snapshot is registered"):
        measured(conn, batch, trained / "snapshots", record)
    assert not record.exists()
    assert latest_evaluation(conn, batch.id) is None


def step_1(data: Path) -> Path:
    return base_path(data, LINE).with_name("0001")


def test_play_is_read_by_snapshot_and_sibling_whatever_the_order():
    episodes = [
        an_episode(snapshot_id=f"gate-{n}", sibling=sibling, expected_pnl=10.0 * n + sibling)
        for n in range(3)
        for sibling in range(2)
    ]
    policy, snapshots = episodes[0].policy, ["gate-2", "gate-0", "gate-1"]
    others = [an_episode(e, policy=Policy("hold")) for e in episodes]
    assert play_of(others + episodes[::-1], policy, snapshots).expected_pnl.tolist() == [[20, 21], [0, 1], [10, 11]]
    for incomplete in ([replace(episodes[0], expected_pnl=None), *episodes[1:]], episodes[1:], []):
        with pytest.raises(MalformedInput, match=f"{policy} has not played gate-. to its end; play the gate again"):
            play_of(incomplete, policy, snapshots)


def test_a_gate_snapshot_that_fails_its_audit_decides_nothing(
    conn: psycopg.Connection, batch: Batch, trained: Path, tmp_path: Path
):
    root = tmp_path / "snapshots"
    shutil.copytree(trained / "snapshots", root)
    snapshot, truth = generate("gate", GATE[0])
    other = replace(truth, outcomes=~truth.outcomes)
    forged = replace(snapshot, truth_digest=other.digest)
    save_snapshot(root, forged, other)
    conn.execute("DELETE FROM rl_assets.snapshots WHERE id = %s", [snapshot.id])
    register_snapshots(conn, [forged])
    with pytest.raises(MalformedInput, match=f"gate snapshot {forged.id} fails its audit"):
        measured(conn, batch, root, tmp_path / "evaluation.parquet")
    assert not (tmp_path / "evaluation.parquet").exists()
    assert latest_evaluation(conn, batch.id) is None


def test_snapshots_of_a_kind_that_leaks_decide_nothing(
    conn: psycopg.Connection, batch: Batch, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(leakage, "SURE", 0.0)  # whatever deviates is then a leak
    leakage.audit_kind.cache_clear()
    try:
        with pytest.raises(MalformedInput, match="fails its audit"):
            measured(conn, batch, trained / "snapshots", tmp_path / "evaluation.parquet")
    finally:
        leakage.audit_kind.cache_clear()
    assert latest_evaluation(conn, batch.id) is None


def test_snapshots_of_a_kind_on_which_skill_does_not_show_decide_nothing(
    conn: psycopg.Connection, batch: Batch, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(skill, "NEAR_HOLD", 0.0)  # no play is then as near to not playing as luck should be
    skill.audit_kind_skill.cache_clear()
    try:
        with pytest.raises(MalformedInput, match="skill_is_measurable: skill does not show"):
            measured(conn, batch, trained / "snapshots", tmp_path / "evaluation.parquet")
    finally:
        skill.audit_kind_skill.cache_clear()
    assert latest_evaluation(conn, batch.id) is None
