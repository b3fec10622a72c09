"""Counts of what waits and of what is claimed, so that asking for them takes no longer when more of it is there."""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
-- By model line and step: the offers that nobody has claimed, their episodes, and the groups without a verdict.
CREATE TABLE rl_assets.waiting (
  model_line text    NOT NULL,
  step       integer NOT NULL,
  episodes   bigint  NOT NULL DEFAULT 0 CHECK (episodes >= 0),
  offers     bigint  NOT NULL DEFAULT 0 CHECK (offers >= 0),
  unjudged   bigint  NOT NULL DEFAULT 0 CHECK (unjudged >= 0),
  PRIMARY KEY (model_line, step)
);

-- Episodes in batches that were not freed.
CREATE TABLE rl_assets.claimed (
  model_line text   PRIMARY KEY,
  episodes   bigint NOT NULL CHECK (episodes >= 0)
);

CREATE FUNCTION rl_assets.count_offers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO rl_assets.waiting AS w (model_line, step, episodes, offers)
    SELECT model_line, step, sum(members), count(*) FROM after WHERE batch_id IS NULL GROUP BY 1, 2
    ON CONFLICT (model_line, step) DO UPDATE
    SET episodes = w.episodes + excluded.episodes, offers = w.offers + excluded.offers;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    UPDATE rl_assets.waiting AS w SET episodes = w.episodes - gone.episodes, offers = w.offers - gone.offers
    FROM (SELECT model_line, step, sum(members) AS episodes, count(*) AS offers FROM before WHERE batch_id IS NULL
          GROUP BY 1, 2) AS gone
    WHERE w.model_line = gone.model_line AND w.step = gone.step;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION rl_assets.count_groups() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO rl_assets.waiting AS w (model_line, step, unjudged)
    SELECT model_line, step, count(*) FROM after WHERE judged_in IS NULL GROUP BY 1, 2
    ON CONFLICT (model_line, step) DO UPDATE SET unjudged = w.unjudged + excluded.unjudged;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    UPDATE rl_assets.waiting AS w SET unjudged = w.unjudged - gone.unjudged
    FROM (SELECT model_line, step, count(*) AS unjudged FROM before WHERE judged_in IS NULL GROUP BY 1, 2) AS gone
    WHERE w.model_line = gone.model_line AND w.step = gone.step;
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION rl_assets.count_batches() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP <> 'DELETE' THEN
    INSERT INTO rl_assets.claimed AS c (model_line, episodes)
    SELECT model_line, sum(episodes) FROM after WHERE state <> 'freed' GROUP BY 1
    ON CONFLICT (model_line) DO UPDATE SET episodes = c.episodes + excluded.episodes;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    UPDATE rl_assets.claimed AS c SET episodes = c.episodes - gone.episodes
    FROM (SELECT model_line, sum(episodes) AS episodes FROM before WHERE state <> 'freed' GROUP BY 1) AS gone
    WHERE c.model_line = gone.model_line;
  END IF;
  RETURN NULL;
END $$;

INSERT INTO rl_assets.waiting (model_line, step, episodes, offers, unjudged)
SELECT model_line, step, sum(episodes), sum(offers), sum(unjudged) FROM (
  SELECT model_line, step, members AS episodes, 1 AS offers, 0 AS unjudged FROM rl_assets.offers WHERE batch_id IS NULL
  UNION ALL SELECT model_line, step, 0, 0, 1 FROM rl_assets.groups WHERE judged_in IS NULL) AS there
GROUP BY 1, 2;

INSERT INTO rl_assets.claimed (model_line, episodes)
SELECT model_line, sum(episodes) FROM rl_assets.batches WHERE state <> 'freed' GROUP BY 1;
"""

BEFORE, AFTER = "OLD TABLE AS before", "NEW TABLE AS after"
ROWS = {"INSERT": AFTER, "UPDATE": f"{BEFORE} {AFTER}", "DELETE": BEFORE}


def upgrade() -> None:
    op.execute(TABLES)
    for table in ("offers", "groups", "batches"):
        for event, rows in ROWS.items():
            op.execute(
                f"CREATE TRIGGER count_{event.lower()} AFTER {event} ON rl_assets.{table} REFERENCING {rows} "
                f"FOR EACH STATEMENT EXECUTE FUNCTION rl_assets.count_{table}()"
            )
