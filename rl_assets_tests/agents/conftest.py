from __future__ import annotations

from collections.abc import Iterator

import pytest

from rl_assets_tests.agents.endpoint_server import LoopbackModel, loopback_model


@pytest.fixture
def model() -> Iterator[LoopbackModel]:
    with loopback_model() as server:
        yield server
