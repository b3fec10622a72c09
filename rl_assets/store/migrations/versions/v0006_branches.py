"""Batches that are trained once more on the claim of an earlier one."""

from alembic import op

revision = "0006"
down_revision = "0005"

TABLES = """
-- The batch whose claim this one is trained on once more; null where the claim is its own.
ALTER TABLE rl_assets.batches ADD COLUMN branch_of text REFERENCES rl_assets.batches (id);

CREATE OR REPLACE FUNCTION rl_assets.count_batches() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO rl_assets.claimed AS c (model_line, episodes)
    SELECT model_line, sum(episodes) FROM after WHERE state <> 'freed' AND branch_of IS NULL GROUP BY 1
    ON CONFLICT (model_line) DO UPDATE SET episodes = c.episodes + excluded.episodes;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    UPDATE rl_assets.claimed AS c SET episodes = c.episodes - gone.episodes
    FROM (SELECT model_line, sum(episodes) AS episodes FROM before WHERE state <> 'freed' AND branch_of IS NULL
          GROUP BY 1) AS gone
    WHERE c.model_line = gone.model_line;
  END IF;
  RETURN NULL;
END $$;
"""


def upgrade() -> None:
    op.execute(TABLES)
