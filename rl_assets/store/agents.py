"""The agents that the harness records under: rows of Babylon's "User", found again by their user name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import psycopg

from rl_assets.errors import DatabaseError
from rl_assets.store.episodes import new_ids
from rl_assets.store.record import naive

PREFIX = "rl-harness-"


def provision_agents(conn: psycopg.Connection, names: Sequence[str]) -> dict[str, str]:
    """The agent id of each name, as user `rl-harness-<name>`; those that are missing are created, marked as tests.

    Raises DatabaseError if a user of that name is not an agent.
    """
    wanted = sorted(set(names))
    users = [PREFIX + name for name in wanted]
    with conn.transaction():
        conn.execute(
            """INSERT INTO "User" ("id", "username", "displayName", "isAgent", "isTest", "updatedAt")
               SELECT id, username, username, true, true, %s FROM unnest(%s::text[], %s::text[]) AS new (id, username)
               ON CONFLICT ("username") DO NOTHING""",
            [naive(datetime.now(UTC)), new_ids(len(users)), users],
        )
        rows = conn.execute(
            'SELECT "username", "id", "isAgent" FROM "User" WHERE "username" = ANY(%s)', [users]
        ).fetchall()
    people = sorted(username for username, _, is_agent in rows if not is_agent)
    if people:
        raise DatabaseError(
            f"user {people[0]} exists and is not an agent; rename it, for the harness plays under this name"
        )
    return {username.removeprefix(PREFIX): identity for username, identity, _ in rows}
