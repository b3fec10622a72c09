"""What the tests of Babylon's own training package expected of its services, in our names.

Five services were sketched there: a collector of windows, a judge, a GRPO trainer, a deployer and an orchestrator.
`CONTRACT` names the test of ours for each expectation; those that no other module tests are tested below. Two are met
in another way, on purpose: a judge that fails leaves a group unjudged rather than scored by a fallback, and a model's
version is counted from the line's own models, not from a window.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.episodes import WINDOW_FORMAT, window_of
from rl_assets.registry.models import champion_step
from rl_assets.settings import REPOSITORY, Settings
from rl_assets.store.database import connect
from rl_assets.store.episodes import read_window
from rl_assets.store.ledger import readiness
from rl_assets.windows import LENGTH, settles_at, start_of
from rl_assets_tests.store.waiting import a_champion, news, recorded, waiting

CONTRACT = {
    "windows: the id has 16 characters, parses, and is a whole hour": "test_contract.py::"
    "test_a_windows_id_is_a_whole_hour_in_utc_and_parses",
    "windows: the one before begins 3600 s earlier": "test_contract.py::test_the_window_before_is_an_hour_earlier",
    "windows: no data raises nothing": "test_contract.py::test_a_window_without_data_is_empty_and_no_error",
    "windows: several are collected at once": "test_contract.py::test_windows_are_read_at_once_and_each_is_itself",
    "windows: ready ones are found within a look-back": "test_contract.py::"
    "test_windows_with_news_are_found_whatever_hour",
    "windows: one is ready once it is over": "test_windows.py::test_an_hour_settles_five_minutes_after_it_closes",
    "windows: a query answers with rows": "store/test_episodes.py::test_every_known_shape_of_babylon_is_read",
    "judging: a reply of scores becomes one score per agent": "judging/test_ruler.py::"
    "test_scores_are_matched_by_id_whatever_the_order_of_the_answer",
    "judging: any OpenAI-compatible judge is asked": "judging/test_ruler_client.py::"
    "test_a_key_of_the_environment_does_not_go_to_a_server_of_ones_own",
    "judging: every score is from 0 to 1": "judging/test_outcome.py::"
    "test_each_member_has_one_quantised_score_and_the_best_is_first",
    "judging: a failing judge stops nothing": "judging/test_ruler.py::test_one_failed_group_leaves_the_others_alone",
    "judging: scores are saved": "store/test_ledger.py::test_babylon_sees_scores_and_takes_them_for_no_news",
    "GRPO: the prompt holds rules, cash, markets and actions": "training/test_codec.py::"
    "test_what_art_trains_on_is_what_was_played_token_by_token",
    "GRPO: without trajectories nothing is prepared": "training/test_service.py::test_a_missing_episode_is_named",
    "GRPO: without scores there is no training data": "training/test_trigger.py::"
    "test_the_reason_says_how_many_groups_wait_for_a_judge",
    "GRPO: a training gives version, checkpoint, metrics and seconds": "training/test_service.py::"
    "test_a_batch_becomes_the_next_step_once_and_its_base_stays_as_it_was",
    "GRPO: it is tracked at W&B with a dataset": "test_tracking.py::"
    "test_a_run_that_is_tracked_offline_holds_the_curve_and_the_lineage_from_model_to_episodes",
    "deployment: healthy where the endpoint answers": "training/test_inference.py::"
    "test_an_answer_is_a_legal_action_with_the_logprob_of_every_token",
    "deployment: unhealthy after retries, without raising": "registry/test_stages.py::"
    "test_a_candidate_that_is_ill_where_it_is_live_is_taken_back",
    "deployment: what is deployed is told": "registry/test_models.py::"
    "test_promotion_moves_pointer_history_and_babylon_together",
    "orchestration: nothing has been trained at first": "test_contract.py::"
    "test_at_first_nothing_waits_and_nothing_was_trained",
    "orchestration: collect, judge, train and deploy in turn": "integration/test_demo.py::"
    "test_the_sensor_trains_on_what_was_played_and_the_gate_decides",
    "orchestration: missing data says so": "assets/test_pipeline.py::"
    "test_what_is_missing_upstream_is_said_in_one_sentence",
    "orchestration: thresholds come from the environment": "test_settings.py::"
    "test_every_other_threshold_is_taken_as_it_is",
    "orchestration: without optional settings it warns only": "test_contract.py::"
    "test_no_setting_is_needed_to_begin_with",
}
MOMENTS = st.datetimes(datetime(2025, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


def test_each_expectation_has_a_test():
    for expectation, test in CONTRACT.items():
        path, _, name = test.partition("::")
        source = (REPOSITORY / "rl_assets_tests" / path).read_text(encoding="utf-8")
        assert f"def {name}(" in source, expectation


@given(MOMENTS)
def test_a_windows_id_is_a_whole_hour_in_utc_and_parses(moment: datetime):
    window = window_of(moment)
    assert (len(window), window[10], window[-3:]) == (16, "T", ":00")
    start = datetime.strptime(window, WINDOW_FORMAT)
    assert (start.minute, start.second) == (0, 0)
    assert start_of(window) <= moment < start_of(window) + LENGTH


@given(MOMENTS)
def test_the_window_before_is_an_hour_earlier(moment: datetime):
    before = window_of(moment - LENGTH)
    assert (start_of(window_of(moment)) - start_of(before)).total_seconds() == 3600


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_a_window_is_the_same_hour_wherever_the_machine_is(zone: str):
    code = (
        "from datetime import datetime, UTC; from rl_assets.windows import start_of; from rl_assets.episodes import "
        "window_of; moment = datetime(2025, 1, 15, 10, 30, tzinfo=UTC);"
        "print(start_of('2025-01-15T10:00').isoformat(), window_of(moment))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "TZ": zone},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["2025-01-15T10:00:00+00:00", "2025-01-15T10:00"]


def test_a_window_without_data_is_empty_and_no_error(conn: psycopg.Connection):
    assert [part for part in read_window(conn, "2026-11-23T08:00") if part.episodes or part.rejects] == []


def test_windows_are_read_at_once_and_each_is_itself(conn: psycopg.Connection, postgres_url: str):
    windows = [f"2026-11-23T{hour:02d}:00" for hour in range(4)]
    for number, window in enumerate(windows):
        recorded(conn, number + 1, window=window)

    def read(window: str) -> list[str | None]:
        with connect(postgres_url) as own:
            return [episode.window_id for part in read_window(own, window) for episode in part.episodes]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, windows))
    assert found == [[window] * (number + 1) for number, window in enumerate(windows)]


def test_windows_with_news_are_found_whatever_hour(conn: psycopg.Connection):
    windows = [f"2026-11-{day:02d}T08:00" for day in (1, 20, 23)]
    for window in windows:
        recorded(conn, 2, window=window)
    found = news(conn)
    assert [state.window_id for state in sorted(found, key=lambda one: one.window_id)] == windows
    assert all(len(state.window_id) == 16 and state.rows == 2 for state in found)
    assert all(settles_at(state.window_id) - start_of(state.window_id) == timedelta(minutes=65) for state in found)


def test_at_first_nothing_waits_and_nothing_was_trained(conn: psycopg.Connection):
    assert champion_step(conn, "babylon-agent") is None
    assert readiness(conn, "babylon-agent", None).fresh == 0
    a_champion(conn)
    assert champion_step(conn, "babylon-agent") == 0
    waiting(conn, 4)
    ready = readiness(conn, "babylon-agent", 0)
    assert (ready.fresh, ready.claimed, ready.in_flight_batch) == (4, 0, None)


def test_no_setting_is_needed_to_begin_with():
    settings = Settings.from_env({})
    assert (settings.database_url, settings.ruler.model, settings.serverless.api_key) == (None, "", None)
    assert json.dumps([settings.min_trajectories, settings.group_size, settings.judge]) == '[1000, 8, "outcome"]'
