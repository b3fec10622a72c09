"""Machines of different versions keep each other out."""

from __future__ import annotations

import psycopg

from rl_assets.registry.rows import lock
from rl_assets.store.database import connect
from rl_assets.store.locks import Lock, session_lock, transaction_lock

FIRST = 0x726C_0001
BY_NAME = {Lock.AGENT, Lock.WINDOW}


def test_the_numbers_are_those_of_every_version():
    order = (Lock.MIGRATION, Lock.BUDGET, Lock.LEDGER, Lock.AGENT, Lock.OUTCOMES, Lock.MIRROR, Lock.WINDOW)
    assert [int(one) for one in order] == list(range(FIRST, FIRST + 7))
    assert set(Lock) == set(order)


def test_what_an_older_version_asks_for_is_held(conn: psycopg.Connection, postgres_url: str):
    def free(query: str) -> bool:
        row = older.execute(f"SELECT pg_try_advisory_xact_lock({query})").fetchone()  # pyright: ignore
        return row is not None and row[0]

    with connect(postgres_url) as older:
        with conn.transaction():
            lock(conn, "line")
            assert not free("hashtextextended('rl_assets.models ' || 'line', 0)")
            for one in set(Lock) - BY_NAME:
                transaction_lock(conn, one)
                assert not free(str(int(one)))
        for one in BY_NAME:
            with session_lock(conn, one, "name"), session_lock(older, one, "name", wait=False) as held:
                assert not held
                assert not free(f"{int(one)}, hashtext('name')")
