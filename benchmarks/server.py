"""A Postgres of its own for a benchmark, with Babylon's tables and ours, which vanishes with its directory; and the CPU
that work on it takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

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


def cpu_of(conn: psycopg.Connection, work: Callable[[], object]) -> float:
    """Milliseconds of CPU that a piece of work takes, here and in the process that serves this connection (Linux)."""
    served = Path(f"/proc/{conn.info.backend_pid}/schedstat")

    def spent() -> float:
        return time.process_time_ns() / 1e6 + int(served.read_text().split()[0]) / 1e6

    before = spent()
    work()
    return spent() - before
