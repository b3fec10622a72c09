"""Every version of a line and the reference agents, ranked by a run of the leaderboard's job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner

from rl_assets import harness
from rl_assets.agents.reference import REFERENCE_AGENTS
from rl_assets.assets import leaderboard
from rl_assets.commands.compare import compare
from rl_assets.definitions import build_defs
from rl_assets.registry.evaluate import evaluate
from rl_assets.registry.models import register_base
from rl_assets.registry.standings import Standings, play_line
from rl_assets.resources import Database, Lake
from rl_assets.settings import ServerlessSettings, Settings
from rl_assets.store.episode_files import read_episodes_parquet
from rl_assets.store.ledger import Batch
from rl_assets.training.remote_models import ensure_remote_base
from rl_assets_tests.registry.made import GATE, LINE, a_candidate
from rl_assets_tests.reports.pages import Page
from rl_assets_tests.training.wandb_server import BASE, KEY, loopback_wandb

pytestmark = pytest.mark.usefixtures("undrawn")

SEED, SIBLINGS = 3, 2


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "SEED", SEED)
    monkeypatch.setattr(leaderboard, "SIBLINGS", SIBLINGS)


def materialized(postgres_url: str, root: Path) -> tuple[dict[str, dg.MetadataValue], dg.AssetCheckEvaluation]:
    resources = {"database": Database(url=postgres_url), "lake": Lake(directory=str(root))}
    result = build_defs(resource_overrides=resources).resolve_job_def("leaderboard").execute_in_process()
    (event,) = result.asset_materializations_for_node("benchmark_leaderboard")
    (check,) = result.get_asset_check_evaluations()
    return dict(event.metadata), check


def rows(value: dg.MetadataValue) -> list[dict]:
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def test_versions_and_reference_agents_are_ranked_and_nothing_is_played_twice(
    conn: psycopg.Connection, postgres_url: str, batch: Batch, tmp_path: Path
):
    harness.provide(conn, Settings(tmp_path), "gate", GATE)
    broken = a_candidate(conn, tmp_path, 2)
    (Path(str(broken.checkpoint_path)) / "config.json").unlink()
    record = tmp_path / "batches" / batch.id / "evaluation.parquet"
    evaluate(conn, batch, tmp_path / "snapshots", record, most_snapshots=64, siblings=SIBLINGS, seed=SEED)
    before = read_episodes_parquet(record)

    shown, check = materialized(postgres_url, tmp_path)
    standings = {row["policy"]: row for row in rows(shown["leaderboard"])}
    assert set(standings) == {f"{LINE}@0", f"{LINE}@1", *REFERENCE_AGENTS}
    assert {name: standings[name]["state"] for name in (f"{LINE}@0", f"{LINE}@1", "hold")} == {
        f"{LINE}@0": "champion",
        f"{LINE}@1": "candidate",
        "hold": "reference",
    }
    assert standings["oracle"]["skill"] == 1.0
    assert len(rows(shown["pairs"])) == len(standings) * (len(standings) - 1) // 2
    assert [row["policy"] for row in rows(shown["left_out"])] == [f"{LINE}@2"]
    assert (check.check_name, check.passed) == ("oracle_leads_and_hold_is_zero", True)
    assert "data:image/png;base64" in str(shown["pnl_by_policy"].value)
    page = Page(Path(str(shown["report"].value)))
    assert page.faults == []
    assert f"{LINE}@0" in page.text

    played = read_episodes_parquet(tmp_path / "leaderboard" / "episodes.parquet")
    assert len(played) == len(GATE) * (2 * SIBLINGS + len(REFERENCE_AGENTS))
    assert shown["episodes_reused"].value == len(before)
    assert {e.trajectory_id for e in before} <= {e.trajectory_id for e in played}
    again, _ = materialized(postgres_url, tmp_path)
    assert again["episodes_reused"].value == len(played)
    assert read_episodes_parquet(tmp_path / "leaderboard" / "episodes.parquet") == played


def test_what_was_played_with_another_seed_is_played_again(
    conn: psycopg.Connection, postgres_url: str, batch: Batch, tmp_path: Path
):
    harness.provide(conn, Settings(tmp_path), "gate", GATE)
    record = tmp_path / "batches" / batch.id / "evaluation.parquet"
    evaluate(conn, batch, tmp_path / "snapshots", record, most_snapshots=64, siblings=SIBLINGS, seed=SEED + 1)
    shown, _ = materialized(postgres_url, tmp_path)
    assert shown["episodes_reused"].value == 0


def failure(postgres_url: str, root: Path) -> str:
    resources = {"database": Database(url=postgres_url), "lake": Lake(directory=str(root))}
    job = build_defs(resource_overrides=resources).resolve_job_def("leaderboard")
    result = job.execute_in_process(raise_on_error=False)
    assert not result.success
    (failed,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return str(failed)


def test_without_gate_snapshots_it_says_what_to_do(postgres_url: str, tmp_path: Path):
    assert "run `rl-assets snapshots generate --split gate`" in failure(postgres_url, tmp_path)


def test_nobody_is_ranked_on_a_snapshot_whose_truth_was_changed(
    conn: psycopg.Connection, postgres_url: str, tmp_path: Path
):
    harness.provide(conn, Settings(tmp_path), "gate", GATE)
    forged = sorted((tmp_path / "snapshots" / "sealed").glob("gate-*.json"))[0]
    truth = json.loads(forged.read_text())
    truth["outcomes"] = [not outcome for outcome in truth["outcomes"]]
    forged.write_text(json.dumps(truth))
    assert f"the sealed truth of {forged.stem} is not the one it was made with" in failure(postgres_url, tmp_path)
    assert not (tmp_path / "leaderboard").exists()


def test_versions_at_wandb_are_ranked_and_compared_like_others(
    conn: psycopg.Connection, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = replace(Settings(tmp_path), model_line=LINE)
    harness.provide(conn, settings, "gate", GATE)
    environment = {
        "WANDB_API_KEY": KEY,
        "SERVERLESS_BASE_MODEL": BASE,
        "TRAINING_MODEL_LINE": LINE,
        "RL_ASSETS_DATA": str(tmp_path),
        "DATABASE_URL": postgres_url,
        "DAGSTER_PG_URL": postgres_url,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with loopback_wandb() as wandb:
        monkeypatch.setenv("SERVERLESS_BASE_URL", wandb.url)
        base = ensure_remote_base(ServerlessSettings.from_env(), LINE)
        register_base(conn, LINE, base.path, base.digest, metrics={})

        def ranked() -> Standings:
            return play_line(
                conn,
                LINE,
                tmp_path / "snapshots",
                tmp_path / "leaderboard",
                lambda batch_id: tmp_path / batch_id,
                most_snapshots=64,
                siblings=SIBLINGS,
                seed=SEED,
                on_progress=lambda *_: None,
            )

        found = ranked()
        assert found.left_out == {}
        assert {s.policy for s in found.board.standings} == {f"{LINE}@0", *REFERENCE_AGENTS}
        assert len(found.episodes[f"{LINE}@0"]) == len(GATE) * SIBLINGS
        asked = len(wandb.asked)
        assert ranked().reused == sum(map(len, found.episodes.values()))
        assert len(wandb.asked) == asked

        snapshot, _ = found.worlds[0]
        arguments = ["hold", "model@0", "--snapshot", snapshot.id, "--out", str(tmp_path / "compared")]
        told = CliRunner().invoke(compare, arguments, standalone_mode=False)
        assert (told.exception, told.return_value) == (None, 0)
        assert f"{LINE}@0" in told.output
        assert {body["model"] for body in wandb.asked} == {base.path}

        monkeypatch.delenv("WANDB_API_KEY")
        assert "WANDB_API_KEY is not set" in ranked().left_out[f"{LINE}@0"]
        conn.execute(
            "INSERT INTO rl_assets.pruned_checkpoints (model_line, step, path, bytes) VALUES (%s, 0, '', 0)", [LINE]
        )
        # It is not looked at: where machines share a store, that would fetch it.
        assert ranked().left_out[f"{LINE}@0"] == "its checkpoint was pruned"
