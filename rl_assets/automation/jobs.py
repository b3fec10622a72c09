"""Jobs: which assets are materialized together, and what is no asset: forcing, retrying, rolling back, live ticks.

A job that a person starts fills its launchpad in: what may be set stands there, with a value that works as it is. Only
`rejudge` leaves it empty and shows in its description what to paste (docs/decisions.md says why).
"""

from collections import Counter

import dagster as dg
from pydantic import Field

from rl_assets.assets.shown import table
from rl_assets.resources import Database, Lake, Trainer

ONE_AT_A_TIME = "rl_assets/one_at_a_time"
"""Tag of runs of which the queue lets one run at a time per value (dagster.yaml)."""
ONCE = "dagster/max_retries"
"""Tag of what is not to be executed again by itself where its worker was lost: a rollback would go back one more."""
MAX_RUNTIME = "dagster/max_runtime"
"""Tag: seconds after which run monitoring ends a run; without it, what dagster.yaml says."""

snapshots_job = dg.define_asset_job(
    "snapshots",
    selection=["benchmark_snapshots"],
    description="Generate a range of registered benchmark snapshots in one step.",
    tags={ONE_AT_A_TIME: "snapshots", MAX_RUNTIME: "1800"},
)

window_job = dg.define_asset_job(
    "pipeline_window",
    selection=["recorded_trajectories", "grpo_groups", "judged_rankings"],
    description="Read an hour of episodes, group them and judge the groups. Repeatable at any time, for any range.",
    tags={MAX_RUNTIME: "7200"},
)

REJUDGING = """resources:
  judge:
    config:
      kind: ruler
      model: openai/gpt-5
      passes: 5
      group_size: 4
"""
"""What may be pasted into the configuration of `rejudge`."""
rejudge_job = dg.define_asset_job(
    "rejudge",
    selection=["grpo_groups", "judged_rankings"],
    description=f"""Group and judge hours again that have been read. Earlier sets of judgements are kept, and no claimed
batch changes. For another judge, rubric or group size paste this as configuration, with your values; what is left out
is as the environment says:

```yaml
{REJUDGING}```
""",
    tags={MAX_RUNTIME: "7200"},
)

outcomes_job = dg.define_asset_job(
    "outcomes",
    selection=["market_outcomes"],
    description="Write what the game's markets came to in an hour. Repeatable at any time, for any range.",
    tags={MAX_RUNTIME: "1800"},
)

training_job = dg.define_asset_job(
    "training",
    selection=["base_policy", "training_batches", "trained_models", "benchmark_evaluations", "deployed_model"],
    description="Train on one claimed batch, measure the candidate against the champion, deploy it if the gate opens.",
    # The ledger counts the attempts of a batch; a second retry mechanism would train it twice.
    # Longer than a training at W&B may take (SERVERLESS_TRAINING_SECONDS), for the gate is played after it.
    tags={ONCE: "0", MAX_RUNTIME: "28800"},
)

base_policy_job = dg.define_asset_job(
    "build_base_policy",
    selection=["base_policy"],
    description="Build and warm-start step 0 of the model line, once.",
    tags={MAX_RUNTIME: "3600"},
)

leaderboard_job = dg.define_asset_job(
    "leaderboard",
    selection=["benchmark_leaderboard"],
    description="Rank every version of the model line and the reference agents on the gate; plays what is missing.",
    tags={ONE_AT_A_TIME: "leaderboard", MAX_RUNTIME: "7200"},
)


class Forcing(dg.Config):
    """Why the threshold is overridden, and by whom."""

    forced_by: str = Field(min_length=1, description="Who or what overrides the threshold; it is kept with the batch.")


@dg.op(description="Claim the fresh episodes, whatever the threshold; the training sensor then starts the run.")
def claim_below_threshold(
    context: dg.OpExecutionContext, config: Forcing, database: Database, trainer: Trainer
) -> None:
    from rl_assets.training.trigger import claim

    with database.connect() as conn:
        trainer.check()
        settings = trainer.settings
        found = claim(
            conn,
            model_line=settings.model_line,
            minimum=settings.min_trajectories,
            forced_by=config.forced_by,
            most_stale=settings.most_stale,
        )
    if found.batch is None:
        raise dg.Failure(f"nothing was claimed: {found.reason}", allow_retries=False)
    context.log.info(found.reason)
    context.add_output_metadata({"batch": found.batch.id, "episodes": found.batch.episodes, "claim": found.reason})


@dg.job(
    name="force_training",
    description="Train below the threshold: claim what is there now and leave the rest to the training sensor.",
    config={"ops": {"claim_below_threshold": {"config": {"forced_by": "a person at the launchpad"}}}},
    tags={MAX_RUNTIME: "600", ONCE: "0"},
    executor_def=dg.in_process_executor,
)
def force_training_job() -> None:
    claim_below_threshold()


class Retraining(dg.Config):
    """Which batch is trained once more."""

    batch: str = Field(
        description="Such as batch-0123456789abcdef: one that failed, or one that was promoted or rejected. Empty: the "
        "newest that failed."
    )


