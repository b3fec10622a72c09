"""The whole way with a key for W&B: play, judge, train, gate, deploy, on loopback."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from rl_assets import harness
from rl_assets.agents.line_player import agent_of
from rl_assets.agents.prompt import HOLD_TEXT, legal_actions
from rl_assets.agents.remote import NoAnswer
from rl_assets.agents.runner import Assignment, play
from rl_assets.automation.partitions import BATCHES
from rl_assets.definitions import build_defs
from rl_assets.episodes import Policy
from rl_assets.errors import ConfigurationError
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.registry.checkpoints import RemoteCheckpoint
from rl_assets.registry.models import list_models
from rl_assets.resources import Database, Lake
from rl_assets.settings import Settings
from rl_assets.store.episode_files import read_episodes_parquet
from rl_assets.store.episodes import read_episodes
from rl_assets.store.ledger import get_batch, record_judgements
from rl_assets.training.manifest import Manifest
from rl_assets.training.trigger import claim
from rl_assets_tests.registry.made import GATE
from rl_assets_tests.registry.test_assets import metadata, said
from rl_assets_tests.store.waiting import judged
from rl_assets_tests.training.wandb_server import LoopbackWandb

pytestmark = pytest.mark.usefixtures("undrawn")

STEP_0 = RemoteCheckpoint("wandb-artifact:///market-agents/rl-assets/line:step0")


def sometimes_buys(body: dict[str, Any]) -> str:
    return legal_actions(WorldConfig())[body["seed"] % 5]


def test_with_a_key_everything_is_played_and_trained_at_wandb(
    conn: psycopg.Connection, postgres_url: str, wandb: LoopbackWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RL_ASSETS_DATA", str(tmp_path))
    wandb.says = sometimes_buys
    settings = Settings.from_env()
    assert (settings.backend, settings.model_line) == ("serverless", "babylon-agent-serverless")
    resources = {"database": Database(url=postgres_url), "lake": Lake(directory=str(tmp_path))}
    defs, instance = build_defs(resource_overrides=resources), dg.DagsterInstance.ephemeral()

    def materialize(*names: str, partition_key: str | None = None) -> dg.ExecuteInProcessResult:
        result = defs.resolve_job_def("training").execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in names],
            partition_key=partition_key,
            instance=instance,
            raise_on_error=False,
        )
        assert result.success, said(result)
        return result

    model = harness.live_model(conn, settings, lambda *_: None)
    assert model.checkpoint_path == RemoteCheckpoint(
        f"wandb-artifact:///market-agents/rl-assets/{settings.model_line}:step0"
    )
    plan = harness.Plan(snapshots=2, siblings=2, seed=1, agents=(harness.MODEL,), gate_snapshots=0)
    played = harness.run(conn, settings, plan, model, lambda *_: None)
    assert len(played.trainable_ids) == 4
    assert {body["model"] for body in wandb.asked} == {model.checkpoint_path}
    harness.provide(conn, settings, "gate", GATE)
    episodes = read_episodes(conn, played.trajectory_ids)
    window = str(episodes[played.trajectory_ids[0]].window_id)
    record_judgements(conn, judged(list(episodes.values()), window=window))
    batch = claim(conn, model_line=settings.model_line, minimum=4, forced_by="a test").batch
    assert batch is not None
    instance.add_dynamic_partitions(str(BATCHES.name), [batch.id])

    trained = materialize("training_batches", "trained_models", partition_key=batch.id)
    claimed = metadata(trained, "training_batches")
    by_snapshot = claimed["episodes_by_snapshot"]
    assert isinstance(by_snapshot, dg.TableMetadataValue)
    claimed_of = Counter(str(episodes[i].snapshot_id) for i in Manifest.from_json(batch.manifest).trajectory_ids)
    assert {row.data["snapshot"]: row.data["count"] for row in by_snapshot.records} == claimed_of
    assert Path(str(claimed["file"].value)) == tmp_path / "batches" / batch.id / "episodes.parquet"
    assert claimed["trained_models"].value == (
        f"http://127.0.0.1:3000/assets/trained_models?view=partitions&partition={batch.id}"
    )
    shown = metadata(trained, "trained_models")
    assert (shown["backend"].value, shown["step"].value) == ("serverless", 1)
    assert shown["checkpoint"].value == f"wandb-artifact:///market-agents/rl-assets/{settings.model_line}:step1"
    materialize("trained_models", partition_key=batch.id)
    assert len(wandb.jobs) == 1
    materialize("benchmark_evaluations", "deployed_model", partition_key=batch.id)
    gate = read_episodes_parquet(tmp_path / "batches" / batch.id / "evaluation.parquet")
    assert {Policy(settings.model_line, step) for step in (0, 1)} <= {episode.policy for episode in gate}
    assert get_batch(conn, batch.id).state == "rejected"
    assert [(m.step, m.state) for m in list_models(conn, settings.model_line)] == [(1, "rejected"), (0, "champion")]


def made(wandb: LoopbackWandb) -> None:
    from rl_assets.settings import ServerlessSettings
    from rl_assets.training.remote_models import ensure_remote_base

    assert ensure_remote_base(ServerlessSettings.from_env(), "line").path == STEP_0


def played(**rest: Any) -> list[Any]:
    worlds = [generate("train", seed) for seed in (3, 4)]
    agent = agent_of(STEP_0, Policy("line", 0))
    ids = lambda n: [f"t{i}" for i in range(n)]  # noqa: E731
    return play([Assignment(agent, "a", 2)], worlds, seed=1, new_ids=ids, **rest)


def test_play_at_wandb_is_recorded_with_tokens_under_the_line_and_step(wandb: LoopbackWandb):
    made(wandb)
    episodes = played()
    assert [str(e.policy) for e in episodes] == ["line@0"] * 4
    assert all(e.not_trainable is None for e in episodes)
    assert episodes[0].steps[0].token_ids == tuple(map(ord, HOLD_TEXT))
    assert len({body["seed"] for body in wandb.asked}) == len(wandb.asked) == sum(len(e.steps) for e in episodes)
    assert [m["role"] for m in wandb.asked[-1]["messages"]][:3] == ["system", "user", "assistant"]


def test_tokens_without_ids_cannot_be_trained_on(wandb: LoopbackWandb):
    made(wandb)
    wandb.tokens = "word"
    assert {episode.not_trainable for episode in played()} == {"no_token_ids"}


def test_an_outage_is_no_play_at_all(wandb: LoopbackWandb):
    made(wandb)
    wandb.models.clear()
    with pytest.raises(NoAnswer, match="404"):
        played()


def test_without_a_key_a_model_at_wandb_does_not_play(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="set WANDB_API_KEY"):
        agent_of(STEP_0, Policy("line", 0))
