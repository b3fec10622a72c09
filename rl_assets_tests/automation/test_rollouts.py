from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from rl_assets.automation.jobs import rollback_job
from rl_assets.automation.rollouts import prune_job, rollout_sensor
from rl_assets.registry.checkpoints import base_path
from rl_assets.registry.models import champion_step, list_models
from rl_assets.resources import Database, Lake, Trainer
from rl_assets.training.trigger import claim
from rl_assets_tests.registry.made import LINE
from rl_assets_tests.registry.played import begun, play_beside
from rl_assets_tests.registry.test_retention import rejected


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as one:
        yield one


def tick(instance: dg.DagsterInstance, url: str) -> dg.SensorResult:
    resources = {"database": Database(url=url), "trainer": Trainer(model_line=LINE)}
    with dg.build_sensor_context(instance=instance, resources=resources) as context:
        result = rollout_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def skipped(result: dg.SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def test_the_sensor_waits_requests_the_next_stage_once_and_takes_back_at_once(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    assert skipped(tick(instance, postgres_url)) == f"no candidate of {LINE} is on its way"
    rollout = begun(conn, tmp_path)
    assert skipped(tick(instance, postgres_url)).startswith("step 1 is with 10 % of the agents: 0 pairs")
    play_beside(conn, [1.0] * 300, [0.0] * 300)
    (request,) = tick(instance, postgres_url).run_requests or []
    assert request.run_key == f"rollout-{rollout.id}:0:advance:300"
    (again,) = tick(instance, postgres_url).run_requests or []
    assert again.run_key == request.run_key
    assert champion_step(conn, LINE) == 0

    play_beside(conn, [-240.0] * 300, [0.0] * 300)
    (after,) = tick(instance, postgres_url).run_requests or []
    assert after.run_key == f"rollout-{rollout.id}:0:rollback:600"
    assert {model.step: model.state for model in list_models(conn, LINE)} == {0: "champion", 1: "rejected"}
    assert skipped(tick(instance, postgres_url)) == f"no candidate of {LINE} is on its way"


def test_training_waits_for_the_end_of_a_rollout(conn: psycopg.Connection, tmp_path: Path):
    begun(conn, tmp_path)
    for forced_by in (None, "a person"):
        found = claim(conn, model_line=LINE, minimum=10, forced_by=forced_by)
        held = f"step 1 of {LINE} is with 10 % of the agents; training waits for its end"
        assert (found.batch, found.reason.startswith(held)) == (None, True)


def test_one_job_of_the_ui_rolls_a_rollout_back(
    conn: psycopg.Connection, postgres_url: str, instance: dg.DagsterInstance, tmp_path: Path
):
    begun(conn, tmp_path)
    result = rollback_job.execute_in_process(
        instance=instance,
        resources={"database": Database(url=postgres_url), "trainer": Trainer(model_line=LINE)},
        run_config={"ops": {"roll_back_champion": {"config": {"reason": "a person says so"}}}},
    )
    assert result.success
    assert {model.step: model.state for model in list_models(conn, LINE)} == {0: "champion", 1: "rejected"}


def test_a_job_prunes(
    conn: psycopg.Connection,
    postgres_url: str,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path / "elsewhere"))
    checkpoints = base_path(tmp_path / "data", LINE).parent
    checkpoints.parent.mkdir(parents=True)
    checkpoints.symlink_to(tmp_path / LINE)
    begun(conn, tmp_path)
    rejected(conn, tmp_path, 2, 3)

    def run(**config: object) -> bool:
        return prune_job.execute_in_process(
            instance=instance,
            resources={
                "database": Database(url=postgres_url),
                "lake": Lake(directory=str(tmp_path / "data")),
                "trainer": Trainer(model_line=LINE),
            },
            run_config={"ops": {"prune_checkpoints": {"config": {"keep": 1, **config}}}},
        ).success

    assert run(dry_run=True)
    assert (tmp_path / LINE / "0002").is_dir()
    assert run()
    assert sorted(path.name for path in (tmp_path / LINE).iterdir()) == ["0000", "0001", "0003"]