@dg.op(description="Let a batch be trained once more; the training sensor then starts the run.")
def train_batch_again(context: dg.OpExecutionContext, config: Retraining, database: Database, trainer: Trainer) -> None:
    from rl_assets.store.ledger import DECIDED, advance_batch, batches, get_batch
    from rl_assets.training.trigger import branch

    with database.connect() as conn:
        failed = [batch.id for batch in batches(conn, model_line=trainer.line, states=("failed",), limit=1)]
        if not config.batch and not failed:
            raise dg.Failure(
                f"no batch of {trainer.line} has failed; name one that was promoted or rejected to make another model "
                "of its episodes, or run force_training to train on what waits",
                allow_retries=False,
            )
        batch = get_batch(conn, config.batch or failed[0])
        if batch.state in DECIDED:
            found = branch(conn, batch.id, model_line=trainer.line, forced_by="the job retrain")
            assert found.batch is not None
            batch, reason = found.batch, found.reason
        else:
            batch = advance_batch(conn, batch.id, "reserved")
            reason = f"{batch.id} is tried again, attempt {batch.attempt}"
    context.log.info(reason)
    context.add_output_metadata({"batch": batch.id, "attempt": batch.attempt, "episodes": batch.episodes})


@dg.job(
    name="retrain",
    description="Train a failed batch once more, after what made it fail is mended; or make another model of a batch "
    "that was promoted or rejected, with the settings of now. Episodes and rewards stay the same, and what comes of "
    "it has to pass the gate.",
    config={"ops": {"train_batch_again": {"config": {"batch": ""}}}},
    tags={MAX_RUNTIME: "600", ONCE: "0"},
    executor_def=dg.in_process_executor,
)
def retrain_job() -> None:
    train_batch_again()


class RollingBack(dg.Config):
    """Why the champion is taken back."""

    reason: str = Field(
        min_length=1, description="Why the champion is taken back; it is kept in the history of champions."
    )
    step: int | None = Field(
        default=None, description="The step that was seen to be live: only that is taken back. Empty: whichever is."
    )


@dg.op(description="Point the champion back at the model before it and archive the row that Babylon reads as live.")
def roll_back_champion(
    context: dg.OpExecutionContext, config: RollingBack, database: Database, trainer: Trainer
) -> None:
    from rl_assets.registry.by_hand import rollback_by_hand

    with database.connect() as conn:
        change = rollback_by_hand(conn, trainer.line, config.reason, config.step)
    context.log.info(f"the champion is {change}: {change.reason}")
    context.add_output_metadata(
        {"champion_step": change.model.step, "step_taken_back": change.before.step, "because": change.reason}
    )


@dg.job(
    name="rollback",
    description="Make the previous champion live again; its checkpoint has been kept. Say why in the launchpad.",
    config={"ops": {"roll_back_champion": {"config": {"reason": "a person at the launchpad gave no reason"}}}},
    tags={MAX_RUNTIME: "600", ONCE: "0"},
    executor_def=dg.in_process_executor,
)
def rollback_job() -> None:
    roll_back_champion()


class Ticking(dg.Config):
    """Which market live agents play, and which tick."""

    market_url: str = Field(default="", description="A2A URL of the live market. Empty: LIVE_MARKET_URL.")
    tick: str = Field(
        default="",
        description="The tick, as 2026-11-25T10:05 in UTC. Empty: this minute. None is played twice.",
    )


@dg.op(description="Take one turn with every active live agent that has points; record it, and what it cost, once.")
def tick_live_agents(
    context: dg.OpExecutionContext, config: Ticking, database: Database, lake: Lake, trainer: Trainer
) -> None:
    from rl_assets.agents.coordinator import FAILED, PLAYED, market_url, read_moment, run_tick

    with database.connect() as conn:
        reports = run_tick(
            conn,
            read_moment(config.tick),
            market_url=market_url(config.market_url),
            data_dir=lake.disk,
            model_line=trainer.line,
        )
    outcomes = Counter(report.outcome for report in reports)
    for report in reports:
        if report.reason:
            context.log.warning("%s %s: %s", report.name, report.outcome, report.reason)
    rows = [
        {"agent": r.name, "outcome": r.outcome, "points": r.points, "left": r.balance, "reason": r.reason or ""}
        for r in reports
    ]
    context.add_output_metadata({**outcomes, "agents": table(rows)})
    if outcomes[FAILED] and not outcomes[PLAYED]:
        reason = next(report.reason for report in reports if report.outcome == FAILED)
        raise dg.Failure(f"no agent could play this tick; the first says: {reason}", allow_retries=False)


@dg.job(
    name="live_tick",
    description="One tick of the live agents at an A2A market. Safe to run again: nothing is played or paid for twice.",
    tags={ONE_AT_A_TIME: "live", MAX_RUNTIME: "900"},
    executor_def=dg.in_process_executor,
)
def live_tick_job() -> None:
    tick_live_agents()


JOBS = [
    snapshots_job,
    window_job,
    rejudge_job,
    outcomes_job,
    training_job,
    base_policy_job,
    leaderboard_job,
    force_training_job,
    retrain_job,
    rollback_job,
    live_tick_job,
]
