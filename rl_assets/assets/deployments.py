"""The deployed model: what the gate has decided is carried out, and what is live is whole."""

from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.assets.columns import CHAMPION
from rl_assets.assets.shown import OWNERS, definition, links, picture, table
from rl_assets.automation.partitions import EVERYTHING
from rl_assets.logs import PARTITION
from rl_assets.resources import Database, Lake, Trainer

if TYPE_CHECKING:
    import psycopg

    from rl_assets.registry.models import Model
    from rl_assets.registry.rollout import Event
    from rl_assets.store.ledger import Batch


@dg.asset(
    deps=["base_policy", dg.AssetDep("benchmark_evaluations", partition_mapping=EVERYTHING)],
    group_name="deployment",
    kinds={"postgres", "huggingface"},
    owners=OWNERS,
    description="The model that every agent plays with: the champion pointer and Babylon's row of it. A run of a batch "
    "promotes or rejects the batch's candidate as the gate has decided; a run of its own takes the batch that waits, "
    "if one does, and checks what is live. A candidate goes live in the stages of ROLLOUT_STAGES; each run takes it to "
    "the next one if its episodes allow that, and checks the health of what agents are given.",
    check_specs=[
        dg.AssetCheckSpec(
            "live_checkpoint_is_whole",
            asset="deployed_model",
            blocking=True,
            description="The registry's digest of the champion is that of the files on disk.",
        )
    ],
    metadata=definition("docs/operations.md", table="rl_assets.champion", schema=CHAMPION),
)
def deployed_model(
    context: dg.AssetExecutionContext, database: Database, lake: Lake, trainer: Trainer
) -> dg.MaterializeResult:
    from rl_assets.registry.checkpoints import checkpoint_digest
    from rl_assets.registry.health import probe
    from rl_assets.registry.lineage import lineage_of
    from rl_assets.registry.models import champion_step, get_model, list_models
    from rl_assets.registry.rollout import events_of, last_rollout
    from rl_assets.registry.stages import advance, confirm
    from rl_assets.reports.batch import write_batch_report
    from rl_assets.reports.lineage import lineage_picture
    from rl_assets.store.ledger import batches, get_batch

    with database.connect() as conn:
        # The asset has no partition of its own, but a run for a batch carries the batch's key.
        batch_id = context.run.tags.get(PARTITION)
        waiting = batches(conn, model_line=trainer.line, states=("evaluated",), limit=1)
        batch = get_batch(conn, batch_id) if batch_id else next(iter(waiting), None)
        line = batch.model_line if batch else trainer.line
        before = champion_step(conn, line)
        if before is None:
            raise dg.Failure(f"{line} has no model yet; materialize base_policy", allow_retries=False)
        decided, report = "no batch waits to be decided upon", {}
        made_of = batch.id if batch else get_model(conn, line, before).batch_id
        elsewhere = links(made_of, besides="deployed_model")
        if batch is None:
            decided = advance(conn, line, probe) or decided
        else:
            # Written first: whoever waits for the decision may look at the report as soon as it is there.
            written = write_batch_report(conn, lake.tree.batch(batch.id), batch.id)
            report["report"] = dg.MetadataValue.path(str(written))
            decided = carry_out(conn, batch, context.run.run_id)
        context.log.info(decided)
        health = confirm(conn, line, probe) or "no candidate is on its way"
        context.log.info(health)
        live = get_model(conn, line, champion_step(conn, line) or 0)
        found = checkpoint_digest(live.checkpoint_path)
        versions = list_models(conn, line)
        rollout = last_rollout(conn, line)
        events = events_of(conn, rollout.id) if rollout else []
        origin = lineage_picture(lineage_of(conn, line, live.step))
    return dg.MaterializeResult(
        metadata={
            "decision": decided,
            "health": health,
            "batch": batch.id if batch else "none",
            "champion_before": before,
            "champion": live.step,
            "version": live.version,
            "checkpoint": dg.MetadataValue.path(str(live.checkpoint_path)),
            "versions": table([_row(model) for model in versions]),
            "rollout": f"step {rollout.step} is {rollout.state} at {rollout.percentage} %" if rollout else "none yet",
            "rollout_decisions": table([_event(event) for event in events]),
            "lineage": picture(origin),
            **report,
            **elsewhere,
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="live_checkpoint_is_whole",
                passed=found == live.digest,
                metadata={"registered": live.digest, "on_disk": found},
            )
        ],
    )


def carry_out(conn: "psycopg.Connection", batch: "Batch", run_id: str) -> str:
    """Let an evaluated batch's candidate begin to go live, or reject it; registry and ledger change together. Returns
    what was decided.

    Raises LedgerConflict where the batch is not evaluated, or against a champion that is no longer, and where another
    candidate is on its way.
    """
    from rl_assets.registry.decisions import latest_evaluation
    from rl_assets.registry.health import probe
    from rl_assets.registry.models import reject
    from rl_assets.registry.stages import begin
    from rl_assets.registry.terms import Terms
    from rl_assets.store.ledger import DECIDED, advance_batch

    found = latest_evaluation(conn, batch.id)
    # What a person has turned down holds why, whatever the gate had found, or if it never came to that.
    why = batch.error or (found and found.decision.reason)
    if batch.state in DECIDED and why:
        return f"{batch.id} is {batch.state} already: {why}"
    if batch.state != "evaluated" or found is None:
        raise dg.Failure(
            f"{batch.id} is {batch.state}; materialize benchmark_evaluations of it before deployed_model",
            allow_retries=False,
        )
    with conn.transaction():
        if found.decision.promote:
            begun = begin(conn, batch.model_line, found.candidate_step, Terms.from_env(), probe)
            advance_batch(conn, batch.id, "promoted" if begun.live else "rejected", run_id=run_id)
            return begun.reason
        reject(conn, batch.model_line, found.candidate_step)
        advance_batch(conn, batch.id, "rejected", run_id=run_id)
    return found.decision.reason


def _event(event: "Event") -> dict[str, object]:
    pnl = event.figures.get("pnl_dollars", {})
    return {
        "at": f"{event.at:%Y-%m-%d %H:%M:%S}",
        "decision": event.decision,
        "percentage": event.percentage,
        "pairs": event.figures.get("pairs", 0),
        "pnl_lower_dollars": pnl.get("lower"),
        "pnl_upper_dollars": pnl.get("upper"),
        "reason": event.reason,
    }


def _row(model: "Model") -> dict[str, object]:
    return {
        "step": model.step,
        "version": model.version,
        "state": model.state,
        "on_top_of": model.parent_step,
        "batch": model.batch_id,
        "digest": model.digest[:12],
    }
