"""Snapshots, judgement sets, the queue of judged groups, batches, models and the champion."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE rl_assets.snapshots (
  id              text PRIMARY KEY,
  split           text NOT NULL CHECK (split IN ('train', 'gate', 'sealed')),
  seed            bigint NOT NULL,
  day             integer NOT NULL,
  config          jsonb NOT NULL,
  content_hash    text NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now(),
  materialized_at timestamptz
);
CREATE INDEX snapshots_split ON rl_assets.snapshots (split, id);
CREATE INDEX snapshots_unmaterialized ON rl_assets.snapshots (id) WHERE materialized_at IS NULL;

-- What a judge said of a window, as a whole. Rows are only ever added.
CREATE TABLE rl_assets.judgement_sets (
  id            text PRIMARY KEY,
  window_id     text NOT NULL,
  judge         text NOT NULL,
  judge_version text NOT NULL,
  body          jsonb NOT NULL,
  recorded_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX judgement_sets_window ON rl_assets.judgement_sets (window_id, recorded_at);

-- Groups of each window as they were last built. judged_in: the newest set that judges this group.
CREATE TABLE rl_assets.groups (
  group_id   text PRIMARY KEY,
  window_id  text NOT NULL,
  model_line text NOT NULL,
  step       integer NOT NULL,
  members    integer NOT NULL CHECK (members > 0),
  judged_in  text REFERENCES rl_assets.judgement_sets (id)
);
CREATE INDEX groups_window ON rl_assets.groups (window_id);
CREATE INDEX groups_waiting ON rl_assets.groups (model_line, step) WHERE judged_in IS NULL;

-- One row per training. Whoever holds its episodes is said by rl_assets.offers.
CREATE TABLE rl_assets.batches (
  id         text PRIMARY KEY,
  model_line text NOT NULL,
  base_step  integer NOT NULL,
  state      text NOT NULL CHECK (state IN ('reserved', 'training', 'unknown', 'trained', 'evaluated', 'promoted',
                                            'rejected', 'failed', 'freed')),
  attempt    integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
  episodes   integer NOT NULL CHECK (episodes > 0),
  groups     integer NOT NULL CHECK (groups > 0),
  manifest   jsonb NOT NULL,
  forced_by  text,
  run_id     text,
  error      text,
  result     jsonb,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);
-- One batch of a model line is in flight at a time, whatever the program does.
CREATE UNIQUE INDEX batches_in_flight ON rl_assets.batches (model_line)
  WHERE state IN ('reserved', 'training', 'unknown', 'trained', 'evaluated');
CREATE INDEX batches_line_state ON rl_assets.batches (model_line, state, created_at);

-- Every change of state, for people who ask what happened. Rows are only ever added.
CREATE TABLE rl_assets.batch_events (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch_id   text NOT NULL REFERENCES rl_assets.batches (id),
  from_state text,
  to_state   text NOT NULL,
  attempt    integer NOT NULL,
  run_id     text,
  error      text,
  at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX batch_events_batch ON rl_assets.batch_events (batch_id, id);

-- Judged groups that may be trained on, with their rewards. A null batch_id says that a group waits to be claimed.
CREATE TABLE rl_assets.offers (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  model_line     text NOT NULL,
  step           integer NOT NULL,
  window_id      text NOT NULL,
  group_id       text NOT NULL,
  judgement_set  text NOT NULL REFERENCES rl_assets.judgement_sets (id),
  members        integer NOT NULL CHECK (members > 1),
  trajectory_ids text[] NOT NULL CHECK (cardinality(trajectory_ids) = members),
  rewards        double precision[] NOT NULL CHECK (cardinality(rewards) = members),
  batch_id       text REFERENCES rl_assets.batches (id)
);
CREATE INDEX offers_fresh ON rl_assets.offers (model_line, step, window_id, group_id) INCLUDE (members)
  WHERE batch_id IS NULL;
CREATE INDEX offers_batch ON rl_assets.offers (batch_id) WHERE batch_id IS NOT NULL;

-- The members of offers. The key makes a double claim impossible: an episode is in at most one offer, and an offer in
-- at most one batch.
CREATE TABLE rl_assets.offered_episodes (
  trajectory_id text PRIMARY KEY,
  offer_id      bigint NOT NULL REFERENCES rl_assets.offers (id) ON DELETE CASCADE
);
CREATE INDEX offered_episodes_offer ON rl_assets.offered_episodes (offer_id);

CREATE TABLE rl_assets.models (
  model_line      text NOT NULL,
  step            integer NOT NULL CHECK (step >= 0),
  version         text NOT NULL,
  checkpoint_path text NOT NULL,
  digest          text NOT NULL,
  batch_id        text REFERENCES rl_assets.batches (id),
  parent_step     integer,
  state           text NOT NULL CHECK (state IN ('candidate', 'champion', 'retired', 'rejected')),
  metrics         jsonb NOT NULL DEFAULT '{}',
  created_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (model_line, step),
  UNIQUE (model_line, version),
  FOREIGN KEY (model_line, parent_step) REFERENCES rl_assets.models (model_line, step)
);
CREATE INDEX models_batch ON rl_assets.models (batch_id);

CREATE TABLE rl_assets.champion (
  model_line    text PRIMARY KEY,
  step          integer NOT NULL,
  previous_step integer,
  changed_at    timestamptz NOT NULL DEFAULT now(),
  reason        text NOT NULL,
  FOREIGN KEY (model_line, step) REFERENCES rl_assets.models (model_line, step),
  FOREIGN KEY (model_line, previous_step) REFERENCES rl_assets.models (model_line, step)
);

-- Every champion there was. Rows are only ever added.
CREATE TABLE rl_assets.champion_history (
  id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  model_line    text NOT NULL,
  step          integer NOT NULL,
  previous_step integer,
  changed_at    timestamptz NOT NULL DEFAULT now(),
  reason        text NOT NULL,
  FOREIGN KEY (model_line, step) REFERENCES rl_assets.models (model_line, step)
);
CREATE INDEX champion_history_line ON rl_assets.champion_history (model_line, id);

-- What the gate found. Rows are only ever added.
CREATE TABLE rl_assets.evaluations (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  batch_id       text NOT NULL REFERENCES rl_assets.batches (id),
  candidate_step integer NOT NULL,
  champion_step  integer NOT NULL,
  decision       jsonb NOT NULL,
  created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX evaluations_batch ON rl_assets.evaluations (batch_id, id);

CREATE FUNCTION rl_assets.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of %.% are only ever added', TG_TABLE_SCHEMA, TG_TABLE_NAME;
END $$;
"""

APPEND_ONLY = ("judgement_sets", "batch_events", "champion_history", "evaluations")


def upgrade() -> None:
    op.execute(TABLES)
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON rl_assets.{table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION rl_assets.refuse_change()"
        )
