"""Rollouts of candidates in stages, the episodes they are decided by, and checkpoints that are to be deleted."""

from alembic import op

revision = "0005"
down_revision = "0004"

TABLES = """
-- A candidate on its way to all agents. percentage: of the agents that play with it now. since_window: the first hour
-- whose episodes count. terms: the settings it began with, which decide it to its end. figures: of the last look at it.
CREATE TABLE rl_assets.rollouts (
  id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  model_line    text NOT NULL,
  step          integer NOT NULL,
  champion_step integer NOT NULL,
  stage         integer NOT NULL CHECK (stage >= 0),
  percentage    integer NOT NULL CHECK (percentage BETWEEN 0 AND 100),
  state         text NOT NULL CHECK (state IN ('staged', 'watched', 'ended', 'rolled_back')),
  terms         jsonb NOT NULL,
  figures       jsonb NOT NULL DEFAULT '{}',
  reason        text NOT NULL,
  started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  changed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  FOREIGN KEY (model_line, step) REFERENCES rl_assets.models (model_line, step),
  FOREIGN KEY (model_line, champion_step) REFERENCES rl_assets.models (model_line, step)
);
-- One candidate of a line is on its way, and one that has arrived is watched.
CREATE UNIQUE INDEX rollouts_open ON rl_assets.rollouts (model_line) WHERE state IN ('staged', 'watched');
CREATE INDEX rollouts_line ON rl_assets.rollouts (model_line, id);

-- Each decision with its figures. Rows are only ever added.
CREATE TABLE rl_assets.rollout_events (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  rollout_id bigint NOT NULL REFERENCES rl_assets.rollouts (id),
  decision   text NOT NULL,
  percentage integer NOT NULL,
  reason     text NOT NULL,
  figures    jsonb NOT NULL,
  at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX rollout_events_rollout ON rl_assets.rollout_events (rollout_id, id);

-- Episodes of both models that a rollout has seen; those without a pair wait for one. market: what a pair must share.
CREATE TABLE rl_assets.rollout_episodes (
  rollout_id    bigint NOT NULL REFERENCES rl_assets.rollouts (id),
  trajectory_id text NOT NULL,
  is_candidate  boolean NOT NULL,
  market        text NOT NULL,
  pnl           double precision,
  errors        double precision NOT NULL CHECK (errors BETWEEN 0 AND 1),
  pair          integer,
  PRIMARY KEY (rollout_id, trajectory_id)
);
CREATE INDEX rollout_episodes_waiting ON rl_assets.rollout_episodes (rollout_id, market, trajectory_id)
  WHERE pair IS NULL;

-- An episode of the candidate less the mean of some of the champion's, in the order in which they were looked at: the
-- order decides what a confidence sequence says. Rows are only ever added.
CREATE TABLE rl_assets.rollout_pairs (
  rollout_id bigint NOT NULL REFERENCES rl_assets.rollouts (id),
  number     integer NOT NULL,
  stage      integer NOT NULL,
  pnl        double precision,
  errors     double precision NOT NULL,
  PRIMARY KEY (rollout_id, number)
);

-- Checkpoints that retention gave up, told before a file is touched. gone_at is null until the last byte is deleted.
CREATE TABLE rl_assets.pruned_checkpoints (
  model_line text NOT NULL,
  step       integer NOT NULL,
  path       text NOT NULL,
  bytes      bigint NOT NULL CHECK (bytes >= 0),
  decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  gone_at    timestamptz,
  PRIMARY KEY (model_line, step),
  FOREIGN KEY (model_line, step) REFERENCES rl_assets.models (model_line, step)
);
"""

APPEND_ONLY = ("rollout_events", "rollout_pairs")


def upgrade() -> None:
    op.execute(TABLES)
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON rl_assets.{table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION rl_assets.refuse_change()"
        )
