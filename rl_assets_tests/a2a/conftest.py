from __future__ import annotations

from collections.abc import Iterator

import pytest

from rl_assets_tests.a2a.sdk import Servers


@pytest.fixture
def serve() -> Iterator[Servers]:
    """Serves markets on loopback; each call gives a running one."""
    servers = Servers()
    yield servers
    servers.stop()
