"""The least that the platform's role needs of a database: SQL that grants it, to be run by the tables' owner.

With it everything runs but migrations, which want the right to create. It cannot drop, alter or empty a table, delete a
row of Babylon's, or change a column of theirs that is not listed here.
"""

from __future__ import annotations

import re

from psycopg import sql

from rl_assets.errors import ConfigurationError
from rl_assets.store.database import SCHEMA
from rl_assets.store.record import TRAJECTORY_COLUMNS

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", re.ASCII)
"""A longer identifier is cut off by Postgres, and might then be somebody else."""

READ = (
    "Market",
    "PredictionPriceHistory",
    "Organization",
    "StockPrice",
    "PerpPosition",
    "AgentTrade",
    "SystemSettings",
)
"""The game's tables, of which nothing is written."""
APPENDED = (
    "trajectories",
    "llm_call_logs",
    "reward_judgments",
    "training_batches",
    "trained_models",
    "market_outcomes",
)
CREATED_USER = ("id", "username", "displayName", "isAgent", "isTest", "updatedAt")
"""What is set of an agent that the harness records under."""
CHANGED = {
    "User": ("agentPointsBalance", "agentStatus", "agentErrorMessage", "agentLastTickAt", "updatedAt"),
    # The judge's and the ledger's columns, and those that grow as a live agent plays on.
    "trajectories": tuple(
        sorted(
            {*TRAJECTORY_COLUMNS, "aiJudgeReward", "aiJudgeReasoning", "judgedAt", "trainedInBatch"}
            - {"id", "trajectoryId", "createdAt"}
        )
    ),
    "reward_judgments": (),
    "trained_models": (),
    "market_outcomes": (),
}
"""Tables of which rows are changed, with the columns, or none for all: those rows are ours."""


def role_sql(name: str, schema: str = "public") -> str:
    """Statements that make a role what it has to be; running them again changes nothing. schema: of Babylon's tables.

    Raises ConfigurationError.
    """
    for given in (name, schema):
        if not _NAME.fullmatch(given):
            raise ConfigurationError(
                f"{given!r} is no name of a role or schema here: up to 63 letters, digits, _ and -; choose another"
            )
    role, babylon, ours = sql.Identifier(name), sql.Identifier(schema), sql.Identifier(SCHEMA)

    def table(of: str) -> sql.Composed:
        return sql.SQL("{}.{}").format(babylon, sql.Identifier(of))

    def columns(names: tuple[str, ...]) -> sql.Composable:
        listed = sql.SQL(", ").join(sql.Identifier(one) for one in names)
        return sql.SQL(" ({})").format(listed) if names else sql.SQL("")

    statements = [
        sql.SQL(
            "DO $role$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {text}) THEN CREATE ROLE {role} "
            "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE; END IF; "
            "EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), {text}); END $role$"
        ).format(text=sql.Literal(name), role=role),
        sql.SQL("GRANT USAGE ON SCHEMA {}, {} TO {}").format(babylon, ours, role),
        sql.SQL("GRANT SELECT ON {} TO {}").format(
            sql.SQL(", ").join(table(one) for one in ("User", *APPENDED, *READ)), role
        ),
        sql.SQL("GRANT INSERT{} ON {} TO {}").format(columns(CREATED_USER), table("User"), role),
        sql.SQL("GRANT INSERT ON {} TO {}").format(sql.SQL(", ").join(table(one) for one in APPENDED), role),
        *(
            sql.SQL("GRANT UPDATE{} ON {} TO {}").format(columns(names), table(one), role)
            for one, names in CHANGED.items()
        ),
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}").format(ours, role),
        sql.SQL("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {} TO {}").format(ours, role),
        sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {}").format(
            ours, role
        ),
        sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT USAGE, SELECT ON SEQUENCES TO {}").format(ours, role),
        sql.SQL("REVOKE INSERT, UPDATE, DELETE ON {}.alembic_version FROM {}").format(ours, role),
    ]
    return "".join(f"{statement.as_string(None)};\n" for statement in statements)
