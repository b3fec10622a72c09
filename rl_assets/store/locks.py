"""Every advisory lock that is taken in the database: its number and what it guards.

A number never changes, and is never given to another lock: running processes of an older version must still keep out
those of a newer one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, unique

import psycopg


@unique
class Lock(IntEnum):
    """AGENT and WINDOW are classes of locks, one for each name (`session_lock`)."""

    MIGRATION = 0x726C_0001
    """Migrations, one after the other."""
    BUDGET = 0x726C_0002
    """A judge's budget, while it is looked at and reserved from: two processes cannot both take the rest."""
    LEDGER = 0x726C_0003
    """The ledger, until a writer of it commits."""
    AGENT = 0x726C_0004
    """A live agent, by its id, while it is played."""
    OUTCOMES = 0x726C_0005
    """`market_outcomes`, until a writer of it commits."""
    MIRROR = 0x726C_0006
    """Babylon's rows of trajectories: two writers that have some in common would wait for each other."""
    WINDOW = 0x726C_0007
    """A window, by its id, while a judgement set of it is recorded."""


LINES = "rl_assets.models "
"""Before a line's name, what is hashed to the key of its lock in the registry (`registry.rows.lock`)."""


def transaction_lock(conn: psycopg.Connection, lock: Lock) -> None:
    """Wait for a lock and hold it until the transaction ends."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", [int(lock)])


@contextmanager
def session_lock(conn: psycopg.Connection, lock: Lock, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a class and a name, for as long as the block runs or the connection lives.

    Without waiting, gives False where somebody else holds it.
    """
    key = [int(lock), name]
    held = True
    if wait:
        conn.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", key)
    else:
        row = conn.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", key).fetchone()
        held = row is not None and bool(row[0])
    try:
        yield held
    finally:
        if held and not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", key)
