"""What Alembic runs: migrates on the connection it is given by `rl_assets.store.database.migrate`."""

from alembic import context
from sqlalchemy import text

from rl_assets.store.database import SCHEMA

connection = context.config.attributes["connection"]
# Asked first: CREATE SCHEMA IF NOT EXISTS wants the right to create even where there is nothing to do.
if connection.scalar(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}) is None:
    connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
context.configure(connection=connection, version_table_schema=SCHEMA)
context.run_migrations()
