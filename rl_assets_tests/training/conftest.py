"""What tests of training share: W&B Training on loopback, a weak policy, and one batch that it played."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl_assets.episodes import Episode
from rl_assets.registry.checkpoints import base_path
from rl_assets.training.base import ensure_base_policy
from rl_assets_tests.training.made import LINE, WEAK, played
from rl_assets_tests.training.wandb_server import BASE, KEY, LoopbackWandb, loopback_wandb


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackWandb]:
    """A server that the environment names; nothing else is asked."""
    with loopback_wandb() as server:
        for name, value in {
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "disabled",
            "SERVERLESS_BASE_URL": server.url,
            "SERVERLESS_BASE_MODEL": BASE,
        }.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with step 0 of a line that has imitated little. Not to be written to."""
    data = tmp_path_factory.mktemp("weak")
    ensure_base_policy(data, LINE, warm_start=WEAK)
    return data


@pytest.fixture(scope="session")
def batch(weak: Path) -> list[Episode]:
    """64 episodes of step 0 on eight snapshots."""
    return played(base_path(weak, LINE), range(8))


@pytest.fixture
def data(weak: Path, tmp_path: Path) -> Path:
    """A data directory of the test's own, with the same step 0."""
    shutil.copytree(weak, tmp_path / "data")
    return tmp_path / "data"
