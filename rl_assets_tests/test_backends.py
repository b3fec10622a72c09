"""Where a line is trained, why there, and what is said where that cannot work, before anything is claimed."""

from __future__ import annotations

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner

from rl_assets import backends
from rl_assets.automation.runs import next_training
from rl_assets.backends import check, choose, local_lacks
from rl_assets.commands.train import train
from rl_assets.errors import ConfigurationError
from rl_assets.resources import Database, Trainer
from rl_assets.settings import Settings
from rl_assets.store.ledger import batches
from rl_assets.verify.areas import backend
from rl_assets_tests.store.waiting import LINE, a_champion, waiting


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing lacks."""
    monkeypatch.setattr(backends, "gpus", lambda: 1)
    monkeypatch.setattr(backends, "GPU_MODULES", ("json",))
    monkeypatch.setattr(backends, "version", lambda _: "2.10.0+cu128")
    monkeypatch.setenv("ART_VLLM_RUNTIME_BIN", "/usr/bin/true")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def chosen(**env: str) -> tuple[str, str]:
    settings = Settings.from_env(env)
    return settings.backend, settings.model_line


def test_without_a_setting_a_key_comes_first_then_a_gpu_then_the_cpu(gpu: None, monkeypatch: pytest.MonkeyPatch):
    runtime = {"ART_VLLM_RUNTIME_BIN": "/usr/bin/true"}
    assert choose({**runtime, "WANDB_API_KEY": "k"}) == backends.Choice("serverless", "WANDB_API_KEY is set")
    assert choose(runtime).why == "a CUDA GPU and openpipe-art[backend] are there"
    assert chosen(**runtime) == ("local", "babylon-agent-local")
    assert chosen(**runtime, TRAINING_BACKEND="cpu") == ("cpu", "babylon-agent")
    assert Settings.from_env({"TRAINING_BACKEND": "local"}).backend_why == "TRAINING_BACKEND says so"
    monkeypatch.setattr(backends, "gpus", lambda: 0)
    assert chosen(**runtime) == ("cpu", "babylon-agent")
    assert "the NVIDIA driver counts no GPU" in Settings.from_env(runtime).backend_why


def test_whatever_a_gpus_backend_lacks_is_named(gpu: None, monkeypatch: pytest.MonkeyPatch):
    assert local_lacks() == []
    assert local_lacks({"CUDA_VISIBLE_DEVICES": "", "ART_VLLM_RUNTIME_BIN": "x"}) == [
        "CUDA_VISIBLE_DEVICES hides every GPU"
    ]
    monkeypatch.setattr(backends, "GPU_MODULES", ("json", "unheard_of_a", "unheard_of_b"))
    monkeypatch.setattr(backends, "version", lambda _: "2.13.0+cpu")
    monkeypatch.setattr(backends.shutil, "which", lambda _: None)
    assert local_lacks({}) == [
        "unheard_of_a, unheard_of_b of openpipe-art[backend] are not installed",
        "torch 2.13.0+cpu is built without CUDA",
        "uv, with which ART installs vLLM, is not on PATH",
    ]


def test_nothing_is_claimed_for_a_backend_that_cannot_train_here(
    conn: psycopg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backends, "gpus", lambda: 0)
    a_champion(conn)
    waiting(conn, 4)
    trainer = Trainer(backend="local", model_line=LINE, min_trajectories=4)
    with dg.DagsterInstance.ephemeral() as instance:
        found = next_training(instance, Database(url=postgres_url), trainer)
    assert found.reason.startswith("the backend local cannot work here, since the NVIDIA driver counts no GPU")
    assert found.reason.endswith("or set TRAINING_BACKEND=cpu")
    assert found.batch is None
    assert batches(conn, model_line=LINE) == []
    with pytest.raises(ConfigurationError, match="since the NVIDIA driver counts no GPU"):
        trainer.base(None, lambda *_: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="since the NVIDIA driver counts no GPU"):
        trainer.service(None, conn)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("given", "stale"), [(None, 1), (0, 0), (2, 2)])
def test_a_trainer_is_as_stale_as_it_says_and_else_as_the_environment(
    given: int | None, stale: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRAINING_MOST_STALE", "1")
    assert Trainer(backend="cpu", most_stale=given).settings.most_stale == stale


@pytest.mark.parametrize(("given", "minimum"), [(0, 500), (40, 40)])
def test_a_trainer_has_the_threshold_that_it_says_and_else_the_environments(
    given: int, minimum: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRAINING_MIN_TRAJECTORIES", "500")
    assert Trainer(backend="cpu", min_trajectories=given).settings.min_trajectories == minimum


def test_the_command_line_refuses_before_it_opens_a_database(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "gpus", lambda: 0)
    monkeypatch.setenv("TRAINING_BACKEND", "local")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    raised = CliRunner().invoke(train, ["--force"]).exception
    assert isinstance(raised, ConfigurationError)
    assert "the backend local cannot work here" in str(raised)


def test_verify_shows_which_backend_it_is_and_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    found = backend(Settings.from_env({"TRAINING_BACKEND": "cpu"}))
    assert (found.state, found.detail) == ("pass", "cpu (TRAINING_BACKEND says so), base policy embedded")
    monkeypatch.setattr(backends, "gpus", lambda: 0)
    found = backend(Settings.from_env({"TRAINING_BACKEND": "local"}))
    assert found.state == "fail"
    assert "the NVIDIA driver counts no GPU" in found.remedy
    monkeypatch.setattr("rl_assets.verify.areas.smollm2_weights", lambda: None)
    found = backend(Settings.from_env({"TRAINING_BASE_POLICY": "smollm2"}))
    assert (found.state, found.remedy) == ("warn", backends.SMOLLM2_INSTALL)


def test_smollm2_has_a_line_of_its_own_and_stays_on_the_cpu():
    assert chosen(TRAINING_BASE_POLICY="smollm2") == ("cpu", "babylon-agent-smollm2")
    assert Trainer(base_policy="smollm2").line == "babylon-agent-smollm2"
    with pytest.raises(ConfigurationError, match="TRAINING_BASE_POLICY='llama' is unknown; set it to embedded or smol"):
        chosen(TRAINING_BASE_POLICY="llama")
    with pytest.raises(ConfigurationError, match=r"trainer\.backend='tpu' is unknown"):
        Trainer(backend="tpu").check()
    elsewhere = Settings.from_env({"TRAINING_BASE_POLICY": "smollm2", "WANDB_API_KEY": "k"})
    with pytest.raises(ConfigurationError, match=r"serverless \(WANDB_API_KEY is set\); set TRAINING_BACKEND=cpu"):
        check(elsewhere)
    with pytest.raises(ConfigurationError, match="needs WANDB_API_KEY, which is not set"):
        check(Settings.from_env({"TRAINING_BACKEND": "serverless"}))
