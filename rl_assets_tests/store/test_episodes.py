"""Episodes survive Postgres, every known shape is read, and what is no episode says why and stops nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings

from rl_assets.episodes import Episode, Policy, Step
from rl_assets.errors import DatabaseError, MalformedInput
from rl_assets.judging import OutcomeJudge
from rl_assets.store import episodes as store
from rl_assets.store.agents import provision_agents
from rl_assets.store.database import connect
from rl_assets.store.episodes import (
    LIMIT_BYTES,
    WindowPart,
    changed_windows,
    new_ids,
    read_episodes,
    write_episodes,
)
from rl_assets.store.ledger import record_judgements
from rl_assets.windows import WindowState
from rl_assets_tests.store.made import WINDOW, an_episode, episodes_in_a_window, insert_row
from rl_assets_tests.store.waiting import Stricter, judged, news, recorded

HOUR = datetime(2026, 11, 23, 8, tzinfo=UTC)


def read_window(conn: psycopg.Connection, window: str, *, limit_bytes: int = LIMIT_BYTES) -> WindowPart:
    """All parts of a window as one."""
    whole = WindowPart([], [], {})
    for part in store.read_window(conn, window, limit_bytes=limit_bytes):
        whole.episodes.extend(part.episodes)
        whole.rejects.extend(part.rejects)
        whole.versions.update(part.versions)
    return whole


def test_an_hour_is_read_in_parts_of_a_bounded_size_in_one_order(
    conn: psycopg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    everybody = sorted(episode.trajectory_id for episode in recorded(conn, 10))
    conn.execute("""UPDATE trajectories SET "stepsJson" = '[' WHERE "trajectoryId" = %s""", [everybody[4]])
    monkeypatch.setattr(store, "CHUNK", 3)
    parts = []
    for part in store.read_window(conn, WINDOW):
        if not parts:  # what comes after the beginning is in the next reading
            with connect(postgres_url) as other:
                recorded(other, 1, first_snapshot=90)
        parts.append(part)
    assert [list(part.versions) for part in parts] == [everybody[at : at + 3] for at in range(0, 10, 3)]
    assert [[reject.trajectory_id for reject in part.rejects] for part in parts] == [[], [everybody[4]], [], []]
    assert len(read_window(conn, WINDOW).versions) == 11


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=episodes_in_a_window())
def test_what_is_written_is_read(conn: psycopg.Connection, batch: list[Episode]):
    conn.execute('TRUNCATE trajectories, llm_call_logs, "User" CASCADE')
    agent = provision_agents(conn, ["model"])["model"]
    batch = [an_episode(episode, agent_id=agent) for episode in batch]
    assert write_episodes(conn, batch) == len(batch)
    assert read_episodes(conn, [episode.trajectory_id for episode in batch]) == {e.trajectory_id: e for e in batch}
    read = read_window(conn, WINDOW)
    assert sorted(read.episodes, key=lambda e: e.trajectory_id) == sorted(batch, key=lambda e: e.trajectory_id)
    assert read.rejects == []


def test_babylons_columns_are_filled(conn: psycopg.Connection):
    agent = provision_agents(conn, ["model"])["model"]
    episode = an_episode(agent_id=agent)
    write_episodes(conn, [episode])
    row = conn.execute(
        """SELECT "windowId", "windowHours", "episodeLength", "finalStatus", "finalPnL", "tradesExecuted",
                  "isTrainingData", "isEvaluation", "usedInTraining", "updatedAt" IS NOT NULL FROM trajectories"""
    ).fetchone()
    assert row == (
        WINDOW,
        1,
        2,
        "completed_with_errors",
        episode.realised_pnl,
        episode.trades,
        True,
        False,
        False,
        True,
    )
    calls = conn.execute('SELECT "stepId", "callId", "systemPrompt", "completionTokens" FROM llm_call_logs').fetchall()
    ident = episode.trajectory_id
    assert calls == [(f"{ident}-step-{n}", f"{ident}-call-{n}-0", episode.system, 2) for n in range(2)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_episode_that_cannot_be_stored_writes_nothing(conn: psycopg.Connection, bad: float):
    agent = provision_agents(conn, ["model"])["model"]
    good, broken = an_episode(agent_id=agent), an_episode(agent_id=agent, expected_pnl=bad)
    with pytest.raises(MalformedInput, match=broken.trajectory_id):
        write_episodes(conn, [good, broken])
    assert read_window(conn, WINDOW).episodes == []
    with pytest.raises(DatabaseError, match="provision"):
        write_episodes(conn, [an_episode(agent_id="nobody")])
    write_episodes(conn, [good])
    with pytest.raises(DatabaseError, match="already recorded"):
        write_episodes(conn, [an_episode(agent_id=agent), good])
    assert read_window(conn, WINDOW).episodes == [good]


def test_every_known_shape_of_babylon_is_read(conn: psycopg.Connection, babylon_data: Path):
    for name, table in (("users", "User"), ("trajectories", "trajectories"), ("llm_call_logs", "llm_call_logs")):
        for line in (babylon_data / f"sample_{name}.jsonl").read_text().splitlines():
            insert_row(conn, table, json.loads(line))
    windows = [state.window_id for state in news(conn)]
    assert set(windows) == {"2025-01-15T10:00", "2025-01-15T11:00", "2026-11-23T00:00"}
    reads = [read_window(conn, window) for window in windows]
    assert [reject for read in reads for reject in read.rejects] == []
    episodes = {episode.trajectory_id: episode for read in reads for episode in read.episodes}
    assert len(episodes) == 9
    rich = episodes["50d1f8d7-052f-4e21-9e18-59da4a53beb9"]  # a uuid, and no window of its own
    assert (rich.window_id, rich.policy, rich.trades) == ("2026-11-23T00:00", Policy("qwen/qwen3-32b"), 1)
    assert rich.realised_pnl == 5
    assert rich.steps[0].observation.startswith("Balance $1000")
    production = episodes["383047308008226816"]
    assert (production.not_trainable, production.policy.name, production.trades) == ("no_prompt", "unrecorded", 1)
    assert episodes["383047308079529984"].not_trainable == "empty_steps"
    script = episodes["383047304032026624"]
    assert (script.not_trainable, script.steps[0].latency_ms) == ("no_logprobs", 355)


def test_prompts_fall_back_to_the_log_of_calls(conn: psycopg.Connection, babylon_data: Path):
    for line in (babylon_data / "sample_users.jsonl").read_text().splitlines():
        insert_row(conn, "User", json.loads(line))
    rows = map(json.loads, (babylon_data / "sample_trajectories.jsonl").read_text().splitlines())
    (row,) = (row for row in rows if row["trajectoryId"] == "383047309006471168")
    steps = json.loads(row["stepsJson"])
    insert_row(conn, "trajectories", {**row, "stepsJson": json.dumps([{**s, "llmCalls": []} for s in steps])})
    for line in (babylon_data / "sample_llm_call_logs.jsonl").read_text().splitlines():
        insert_row(conn, "llm_call_logs", json.loads(line))
    (episode,) = read_window(conn, "2026-11-23T00:00").episodes
    assert [step.observation for step in episode.steps] == [step["llmCalls"][0]["userPrompt"] for step in steps]
    assert episode.system == steps[0]["llmCalls"][0]["systemPrompt"]
    assert episode.policy == Policy("gpt-4o-mini")


STEP = {"environmentState": {"agentBalance": 1000}, "action": {"actionType": "HOLD", "success": True}, "reward": 0}


def steps(**changes: object) -> str:
    return json.dumps([{**STEP, **changes}])


MALFORMED = {
    "bad_json": "{not json",
    "bad_steps": '{"a": 1}',
    "not_finite": '[{"reward": NaN}]',
    "missing_key": steps(environmentState={}),
    "wrong_type": steps(reward="a lot"),
    "bad_action": steps(action="BUY"),
    "bad_logprobs": steps(llmCalls=[{"purpose": "action", "tokenIds": [1, 2], "logprobs": [-0.5]}]),
    "too_large": steps(reasoning="x" * 3_000_000),
}
OTHERS = [
    ("bad_json", "[" * 100_000),
    ("bad_json", "[" + "1" * 10_000 + "]"),
    ("not_finite", steps(reward=1).replace('"reward": 1', '"reward": 1e999')),
    ("not_finite", steps(reward=10**400)),
    ("not_finite", steps(action={"success": True, "parameters": {"size": 1}}).replace('"size": 1', '"size": -1e999')),
    ("bad_steps", '[1, "two"]'),
    ("bad_steps", '[{"llmCalls": {}}]'),
    ("missing_key", steps(environmentState=None)),
    ("wrong_type", steps(llmCalls=[{"userPrompt": ["not", "a", "text"]}])),
    ("wrong_type", steps(llmCalls=[{"tokenIds": 7}])),
    ("bad_logprobs", steps(llmCalls=[{"tokenIds": ["a"], "logprobs": [-1.0]}])),
    ("bad_logprobs", steps(llmCalls=[{"tokenIds": [1, 2], "logprobs": [-1.0, 0.5]}])),
    ("wrong_type", steps(llmCalls=[{"tokenIds": [1], "logprobs": [None]}])),
    ("bad_action", steps(action={"actionType": "HOLD"})),
    ("bad_action", steps(action={"success": True, "parameters": []})),
]


def test_malformed_rows_are_rejected_and_stop_nothing(conn: psycopg.Connection):
    agent = provision_agents(conn, ["model"])["model"]
    good = an_episode(agent_id=agent)
    write_episodes(conn, [good])
    template = conn.execute("SELECT row_to_json(t) FROM trajectories AS t").fetchone()
    assert template is not None
    cases = [*MALFORMED.items(), *OTHERS]
    for number, (_, text) in enumerate(cases):
        insert_row(
            conn, "trajectories", {**template[0], "id": f"b{number}", "trajectoryId": f"{number}", "stepsJson": text}
        )
    for number, change in enumerate(
        ({"metadataJson": "[]"}, {"metadataJson": '{"policy": 3}'}, {"endTime": "infinity"})
    ):
        insert_row(conn, "trajectories", {**template[0], "id": f"m{number}", "trajectoryId": f"m{number}", **change})
    read = read_window(conn, WINDOW, limit_bytes=2_000_000)
    assert read.episodes == [good]
    reasons = {reject.trajectory_id: reject.reason for reject in read.rejects}
    assert reasons == {str(n): reason for n, (reason, _) in enumerate(cases)} | {
        "m0": "bad_metadata",
        "m1": "wrong_type",
        "m2": "not_finite",
    }
    assert all(reject.detail and len(reject.raw) <= 2000 for reject in read.rejects)
    with pytest.raises(MalformedInput, match="bad_json"):
        read_episodes(conn, ["0"])


def test_half_a_character_and_nulls_are_read_as_text_that_can_be_kept(conn: psycopg.Connection):
    agent = provision_agents(conn, ["model"])["model"]
    step = Step(0, "see \x00 this", "say \x00", {"do": "hold"}, True, 0.0, 1000.0)
    write_episodes(conn, [an_episode(agent_id=agent, steps=(step,))])
    conn.execute("""UPDATE trajectories SET "stepsJson" = replace("stepsJson", 'see ', 'see \\ud800 ')""")
    (episode,) = read_window(conn, WINDOW).episodes
    assert episode.steps[0].observation == "see \ufffd \x00 this"


def test_a_missing_episode_is_named(conn: psycopg.Connection):
    with pytest.raises(MalformedInput, match="first 7"):
        read_episodes(conn, ["7"])


def test_ids_are_unique_and_in_order():
    ids = new_ids(1000) + new_ids(1000)
    assert len(set(ids)) == 2000
    assert ids[:1000] == sorted(ids[:1000])
    assert all(one.isdigit() for one in ids)


def test_changed_windows_reports_news_alone(conn: psycopg.Connection):
    agent = provision_agents(conn, ["model"])["model"]
    later = HOUR + timedelta(hours=1)
    write_episodes(conn, [an_episode(agent_id=agent), an_episode(agent_id=agent)])
    write_episodes(conn, [an_episode(agent_id=agent, window_id="2026-11-23T09:00", ended_at=later)])
    first, second = news(conn)
    assert (first.window_id, first.rows) == (WINDOW, 2)
    assert (second.window_id, second.rows) == ("2026-11-23T09:00", 1)
    assert next(changed_windows(conn, None, rows=1)).states == [first]
    assert news(conn, second.newest_updated_at)[-1] == second
    assert news(conn, second.newest_updated_at + timedelta(seconds=1)) == []
    conn.execute('UPDATE trajectories SET "judgedAt" = now(), "updatedAt" = now() WHERE "windowId" = %s', [WINDOW])
    assert [state.window_id for state in news(conn)] == ["2026-11-23T09:00"]
    late = datetime(2030, 1, 1)
    conn.execute('UPDATE trajectories SET "updatedAt" = %s WHERE "windowId" = %s', [late, WINDOW])
    assert news(conn, datetime(2029, 1, 1, tzinfo=UTC))[0].window_id == WINDOW
    conn.execute('UPDATE trajectories SET "usedInTraining" = true')
    assert news(conn) == []


def test_changed_windows_never_scans_the_table(conn: psycopg.Connection):
    agent = provision_agents(conn, ["model"])["model"]
    write_episodes(conn, [an_episode(agent_id=agent) for _ in range(300)])
    conn.execute("""UPDATE trajectories SET "updatedAt" = '2020-01-01' WHERE "trajectoryId" NOT IN
                    (SELECT "trajectoryId" FROM trajectories LIMIT 3)""")
    conn.execute("VACUUM ANALYZE trajectories")
    statements: list[str] = []
    conn.execute("LOAD 'auto_explain'")
    conn.execute("SET auto_explain.log_min_duration = 0")
    conn.execute("SET client_min_messages = log")
    conn.add_notice_handler(lambda notice: statements.append(notice.message_primary or ""))
    assert news(conn, datetime(2026, 1, 1, tzinfo=UTC))
    plan = "\n".join(statements)
    assert "rl_assets_trajectories_news_idx" in plan
    assert "Seq Scan on trajectories" not in plan


@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_changes_come_in_parts_and_each_tells_of_a_window_what_is_true_of_all_its_rows(conn: psycopg.Connection, rows):
    agent = provision_agents(conn, ["model"])["model"]
    hours = [f"2026-11-23T{hour:02}:00" for hour in range(4)]
    for n in range(12):
        write_episodes(conn, [an_episode(agent_id=agent, window_id=hours[n % 4])])
    conn.execute("""UPDATE trajectories AS t SET "updatedAt" = '2026-11-24'::timestamp + n * interval '1 s'
                    FROM (SELECT "id", row_number() OVER (ORDER BY "id") / 2 AS n FROM trajectories) AS r
                    WHERE r."id" = t."id" """)
    parts = list(changed_windows(conn, None, hours[1], rows))
    newest = conn.execute("""SELECT "windowId", count(*), max("updatedAt") FROM trajectories GROUP BY 1""").fetchall()
    known = {WindowState(window, count, at.replace(tzinfo=UTC)) for window, count, at in newest if window > hours[0]}
    assert {state for part in parts for state in part.states} == known
    *reached, last = (part.reached for part in parts)
    ends = [moment for moment in reached if moment is not None]
    assert last is None and ends == reached == sorted(set(ends))
    assert len(parts) == {1: 8, 2: 6, 3: 4, 50: 1}[rows]  # rows of one moment, two here, are never told apart


def test_without_the_index_only_recent_windows_are_looked_at(conn: psycopg.Connection):
    agent = provision_agents(conn, ["model"])["model"]
    conn.execute("DROP INDEX rl_assets_trajectories_news_idx")
    write_episodes(conn, [an_episode(agent_id=agent, window_id="2020-01-01T00:00"), an_episode(agent_id=agent)])
    assert [state.window_id for state in news(conn, HOUR)] == [WINDOW]
    conn.execute("DELETE FROM trajectories")
    write_episodes(conn, [an_episode(agent_id=agent)])
    conn.execute('UPDATE trajectories SET "windowId" = NULL')
    assert [state.window_id for state in news(conn, HOUR)] == [WINDOW]


def test_a_row_that_changes_between_reading_and_judging_stays_news(conn: psycopg.Connection):
    episodes = recorded(conn, 4)
    read = read_window(conn, WINDOW)
    assert read.episodes == sorted(episodes, key=lambda episode: episode.trajectory_id)
    changed = episodes[0].trajectory_id
    conn.execute(
        """UPDATE trajectories SET "finalPnL" = 7, "updatedAt" = "updatedAt" + interval '1 second'
           WHERE "trajectoryId" = %s""",
        [changed],
    )
    record_judgements(conn, judged(read.episodes), read.versions)
    (state,) = news(conn)
    assert (state.window_id, state.rows) == (WINDOW, 4)
    again = read_window(conn, WINDOW)
    assert {one for one in again.versions if again.versions[one] == read.versions[one]} == set()
    record_judgements(conn, judged(again.episodes), again.versions)
    assert news(conn) == []


def test_judging_again_what_was_not_read_again_is_no_news(conn: psycopg.Connection):
    recorded(conn, 4)
    read = read_window(conn, WINDOW)
    for judge in (OutcomeJudge(), Stricter()):
        record_judgements(conn, judged(read.episodes, judge=judge), read.versions)
        assert news(conn) == []


def test_a_row_recorded_between_reading_and_judging_is_news(conn: psycopg.Connection):
    recorded(conn, 4)
    read = read_window(conn, WINDOW)
    recorded(conn, 1, first_snapshot=50)
    record_judgements(conn, judged(read.episodes), read.versions)
    assert [state.rows for state in news(conn)] == [5]
