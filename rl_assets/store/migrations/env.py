"""What Alembic runs: migrates on the connection it is given by `rl_assets.store.database.migrate`, and lets no
migration touch a table outside our schema."""

from alembic import context
from sqlalchemy import text

from rl_assets.errors import DatabaseError
from rl_assets.store.database import SCHEMA

FOREIGN = text(
    r"""
    SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (
      SELECT format('%s.%s %s %s %s', c.oid, a.attnum, a.attname, a.atttypid, a.attnotnull)
      FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
      WHERE n.nspname NOT IN (:ours, 'information_schema') AND n.nspname NOT LIKE 'pg\_%'
      UNION ALL
      SELECT format('trigger %s %s', t.tgrelid, t.tgname)
      FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
      WHERE n.nspname <> :ours
    ) AS lines (line)"""
)
"""A fingerprint of every column, index and trigger that is not ours."""

connection = context.config.attributes["connection"]
# Asked first: CREATE SCHEMA IF NOT EXISTS wants the right to create even where there is nothing to do.
if connection.scalar(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}) is None:
    connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
before = connection.scalar(FOREIGN, {"ours": SCHEMA})
context.configure(connection=connection, version_table_schema=SCHEMA)
context.run_migrations()
if connection.scalar(FOREIGN, {"ours": SCHEMA}) != before:
    raise DatabaseError(
        f"tables outside the schema {SCHEMA} changed while it was migrated, so nothing was; run `rl-assets db migrate` "
        "when nobody else alters tables, and if it says so again, do not use this version"
    )
