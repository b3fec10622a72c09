"""When a rollout's episodes were last looked at, so that a look reads what has come since."""

from alembic import op

revision = "0007"
down_revision = "0006"

TABLES = """
-- The moment of the newest look that took in all there was; null where the next one must read from the start.
ALTER TABLE rl_assets.rollouts ADD COLUMN looked_at timestamptz;
"""


def upgrade() -> None:
    op.execute(TABLES)
