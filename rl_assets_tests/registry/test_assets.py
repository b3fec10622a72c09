"""The assets that measure and deploy a candidate, as a run of the training job materializes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from rl_assets import harness
from rl_assets.automation.partitions import BATCHES
from rl_assets.definitions import build_defs
from rl_assets.registry.decisions import latest_evaluation
from rl_assets.registry.models import champion_step, list_models, rollback
from rl_assets.resources import Database, Lake
from rl_assets.settings import Settings
from rl_assets.store.episode_files import read_episodes_parquet
from rl_assets.store.ledger import Batch, get_batch
from rl_assets_tests.registry.made import GATE, LINE, evaluated
from rl_assets_tests.reports.pages import Page

pytestmark = pytest.mark.usefixtures("undrawn")

Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def run(conn: psycopg.Connection, postgres_url: str, batch: Batch, tmp_path: Path) -> Run:
    """Materializes assets by name, for the batch unless told otherwise."""
    harness.provide(conn, Settings(tmp_path), "gate", GATE)
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(str(BATCHES.name), [batch.id])
    defs = build_defs(
        resource_overrides={"database": Database(url=postgres_url), "lake": Lake(directory=str(tmp_path))}
    )

    def materialize(*names: str, partition_key: str | None = batch.id) -> dg.ExecuteInProcessResult:
        job = defs.resolve_job_def("training")
        return job.execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in names],
            partition_key=partition_key,
            instance=instance,
            raise_on_error=False,
        )

    return materialize


def said(result: dg.ExecuteInProcessResult) -> str:
    """Why a run failed."""
    return " ".join(
        str(event.step_failure_data.error) + str(event.step_failure_data.user_failure_data)
        for event in result.all_events
        if event.is_step_failure
    )


def metadata(result: dg.ExecuteInProcessResult, name: str) -> dict[str, dg.MetadataValue]:
    (event,) = result.asset_materializations_for_node(name)
    return dict(event.metadata)


def test_a_candidate_that_is_no_better_is_measured_turned_down_and_reported(
    conn: psycopg.Connection, run: Run, batch: Batch, tmp_path: Path
):
    result = run("benchmark_evaluations", "deployed_model")
    assert result.success, said(result)
    checks = {e.check_name: (e.passed, e.severity) for e in result.get_asset_check_evaluations()}
    assert checks["gate_opens"] == (False, dg.AssetCheckSeverity.WARN)
    assert checks["live_checkpoint_is_whole"][0]
    assert set(checks) == {"gate_opens", "still_trades", "live_checkpoint_is_whole"}

    found = latest_evaluation(conn, batch.id)
    assert found is not None
    shown = metadata(result, "benchmark_evaluations")
    assert shown["decision"].value == found.decision.reason
    assert shown["effect_dollars"].value == pytest.approx(found.decision.effect, abs=1e-4)
    assert shown["lower_bound_dollars"].value == "none"
    policies = shown["policies"]
    assert isinstance(policies, dg.TableMetadataValue)
    rows = {row.data["policy"]: row.data for row in policies.records}
    assert rows["hold"]["skill"] == 0.0
    assert rows["oracle"]["skill"] == 1.0
    assert set(rows) >= {f"{LINE}@0", f"{LINE}@1"}
    for name in ("pnl_by_policy", "paired_differences"):
        assert "data:image/png;base64" in str(shown[name].value)
    assert len(read_episodes_parquet(tmp_path / "batches" / batch.id / "evaluation.parquet")) > 0
    report = Path(str(shown["report"].value))
    assert report == tmp_path / "batches" / batch.id / "evaluation" / "report.html"
    assert f"PnL less that of {LINE}@0" in Page(report).text

    deployed = metadata(result, "deployed_model")
    assert (deployed["champion_before"].value, deployed["champion"].value) == (0, 0)
    at = f"http://127.0.0.1:3000/assets/{{}}?view=partitions&partition={batch.id}"
    for name in ("training_batches", "trained_models"):
        assert shown[name] == deployed[name] == dg.MetadataValue.url(at.format(name))
    assert deployed["benchmark_evaluations"] == dg.MetadataValue.url(at.format("benchmark_evaluations"))
    assert shown["deployed_model"] == dg.MetadataValue.url("http://127.0.0.1:3000/assets/deployed_model")
    report = Path(str(deployed["report"].value)).read_text(encoding="utf-8")
    assert batch.id in report
    assert "it takes 6" in report
    after = get_batch(conn, batch.id)
    assert after.state == "rejected"
    assert after.result is not None
    assert after.result["decision"] == found.decision.reason
    assert after.result["backend"] == "cpu"
    assert [model.state for model in list_models(conn, LINE)] == ["rejected", "champion"]


def test_what_the_gate_decided_is_carried_out_once(conn: psycopg.Connection, run: Run, batch: Batch):
    assert run("benchmark_evaluations").success
    (candidate, _) = list_models(conn, LINE)
    evaluated(conn, candidate, promote=True)  # a later evaluation, as if the gate had been played again
    first = run("deployed_model")
    assert first.success, said(first)
    shown = metadata(first, "deployed_model")
    assert (shown["champion_before"].value, shown["champion"].value, shown["version"].value) == (0, 1, "v1.0.1")
    assert shown["rollout"].value == "step 1 is watched at 100 %"
    assert "data:image/png;base64" in str(shown["lineage"].value)
    assert get_batch(conn, batch.id).state == "promoted"
    again = run("benchmark_evaluations", "deployed_model")
    assert again.success, said(again)
    assert "is promoted already" in str(metadata(again, "deployed_model")["decision"].value)
    assert champion_step(conn, LINE) == 1
    assert conn.execute("SELECT count(*) FROM rl_assets.champion_history").fetchone() == (2,)
    rollback(conn, LINE, "a test")
    assert run("deployed_model").success
    assert champion_step(conn, LINE) == 0


def test_a_run_without_a_batch_takes_the_one_that_waits(conn: psycopg.Connection, run: Run, batch: Batch):
    nothing = run("deployed_model", partition_key=None)
    assert nothing.success, said(nothing)
    assert metadata(nothing, "deployed_model")["decision"].value == "no batch waits to be decided upon"
    assert run("benchmark_evaluations").success
    result = run("deployed_model", partition_key=None)
    assert result.success, said(result)
    assert metadata(result, "deployed_model")["batch"].value == batch.id
    assert get_batch(conn, batch.id).state == "rejected"


@pytest.mark.parametrize("crash", ["before the decision", "before the ledger"])
def test_a_crash_at_any_point_is_healed_by_running_again(
    conn: psycopg.Connection, run: Run, batch: Batch, tmp_path: Path, crash: str
):
    record = tmp_path / "batches" / batch.id / "evaluation.parquet"
    (candidate, _) = list_models(conn, LINE)
    if crash == "before the decision":
        record.parent.mkdir(parents=True)
        record.write_bytes(b"half a file")
    else:
        evaluated(conn, candidate, promote=False)
    result = run("benchmark_evaluations", "deployed_model")
    assert result.success, said(result)
    assert get_batch(conn, batch.id).state == "rejected"
    assert conn.execute("SELECT count(*) FROM rl_assets.evaluations").fetchone() == (1,)
    assert read_episodes_parquet(record)


def test_a_decision_against_a_champion_that_is_gone_is_made_again(
    conn: psycopg.Connection, run: Run, batch: Batch, tmp_path: Path
):
    assert run("benchmark_evaluations").success
    # The champion changes while the candidate waits to be deployed.
    conn.execute(
        """INSERT INTO rl_assets.models (model_line, step, version, checkpoint_path, digest, parent_step, state)
           SELECT model_line, 2, 'v1.0.2', checkpoint_path, digest, 0, 'champion'
           FROM rl_assets.models WHERE step = 0"""
    )
    conn.execute("UPDATE rl_assets.champion SET step = 2, previous_step = 0")
    late = run("deployed_model")
    assert not late.success
    assert "the gate has not compared it with the champion, step 2" in said(late)
    assert get_batch(conn, batch.id).state == "evaluated"
    result = run("benchmark_evaluations", "deployed_model")
    assert result.success, said(result)
    found = latest_evaluation(conn, batch.id)
    assert found is not None
    assert (found.champion_step, get_batch(conn, batch.id).state) == (2, "rejected")


def test_a_gate_is_not_reported_on_the_truth_of_another_snapshot(run: Run, batch: Batch, tmp_path: Path):
    assert run("benchmark_evaluations").success
    report = tmp_path / "batches" / batch.id / "evaluation" / "report.html"
    report.unlink()
    one, other = sorted((tmp_path / "snapshots" / "sealed").glob("gate-*.json"))[:2]
    one.write_bytes(other.read_bytes())
    again = run("benchmark_evaluations")
    assert not again.success
    assert f"the sealed truth of {one.stem} is not the one it was made with" in said(again)
    assert not report.exists()


def test_a_batch_that_is_not_evaluated_is_not_deployed(conn: psycopg.Connection, run: Run, batch: Batch):
    result = run("deployed_model")
    assert not result.success
    assert f"{batch.id} has not been evaluated; materialize benchmark_evaluations of it first" in said(result)
    assert champion_step(conn, LINE) == 0


def test_the_evaluation_of_a_candidate_that_is_gone_fails_in_one_sentence(
    conn: psycopg.Connection, run: Run, batch: Batch
):
    conn.execute("UPDATE rl_assets.models SET digest = 'another' WHERE step = 1")
    result = run("benchmark_evaluations")
    assert not result.success
    assert "is not what was registered as babylon-agent step 1; restore it" in said(result)
    assert get_batch(conn, batch.id).state == "trained"
