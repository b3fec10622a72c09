from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest

from rl_assets.errors import LedgerConflict
from rl_assets.registry.evidence import conclude
from rl_assets.registry.models import (
    champion_step,
    get_latest_rl_model,
    list_models,
    promote,
    protected_steps,
    rollback,
)
from rl_assets.registry.rollout import Rollout, events_of, has_candidate, last_rollout, open_rollout
from rl_assets.registry.stages import advance, begin, confirm, look
from rl_assets.registry.terms import Terms
from rl_assets.store.live import register
from rl_assets_tests.registry.made import LINE, a_base, a_candidate, evaluated
from rl_assets_tests.registry.played import TERMS, begun, ill, play_beside, well
from rl_assets_tests.registry.test_models import babylon, live_for_babylon, states

AGENTS = [f"agent-{number}" for number in range(400)]
RNG = np.random.default_rng(5)


def with_the_candidate(conn: psycopg.Connection) -> set[str]:
    return {agent for agent in AGENTS[:100] if get_latest_rl_model(conn, LINE, agent).step == 1}


def decisions(conn: psycopg.Connection) -> list[str]:
    rollout = last_rollout(conn, LINE)
    assert rollout is not None
    return [event.decision for event in events_of(conn, rollout.id)]


def now(conn: psycopg.Connection) -> Rollout:
    rollout = open_rollout(conn, LINE)
    assert rollout is not None
    return rollout


def test_one_stage_of_all_agents_is_a_promotion_at_once(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path, Terms())
    assert champion_step(conn, LINE) == 1
    assert live_for_babylon(conn) == "v1.0.1"
    assert (now(conn).state, now(conn).percentage) == ("watched", 100)
    assert decisions(conn) == ["started", "promoted"]


