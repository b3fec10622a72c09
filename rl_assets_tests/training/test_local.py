"""ART's backend for a GPU, by its own classes, with a service in place of the one that needs CUDA."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rl_assets.agents.line_player import agent_of
from rl_assets.agents.runner import Assignment, play
from rl_assets.episodes import Episode, Policy
from rl_assets.errors import ConfigurationError, MalformedInput, MissingCheckpoint
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.registry.checkpoints import ADAPTER, base_path, checkpoint_digest
from rl_assets.settings import LocalSettings
from rl_assets.training import local
from rl_assets.training.inference import InferenceServer
from rl_assets.training.local import ensure_local_base
from rl_assets.training.service import GRPOTrainingService
from rl_assets_tests.training.made import LINE, by_id, ids, judged, rewarded


class Service:
    """What `art.unsloth.service.UnslothService` does to a directory, and a server that speaks for the base model."""

    begun: ClassVar[list[Service]] = []

    def __init__(self, name: str, base_model: str, config: Any, directory: str) -> None:
        self.name, self.base_model, self.config, self.directory = name, base_model, config, Path(directory)
        self.seen: dict[str, Any] = {}
        self.closed = False
        Service.begun.append(self)

    def steps(self) -> list[int]:
        root = self.directory / "checkpoints"
        return sorted(int(path.name) for path in root.iterdir()) if root.is_dir() else []

    async def start_openai_server(self, config: Any) -> tuple[str, int]:
        if not self.steps():
            self._save(0)
        served = self.directory / "served"
        served.mkdir()
        for step in self.steps():
            os.symlink(self.base_model, served / f"{step:04d}")
        self._server = InferenceServer(self.name, served)
        self._server.start()
        return self._server.host, self._server.port

    async def train(self, tensors: Any, config: Any, experimental: Any, verbose: bool) -> AsyncIterator[dict]:
        self.seen = {"sequences": tensors["num_sequences"], "rate": config.learning_rate, **experimental}
        for update in range(2):
            yield {"loss/train": 0.5 - update / 10, "loss/entropy": 1.0}
        self._save(self.steps()[-1] + 1)

    def _save(self, step: int) -> None:
        path = self.directory / "checkpoints" / f"{step:04d}"
        path.mkdir(parents=True)
        (path / ADAPTER).write_text(json.dumps({"peft_type": "LORA", "step": step}))

    def close(self) -> None:
        self._server.stop()
        self.closed = True


@pytest.fixture
def settings(weak: Path, monkeypatch: pytest.MonkeyPatch) -> LocalSettings:
    monkeypatch.setattr(local, "unsloth_service", Service)
    monkeypatch.setattr(Service, "begun", [])
    return LocalSettings(base_model=str(base_path(weak, LINE)))


def test_a_line_begins_with_an_adapter_that_plays_through_its_server(settings: LocalSettings, tmp_path: Path):
    base = ensure_local_base(tmp_path, LINE, settings)
    assert sorted(path.name for path in base.path.iterdir()) == [ADAPTER, "local.json"]
    assert ensure_local_base(tmp_path, LINE, settings) == base
    assert len(Service.begun) == 1
    with pytest.raises(ConfigurationError, match="set LOCAL_BASE_MODEL to it, or name a new line"):
        ensure_local_base(tmp_path, LINE, LocalSettings(base_model="another"))

    agent = agent_of(base.path, Policy(LINE, 0))
    episodes = play([Assignment(agent, "a", 2)], [generate("train", 1, WorldConfig(ticks=2))], seed=1, new_ids=ids)
    assert [(e.policy, e.not_trainable, len(e.steps)) for e in episodes] == [(Policy(LINE, 0), None, 2)] * 2
    assert [service.closed for service in Service.begun] == [True, True]  # the GPU is left to whoever is next


def test_a_base_model_that_is_not_here_is_named_and_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "is_offline_mode", lambda: True)
    with pytest.raises(ConfigurationError, match=r"Qwen/Qwen2\.5-3B-Instruct is neither a directory nor in the cache"):
        ensure_local_base(tmp_path, LINE, LocalSettings())
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_trained_on_its_base_step_whichever_step_is_newest(
    settings: LocalSettings, tmp_path: Path, batch: list[Episode], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "k")  # with it, ART by itself would begin a run of its own at W&B
    ensure_local_base(tmp_path, LINE, settings)
    service = GRPOTrainingService(tmp_path, LINE, backend="local")
    first = service.train(judged(batch), by_id(batch))
    assert (first.step, first.backend, [p["loss/train"] for p in first.curve]) == (1, "local", [0.5, 0.4])
    assert first.metrics["loss/train"] == pytest.approx(0.45)
    assert service.train(judged(batch), by_id(batch)).checkpoint_digest == first.checkpoint_digest

    kept = checkpoint_digest(service.checkpoint(1))
    second = service.train(judged(batch, batch_id="batch-fedcba9876543210"), by_id(batch))
    assert (second.step, second.base_step) == (2, 0)
    seen = Service.begun[-1]
    assert seen.config["init_args"]["model_name"].endswith("/0000")
    assert seen.seen["sequences"] > 0
    assert {name: seen.seen[name] for name in ("rate", "ppo", "epsilon", "epsilon_high", "scale_rewards")} == {
        "rate": 5e-6,
        "ppo": True,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "scale_rewards": False,
    }
    assert checkpoint_digest(service.checkpoint(1)) == kept
    assert not any((tmp_path / "art" / "work").iterdir())


def test_what_a_killed_training_left_is_begun_anew(settings: LocalSettings, tmp_path: Path, batch: list[Episode]):
    ensure_local_base(tmp_path, LINE, settings)
    manifest = judged(batch)
    (tmp_path / "art" / "work" / manifest.batch_id / "art" / "half").mkdir(parents=True)
    assert GRPOTrainingService(tmp_path, LINE, backend="local").train(manifest, by_id(batch)).step == 1


def test_what_cannot_be_trained_leaves_no_checkpoint(settings: LocalSettings, tmp_path: Path, batch: list[Episode]):
    ensure_local_base(tmp_path, LINE, settings)
    service = GRPOTrainingService(tmp_path, LINE, backend="local")
    alike = rewarded(judged(batch), {e.trajectory_id: 0.5 for e in batch})
    with pytest.raises(MalformedInput, match="holds nothing to learn from"):
        service.train(alike, by_id(batch))
    monstrous = pytest.MonkeyPatch()
    with monstrous.context() as patch:
        patch.setattr(local, "MOST_TOKENS", 10)
        with pytest.raises(MalformedInput, match="more than the 10 that ART trains on"):
            service.train(judged(batch), by_id(batch))
    (service.checkpoint(0) / ADAPTER).unlink()
    with pytest.raises(MissingCheckpoint, match="is missing; restore it"):
        service.train(judged(batch), by_id(batch))
    assert [path.name for path in service.checkpoint(0).parent.iterdir()] == ["0000"]


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="it is installed here")
def test_the_service_itself_needs_arts_extra():
    with pytest.raises(ModuleNotFoundError, match=r"trl|peft|unsloth"):
        local.unsloth_service("line", "base", local.adapter_config("base", "nowhere"), "nowhere")
