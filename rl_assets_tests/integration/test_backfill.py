"""Backfills as a data engineer launches them: over GraphQL, run by a real daemon, and counted afterwards."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rl_assets.episodes import window_of
from rl_assets_tests.processes import query, record_late, until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

WINDOW_ASSETS = ("recorded_trajectories", "grpo_groups", "judged_rankings")
SPRING = [f"2026-03-29T{hour:02d}:00" for hour in range(4)]
"""Hours over which clocks in Europe go forward; at 02:00 of local time there is none."""
AUTUMN = [f"2026-10-25T{hour:02d}:00" for hour in (0, 1, 2, 5, 6)]
"""Hours over which they go back, with a gap of two."""


@dataclass(frozen=True)
class Ui:
    """The web interface on a data directory."""

    url: str
    data: Path

    def ask(self, text: str, **variables: object) -> Any:
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def launch(self, assets: Sequence[str], partitions: Sequence[str], config: dict | None = None) -> str:
        """Launch a backfill; returns its id."""
        params = {"assetSelection": [{"path": [name]} for name in assets], "partitionNames": list(partitions)}
        if config is not None:
            params["runConfigData"] = config
        launched = self.ask(
            """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
                 __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
            params=params,
        )["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return launched["backfillId"]

    def start(self, job: str, config: dict) -> None:
        """Start a job as the launchpad does."""
        selector = {
            "repositoryLocationName": "rl_assets",
            "repositoryName": "__repository__",
            "pipelineName": job,
        }
        launched = self.ask(
            """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
                 __typename ... on PythonError { message } } }""",
            params={"selector": selector, "runConfigData": config, "mode": "default"},
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched

    def wait_for(self, *backfills: str) -> None:
        """Wait until backfills have succeeded. The daemon looks after them every 30 s, after all that there are."""

        def state(backfill: str) -> str:
            found = self.ask(
                """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
                     ... on PartitionBackfill { status } } }""",
                id=backfill,
            )
            return found["partitionBackfillOrError"]["status"]

        ends = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")
        until(lambda: all(state(backfill) in ends for backfill in backfills))
        assert {state(backfill) for backfill in backfills} == {"COMPLETED_SUCCESS"}

    def runs(self, backfill: str) -> list[tuple]:
        """(status, first partition, last partition) of the runs of a backfill, in order of partitions."""
        return query(
            self.data,
            f"""SELECT r.status, coalesce(p.value, a.value), coalesce(p.value, b.value) FROM runs AS r
                JOIN run_tags AS t ON t.run_id = r.run_id AND t.key = 'dagster/backfill' AND t.value = '{backfill}'
                LEFT JOIN run_tags AS p ON p.run_id = r.run_id AND p.key = 'dagster/partition'
                LEFT JOIN run_tags AS a ON a.run_id = r.run_id AND a.key = 'dagster/asset_partition_range_start'
                LEFT JOIN run_tags AS b ON b.run_id = r.run_id AND b.key = 'dagster/asset_partition_range_end'
                ORDER BY 2""",
            dagster=True,
        )


@pytest.fixture
def ui(address: str, looped: Path, late_hour: str) -> Ui:
    """Its daemon notices the late hour while other tests are at work."""
    return Ui(address, looped)


def sets(data: Path, largest: int) -> dict[str, set[str]]:
    """Ids of the judgement sets of each hour whose largest group has so many members."""
    found: dict[str, set[str]] = {}
    members = "SELECT max(jsonb_array_length(g -> 'trajectory_ids')) FROM jsonb_array_elements(body -> 'groups') AS g"
    of_size = f"SELECT window_id, id FROM rl_assets.judgement_sets WHERE ({members}) = {largest}"
    for window, judgement_set in query(data, of_size):
        found.setdefault(window, set()).add(judgement_set)
    return found


def learned(data: Path) -> list[list[tuple]]:
    """What no backfill may change: claims, models, evaluations, states of batches and the champion."""
    claims = """SELECT o.batch_id, count(*), md5(string_agg(e.trajectory_id, ',' ORDER BY e.trajectory_id))
        FROM rl_assets.offers AS o JOIN rl_assets.offered_episodes AS e ON e.offer_id = o.id
        WHERE o.batch_id IS NOT NULL GROUP BY 1 ORDER BY 1"""
    questions = (
        claims,
        "SELECT step, digest, batch_id, state FROM rl_assets.models ORDER BY step",
        "SELECT count(*) FROM rl_assets.evaluations",
        "SELECT id, state FROM rl_assets.batches ORDER BY id",
        "SELECT step FROM rl_assets.champion",
    )
    return [query(data, question) for question in questions]


def test_hours_are_read_and_judged_again_and_an_old_batch_stays_the_model_that_it_is(ui: Ui):
    before = sets(ui.data, 8)
    in_time = """SELECT DISTINCT "windowId" FROM trajectories WHERE id NOT LIKE 'late-%' ORDER BY 1"""
    played = [window for (window,) in query(ui.data, in_time)]
    assert before.keys() == set(played)
    batch = query(ui.data, "SELECT id FROM rl_assets.batches ORDER BY created_at LIMIT 1")[0][0]
    # A loop may have claimed a batch just before it ended, which is trained now.
    until(lambda: not query(ui.data, "SELECT 1 FROM rl_assets.batches WHERE state NOT IN ('promoted', 'rejected')"))
    kept = learned(ui.data)
    assert all(kept)

    late = [SPRING[1], SPRING[2], AUTUMN[1]]
    for hour in late:
        record_late(ui.data, hour)
    # The open hour is a partition too, and the same groups judged by the same judge are the same judgement set.
    hours = ui.launch(WINDOW_ASSETS, sorted({*SPRING, *AUTUMN, *played, window_of(datetime.now(UTC))}))
    # Both write the groups of the played hours; the pool of the judge has one after the other do so.
    smaller = ui.launch(WINDOW_ASSETS[1:], played, {"resources": {"judge": {"config": {"group_size": 4}}}})
    old = ui.launch(("training_batches", "trained_models", "benchmark_evaluations"), [batch])
    ui.wait_for(hours, smaller, old)
    runs = ui.runs(hours)
    assert runs[:3] == [
        ("SUCCESS", SPRING[0], SPRING[-1]),
        ("SUCCESS", AUTUMN[0], AUTUMN[2]),
        ("SUCCESS", AUTUMN[3], AUTUMN[4]),
    ]
    assert {status for status, *_ in [*runs[3:], *ui.runs(smaller), *ui.runs(old)]} == {"SUCCESS"}
    hours_judged = query(ui.data, "SELECT window_id, count(*) FROM rl_assets.judgement_sets GROUP BY 1")
    assert {*SPRING, *AUTUMN} <= {window for window, count in hours_judged if count == 1}
    assert set(late) <= sets(ui.data, 1).keys()
    assert sets(ui.data, 8) == before
    assert {window: len(judged) for window, judged in sets(ui.data, 4).items()} == dict.fromkeys(played, 1)
    assert learned(ui.data) == kept
    twice = query(ui.data, "SELECT trajectory_id FROM rl_assets.offered_episodes GROUP BY 1 HAVING count(*) > 1")
    assert twice == []


def test_a_late_row_of_an_old_hour_is_noticed_and_read_once(ui: Ui, late_hour: str):
    until(lambda: len(sets(ui.data, 1).get(late_hour, ())) == 1)
    noticed = f"""SELECT count(*) FROM run_tags AS p JOIN run_tags AS s USING (run_id)
                  WHERE (p.key, p.value) = ('dagster/partition', '{late_hour}')
                    AND (s.key, s.value) = ('dagster/sensor_name', 'trajectory_window_sensor')"""
    assert query(ui.data, noticed, dagster=True) == [(1,)]


def test_a_batch_is_trained_once_more_as_a_branch_that_the_gate_decides_upon(ui: Ui):
    ((first, base),) = query(ui.data, "SELECT id, base_step FROM rl_assets.batches ORDER BY created_at LIMIT 1")
    claims, models, *_ = learned(ui.data)
    ui.start("retrain", {"ops": {"train_batch_again": {"config": {"batch": first}}}})
    ended = f"""SELECT m.step, m.parent_step, b.state, m.state IN ('champion', 'rejected') FROM rl_assets.batches AS b
                JOIN rl_assets.models AS m ON m.batch_id = b.id
                WHERE b.branch_of = '{first}' AND b.state IN ('promoted', 'rejected')"""
    until(lambda: bool(query(ui.data, ended)))
    assert query(ui.data, ended) == [(len(models), base, query(ui.data, ended)[0][2], True)]
    now_claims, now_models, *_ = learned(ui.data)
    assert now_claims == claims
    assert [row[:3] for row in now_models[: len(models)]] == [row[:3] for row in models]
    decided = f"""SELECT count(*) FROM rl_assets.evaluations AS e JOIN rl_assets.batches AS b ON b.id = e.batch_id
                  WHERE b.branch_of = '{first}'"""
    assert query(ui.data, decided) == [(1,)]
