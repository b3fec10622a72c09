"""A Postgres of its own for a benchmark, with Babylon's tables and ours, which vanishes with its directory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl_assets.store.database import migrate
from rl_assets.store.embedded import EmbeddedPostgres


@contextmanager
def migrated_server() -> Iterator[str]:
    """The URL of its database. It is as durable as a server in production."""
    with tempfile.TemporaryDirectory(prefix="rl-assets-bench-") as directory:
        Path(directory).chmod(0o755)  # the account that runs the server for root has to enter
        server = EmbeddedPostgres(Path(directory) / "postgres", elsewhere=Path(directory) / "elsewhere")
        server.up()
        try:
            migrate(server.url())
            yield server.url()
        finally:
            server.down()
