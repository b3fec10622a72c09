"""What a paid judge answered, and what its calls have cost or may still cost."""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = """
-- Answers that passed every check, by the hash of the request. The same question is never paid for twice.
CREATE TABLE rl_assets.judge_calls (
  key         text PRIMARY KEY,
  model       text NOT NULL,
  answer      jsonb NOT NULL,
  tokens_in   bigint NOT NULL CHECK (tokens_in >= 0),
  tokens_out  bigint NOT NULL CHECK (tokens_out >= 0),
  dollars     double precision CHECK (dollars >= 0),
  answered_at timestamptz NOT NULL DEFAULT now()
);

-- One row per request sent. Until it is settled it counts with what it may cost, and once it has expired unsettled,
-- since the process that sent it is gone, with nothing. dollars is null where no price is known.
CREATE TABLE rl_assets.judge_spending (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  window_id  text NOT NULL,
  day        date NOT NULL,
  model      text NOT NULL,
  tokens     bigint NOT NULL CHECK (tokens >= 0),
  dollars    double precision CHECK (dollars >= 0),
  outcome    text,
  reserved_at timestamptz NOT NULL DEFAULT now(),
  expires_at  timestamptz NOT NULL,
  settled_at  timestamptz,
  CHECK ((settled_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX judge_spending_window ON rl_assets.judge_spending (window_id);
CREATE INDEX judge_spending_day ON rl_assets.judge_spending (day);
"""


def upgrade() -> None:
    op.execute(TABLES)
