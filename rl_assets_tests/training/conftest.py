"""W&B Training on loopback, for tests of training and play there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
