"""Live agents: who plays, what became of each tick of each, and the points that ticks have cost."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = """
-- agent_id: the id in Babylon's "User", which holds the balance of points. name: what it joins a market under.
-- kind and policy: who decides, `model` (the champion of a line), `reference` (a rule) or `endpoint` (an API).
-- cost: points per tick. seconds and memory_mb: what one tick may take.
CREATE TABLE rl_assets.live_agents (
  agent_id      text PRIMARY KEY,
  name          text NOT NULL UNIQUE,
  kind          text NOT NULL CHECK (kind IN ('model', 'reference', 'endpoint')),
  policy        jsonb NOT NULL DEFAULT '{}',
  scenario      text NOT NULL CHECK (length(scenario) BETWEEN 1 AND 100),
  cost          integer NOT NULL CHECK (cost >= 0),
  seconds       integer NOT NULL CHECK (seconds BETWEEN 1 AND 240),
  memory_mb     integer NOT NULL CHECK (memory_mb > 0),
  active        boolean NOT NULL DEFAULT true,
  registered_at timestamptz NOT NULL DEFAULT now(),
  updated_at    timestamptz NOT NULL DEFAULT now()
);

-- One row per tick that an agent has begun, whatever became of it. A tick is `playing` while a coordinator holds the
-- agent's advisory lock; one that is found `playing` without it is `lost`, and is not played again.
-- day: the market day that was played, as this project names it; the market's own session is told to nobody.
-- witnessed: JSON of what the agent read and said in a tick of which no step was recorded.
CREATE TABLE rl_assets.live_ticks (
  agent_id      text NOT NULL REFERENCES rl_assets.live_agents (agent_id),
  tick          timestamptz NOT NULL,
  window_id     text NOT NULL,
  state         text NOT NULL CHECK (state IN ('playing', 'played', 'failed', 'lost')),
  reason        text,
  day           text,
  trajectory_id text,
  witnessed     text,
  started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at      timestamptz,
  PRIMARY KEY (agent_id, tick),
  CHECK ((state = 'playing') = (ended_at IS NULL)),
  CHECK ((state = 'played') = (trajectory_id IS NOT NULL)),
  CHECK (state NOT IN ('failed', 'lost') OR reason IS NOT NULL)
);
CREATE INDEX live_ticks_playing ON rl_assets.live_ticks (agent_id) WHERE state = 'playing';
CREATE INDEX live_ticks_tick ON rl_assets.live_ticks (tick);

-- Points given and taken, with the balance after it. The key makes it impossible that a tick costs twice.
CREATE TABLE rl_assets.points (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_id   text NOT NULL REFERENCES rl_assets.live_agents (agent_id),
  tick       timestamptz,
  points     integer NOT NULL,
  balance    integer NOT NULL,
  reason     text NOT NULL,
  entered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (agent_id, tick),
  FOREIGN KEY (agent_id, tick) REFERENCES rl_assets.live_ticks (agent_id, tick)
);
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON rl_assets.points "
        "FOR EACH STATEMENT EXECUTE FUNCTION rl_assets.refuse_change()"
    )
