"""Recording the episodes of a finished room like all others, each under an agent of its own."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from rl_assets.a2a.session import Room
from rl_assets.errors import DatabaseError
from rl_assets.store.agents import provision_agents
from rl_assets.store.database import connect
from rl_assets.store.episodes import write_episodes

PREFIX = "a2a-"
"""Of the names that A2A agents are provisioned under, so that none takes another's."""


def recorder(url: str) -> Callable[[Room], None]:
    """What writes a room's episodes to a database, all or none. It raises DatabaseError or MalformedInput."""

    def record(room: Room) -> None:
        identities = [session.trajectory_id for session in room.sessions]
        names = {PREFIX + session.agent: session.agent for session in room.sessions}
        try:
            with connect(url) as conn, conn.transaction():
                recorded = 'SELECT FROM trajectories WHERE "trajectoryId" = ANY(%s)'
                if conn.execute(recorded, [identities]).fetchone() is not None:
                    return  # an earlier try went through, and its answer was lost
                ids = provision_agents(conn, list(names))
                write_episodes(conn, room.episodes({agent: ids[name] for name, agent in names.items()}))
        except psycopg.Error as error:
            raise DatabaseError(f"the database ended the recording ({error}); see whether it runs") from error

    return record