def test_a_staged_candidate_is_told_to_its_agents_alone_and_not_to_babylon(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    assert champion_step(conn, LINE) == 0
    assert get_latest_rl_model(conn, LINE).step == 0
    assert 0 < len(with_the_candidate(conn)) < 30
    assert babylon(conn)["v1.0.1"]["status"] == "training"
    assert live_for_babylon(conn) is None
    assert states(conn) == {0: "champion", 1: "candidate"}
    assert protected_steps(conn, LINE) == {0, 1}
    # Asked once more, as after a crash, it is where it was.
    assert begin(conn, LINE, 1, TERMS, well).live
    assert decisions(conn) == ["started"]


def test_a_candidate_that_does_no_harm_arrives_and_agents_keep_it(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    first = with_the_candidate(conn)
    play_beside(conn, RNG.normal(0, 5, 19), RNG.normal(0, 5, 19))
    assert "is with 10 % of the agents" in str(advance(conn, LINE, well))
    play_beside(conn, RNG.normal(0, 5, 300), RNG.normal(0, 5, 300))
    assert "is with 50 % of the agents: it is shown to do no harm" in str(advance(conn, LINE, well))
    second = with_the_candidate(conn)
    assert first < second
    assert 30 < len(second) < 70
    # What was played before says nothing about this stage.
    waiting = look(conn, LINE)
    assert waiting is not None
    assert (waiting.decision, waiting.figures["pairs"], waiting.figures["pairs_of_this_stage"]) == ("wait", 319, 0)
    play_beside(conn, RNG.normal(0, 5, 20), RNG.normal(0, 5, 20))
    assert "is with 100 % of the agents" in str(advance(conn, LINE, well))
    assert champion_step(conn, LINE) == 1
    assert live_for_babylon(conn) == "v1.0.1"
    assert states(conn) == {0: "retired", 1: "champion"}
    assert decisions(conn) == ["started", "advanced", "promoted"]
    assert advance(conn, LINE, well) is None


def test_a_candidate_that_loses_is_taken_back_by_itself(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    play_beside(conn, RNG.normal(-80, 60, 200), RNG.normal(0, 60, 200))
    verdict = look(conn, LINE)
    assert verdict is not None
    assert verdict.decision == "rollback"
    assert "it loses more than 10 dollars per episode: 200 pairs" in verdict.reason
    assert champion_step(conn, LINE) == 0
    assert states(conn) == {0: "champion", 1: "rejected"}
    assert babylon(conn)["v1.0.1"]["status"] == "archived"
    assert with_the_candidate(conn) == set()
    found = last_rollout(conn, LINE)
    assert found is not None
    assert (found.state, found.percentage) == ("rolled_back", 0)
    event = events_of(conn, found.id)[-1]
    assert event.figures["pnl_dollars"]["upper"] < -10
    assert "by itself" in event.reason
    assert look(conn, LINE) is None


def test_a_candidate_whose_steps_fail_is_taken_back_whatever_it_earns(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    play_beside(conn, [100.0] * 60, [0.0] * 60, failing=True)
    verdict = look(conn, LINE)
    assert verdict is not None
    assert (verdict.decision, champion_step(conn, LINE)) == ("rollback", 0)
    assert "its steps fail too often, by over 5 in a hundred" in verdict.reason


def test_a_champion_whose_steps_fail_more_than_the_last_one_s_is_taken_back(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    play_beside(conn, [0.0] * 60, [0.0] * 60, steps=(7, 0))
    evaluated(conn, a_candidate(conn, tmp_path, 1), promote=True)
    begin(conn, LINE, 1, Terms(), well)
    play_beside(conn, [0.0] * 60, [0.0] * 60, failing=True, steps=(1, 7))
    verdict = look(conn, LINE)
    assert verdict is not None
    assert (verdict.decision, champion_step(conn, LINE)) == ("rollback", 0)
    assert decisions(conn) == ["started", "promoted", "rolled_back"]


def test_the_watch_of_a_sound_champion_ends(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    play_beside(conn, [0.0] * 300, [0.0] * 300, steps=(7, 0))
    evaluated(conn, a_candidate(conn, tmp_path, 1), promote=True)
    begin(conn, LINE, 1, Terms(), well)
    play_beside(conn, [-500.0] * 300, [0.0] * 300, steps=(1, 7))
    verdict = look(conn, LINE)
    assert verdict is not None
    assert "no more steps fail than before: 300 pairs" in verdict.reason
    assert (champion_step(conn, LINE), open_rollout(conn, LINE)) == (1, None)


def test_an_ill_candidate_does_not_begin(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    evaluated(conn, a_candidate(conn, tmp_path, 1), promote=True)
    found = begin(conn, LINE, 1, TERMS, ill)
    assert not found.live
    assert "rejected by its health check: a logprob" in found.reason
    assert states(conn) == {0: "champion", 1: "rejected"}
    assert decisions(conn) == ["started", "rolled_back"]
    assert with_the_candidate(conn) == set()


@pytest.mark.parametrize("trouble", ["ill", "lost"])
def test_a_candidate_that_falls_ill_is_taken_back_before_the_next_stage(
    conn: psycopg.Connection, tmp_path: Path, trouble: str
):
    begun(conn, tmp_path)
    play_beside(conn, [1.0] * 300, [0.0] * 300)
    if trouble == "lost":
        (tmp_path / LINE / "0001" / "config.json").unlink()
    said = advance(conn, LINE, ill if trouble == "ill" else well)
    assert "by itself: its health check failed" in str(said)
    assert states(conn) == {0: "champion", 1: "rejected"}


@pytest.mark.parametrize("stages", [(10, 50, 100), (100,)])
@pytest.mark.parametrize("trouble", ["ill", "lost"])
def test_a_candidate_that_is_ill_where_it_is_live_is_taken_back(
    conn: psycopg.Connection, tmp_path: Path, stages: tuple[int, ...], trouble: str
):
    assert confirm(conn, LINE, well) is None
    begun(conn, tmp_path, Terms(stages=stages, least_pairs=20))
    assert "step 1: " in str(confirm(conn, LINE, well))
    if trouble == "lost":
        (tmp_path / LINE / "0001" / "config.json").unlink()
    said = confirm(conn, LINE, ill if trouble == "ill" else well)
    assert "by itself: its health check failed where it is live" in str(said)
    assert states(conn) == {0: "champion", 1: "rejected"}
    assert confirm(conn, LINE, well) is None


def test_rolling_back_by_hand_during_a_rollout_takes_the_candidate_back(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    change = rollback(conn, LINE, "a person says so")
    assert (change.model.step, change.before.step) == (0, 1)
    assert states(conn) == {0: "champion", 1: "rejected"}
    assert decisions(conn) == ["started", "rolled_back"]
    with pytest.raises(LedgerConflict, match="no champion before step 0"):
        rollback(conn, LINE, "again")


def test_one_candidate_is_on_its_way_at_a_time(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    evaluated(conn, a_candidate(conn, tmp_path, 2), promote=True)
    with pytest.raises(LedgerConflict, match="step 2 of babylon-agent cannot go live while step 1 is with 10 %"):
        begin(conn, LINE, 2, TERMS, well)
    with pytest.raises(LedgerConflict, match="step 2 of babylon-agent cannot be promoted while step 1 is with 10 %"):
        promote(conn, LINE, 2)
    assert {model.state for model in list_models(conn, LINE)} == {"champion", "candidate"}


def test_a_candidate_that_the_gate_did_not_let_through_does_not_begin(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    evaluated(conn, a_candidate(conn, tmp_path, 1), promote=False)
    with pytest.raises(LedgerConflict, match="for the gate decided"):
        begin(conn, LINE, 1, TERMS, well)
    assert last_rollout(conn, LINE) is None


def test_evidence_and_decisions_cannot_be_altered(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    play_beside(conn, [1.0] * 3, [0.0] * 3)
    look(conn, LINE)
    for table in ("rollout_pairs", "rollout_events"):
        with pytest.raises(psycopg.errors.RaiseException, match="only ever added"):
            conn.execute(f"DELETE FROM rl_assets.{table}")  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_each_episode_is_paired_once_however_often_one_looks(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    for _ in range(3):
        play_beside(conn, [1.0] * 4, [0.5] * 4)
        look(conn, LINE)
        look(conn, LINE)
    rows = conn.execute("SELECT pnl, errors FROM rl_assets.rollout_pairs ORDER BY number").fetchall()
    assert rows == [(0.5, 0.0)] * 12
    assert conn.execute("SELECT count(*), count(pair) FROM rl_assets.rollout_episodes").fetchone() == (24, 24)


def test_a_live_episode_is_taken_once_its_hour_is_settled(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    conn.execute("UPDATE rl_assets.rollouts SET started_at = started_at - interval '1 day'")
    hour = datetime.now(UTC)
    play_beside(conn, [1.0], [0.5], live_at=hour)
    look(conn, LINE)
    assert conn.execute("SELECT count(*) FROM rl_assets.rollout_episodes").fetchone() == (0,)
    play_beside(conn, [1.0], [0.5], live_at=hour - timedelta(hours=3))
    look(conn, LINE)
    assert conn.execute("SELECT pnl FROM rl_assets.rollout_pairs").fetchall() == [(0.5,)]


def test_a_look_reads_what_has_come_since_the_last_one(
    conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def taken() -> int:
        look(conn, LINE)
        return len(conn.execute("SELECT FROM rl_assets.rollout_episodes").fetchall())

    monkeypatch.setattr("rl_assets.registry.evidence.MOST_ROWS", 3)
    begun(conn, tmp_path)
    play_beside(conn, [1.0] * 8, [0.5] * 8)
    assert [taken() for _ in range(4)] == [6, 12, 16, 16]  # three of each model at a time, until there are no more
    assert now(conn).looked_at is not None
    play_beside(conn, [1.0], [0.5])
    hours_ago = """UPDATE trajectories SET "updatedAt" = "updatedAt" - interval '4 hours',
                     "windowId" = to_char("endTime" - interval '4 hours', 'YYYY-MM-DD"T"HH24:00')
                   WHERE "trajectoryId" NOT IN (SELECT trajectory_id FROM rl_assets.rollout_episodes)"""
    conn.execute("UPDATE rl_assets.rollouts SET started_at = started_at - interval '1 day'")
    conn.execute(hours_ago)
    assert taken() == 16
    play_beside(conn, [1.0], [0.5], live_at=datetime.now(UTC) - timedelta(hours=3))
    assert taken() == 18


def test_a_rollout_ends_even_where_nothing_is_shown(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path, Terms(stages=(50, 100), most_pairs=40))
    play_beside(conn, RNG.normal(0, 100, 40), RNG.normal(0, 100, 40))
    verdict = look(conn, LINE)
    assert verdict is not None
    assert "it is not shown to do no harm in 40 pairs" in verdict.reason
    assert champion_step(conn, LINE) == 0


def test_equal_policies_are_hardly_ever_taken_back_and_a_harmful_one_always(conn: psycopg.Connection, tmp_path: Path):
    """Looks after every 100 pairs, at 100 rollouts with equal, skewed PnL whose tails are cut, and 25 with a loss."""
    rollout = begun(conn, tmp_path, Terms(stages=(50, 100), alpha=0.2))
    rng = np.random.default_rng(11)

    def taken_back(loss: float) -> bool:
        earned = rng.exponential(90.0, (2, 600)) - np.array([[loss], [0.0]])
        failed = rng.binomial(12, 0.02, (2, 600)) / 12
        pnl, errors = earned[0] - earned[1], failed[0] - failed[1]
        stages = np.zeros(600, np.int64)
        return any(
            conclude(rollout, stages[:n], pnl[:n], errors[:n]).decision == "rollback" for n in range(100, 601, 100)
        )

    assert sum(taken_back(0.0) for _ in range(100)) <= 20
    assert sum(taken_back(60.0) for _ in range(25)) == 25


def test_ticks_that_failed_count_against_the_model_of_their_agent(conn: psycopg.Connection, tmp_path: Path):
    rollout = begun(conn, tmp_path)
    terms = {"scenario": "crash", "cost": 1, "seconds": 60, "memory_mb": 2048}
    ids = {name: register(conn, name, "model", {}, **terms) for name in AGENTS[:60]}
    reference = register(conn, "steady", "reference", {"name": "hold"}, **terms)
    tick = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=5)
    for agent in (*ids.values(), reference):
        conn.execute(
            """INSERT INTO rl_assets.live_ticks (agent_id, tick, window_id, state, reason, ended_at)
               VALUES (%s, %s, '2026-11-25T08:00', 'failed', 'no memory', now())""",
            [agent, tick],
        )
    look(conn, LINE)
    rows = conn.execute(
        "SELECT trajectory_id, is_candidate, market, pnl, errors FROM rl_assets.rollout_episodes ORDER BY 1"
    ).fetchall()
    second = int(tick.timestamp())
    expected = [
        (f"tick-{agent}-{second}", has_candidate(rollout, agent), "2026-11-25T08:00 crash", None, 1.0)
        for agent in ids.values()
    ]
    assert rows == sorted(expected)
    assert {row[1] for row in rows} == {True, False}
    look(conn, LINE)
    assert conn.execute("SELECT count(*) FROM rl_assets.rollout_episodes").fetchone() == (len(rows),)
