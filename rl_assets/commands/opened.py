"""The database as a command needs it: up, migrated, and let go at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

    from rl_assets.settings import Settings


@contextmanager
def opened() -> Iterator[tuple[psycopg.Connection, Settings]]:
    """A connection and the settings that led to it. Raises ConfigurationError or DatabaseError."""
    from rl_assets.services import databases
    from rl_assets.settings import Settings
    from rl_assets.store.database import connect, migrate

    settings = Settings.from_env()
    with databases(settings) as urls:
        migrate(urls.babylon)
        with connect(urls.babylon) as conn:
            yield conn, settings
