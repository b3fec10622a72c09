"""The base policy, the batch that a step learns from, and the model that comes of it."""

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

import dagster as dg

from rl_assets.assets.columns import EPISODES, MODELS
from rl_assets.assets.shown import OWNERS, TREE, counts, definition, links, picture, required, table
from rl_assets.assets.trajectories import replay_sample
from rl_assets.automation.partitions import BATCHES, EVERYTHING
from rl_assets.automation.policies import TRAINED, TRAINER
from rl_assets.resources import Database, Lake, Tracking, Trainer
from rl_assets.training.figures import described

if TYPE_CHECKING:
    from rl_assets.episodes import Episode
    from rl_assets.training.result import TrainingResult

RATIO_TOLERANCE = 0.02
"""How far the mean ratio of the trainer's to the sampler's probabilities may be from 1 before anything is learnt."""


@dg.asset(
    pool=TRAINER,
    group_name="learning",
    kinds={"python", "torch", "huggingface"},
    owners=OWNERS,
    description="Step 0 of the model line: a small language model, warm-started by imitating reference agents and "
    "saved as a Hugging Face directory, or the base model at W&B. It is made once and then only checked.",
    check_specs=[
        dg.AssetCheckSpec(
            "checkpoint_is_whole",
            asset="base_policy",
            blocking=True,
            description="The registry's digest of step 0 is that of the files on disk.",
        )
    ],
    metadata=definition("docs/training.md", table="rl_assets.models", schema=MODELS),
)
def base_policy(
    context: dg.AssetExecutionContext, database: Database, lake: Lake, trainer: Trainer
) -> dg.MaterializeResult:
    from rl_assets.registry.models import register_base
    from rl_assets.reports.plots import learning_curve

    def progress(done: int, total: int) -> None:
        if done % 50 == 0:
            context.log.info(f"warm start: update {done} of {total}")

    with database.connect() as conn:
        base = trainer.base(lake.disk, progress)
        known = register_base(conn, trainer.line, base.path, base.digest, metrics=base.metrics)
    return dg.MaterializeResult(
        metadata={
            "checkpoint": dg.MetadataValue.path(str(base.path)),
            "digest": base.digest,
            "learning_curve": picture(learning_curve(base.curve)),
            "metrics": table(described(base.metrics)),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="checkpoint_is_whole",
                passed=known.digest == base.digest,
                metadata={"registered": known.digest, "on_disk": base.digest},
            )
        ],
    )


@dg.asset(
    partitions_def=BATCHES,
    deps=[dg.AssetDep("judged_rankings", partition_mapping=EVERYTHING)],
    group_name="learning",
    kinds={"postgres", "json", "parquet"},
    owners=OWNERS,
    description="The manifest of a claimed batch: which groups and episodes it holds, with which rewards, from which "
    "judgement sets, on top of which step. The claim itself was one transaction in the ledger; this writes it out.",
    check_specs=[
        dg.AssetCheckSpec(
            "manifest_is_the_claim",
            asset="training_batches",
            blocking=True,
            description="The manifest names exactly the episodes that the ledger has claimed for the batch.",
        ),
        dg.AssetCheckSpec(
            "every_episode_replays",
            asset="training_batches",
            blocking=True,
            description="Each benchmark episode of the batch, played again, gives the recorded rewards bit for bit.",
        ),
    ],
    metadata=definition(
        "docs/concepts.md", table="rl_assets.batches", file=TREE.batch("{batch}").episodes, schema=EPISODES
    ),
)
def training_batches(context: dg.AssetExecutionContext, database: Database, lake: Lake) -> dg.MaterializeResult:
    from rl_assets.reports.plots import group_spread
    from rl_assets.store.episode_files import write_episodes_parquet, write_json
    from rl_assets.store.episodes import read_episodes
    from rl_assets.store.ledger import claimed_ids, get_batch
    from rl_assets.training.manifest import Manifest

    with database.connect() as conn:
        elsewhere = links(context.partition_key, besides="training_batches")
        batch = get_batch(conn, context.partition_key)
        manifest = Manifest.from_json(batch.manifest)
        claimed = claimed_ids(conn, batch.id)
        episodes = read_episodes(conn, manifest.trajectory_ids)
        files = lake.tree.batch(batch.id)
        write_episodes_parquet(files.episodes, [episodes[i] for i in manifest.trajectory_ids])
        silent = len(manifest.without_logprobs(episodes))
        write_json(files.manifest, {**manifest.to_json(), "without_logprobs": silent})
        replayed, faults = replay_sample(list(episodes.values()), lake.tree.snapshots, None)
    astray = set(manifest.trajectory_ids) ^ set(claimed)
    rewards = {group.group_id: list(group.rewards) for group in manifest.groups}
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(manifest.trajectory_ids),
            "groups": len(manifest.groups),
            "base_step": manifest.base_step,
            "without_logprobs": silent,
            "forced_by": batch.forced_by or "nobody",
            "branch_of": batch.branch_of or "none, the claim is its own",
            "attempt": batch.attempt,
            "windows": list(manifest.windows),
            "judgement_sets": list(manifest.judgement_sets),
            "episodes_by_snapshot": counts(
                "snapshot", Counter(episode.snapshot_id or "none, live play" for episode in episodes.values())
            ),
            "rewards_within_groups": picture(group_spread(rewards, "Reward (0 to 1)")),
            "file": dg.MetadataValue.path(str(files.episodes)),
            "manifest": dg.MetadataValue.path(str(files.manifest)),
            **elsewhere,
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="manifest_is_the_claim",
                passed=not astray,
                metadata={
                    "named": len(manifest.trajectory_ids),
                    "claimed": len(claimed),
                    "astray": sorted(astray)[:50],
                },
            ),
            dg.AssetCheckResult(
                check_name="every_episode_replays",
                passed=not faults,
                metadata={"episodes_replayed": replayed, "mismatches": table(faults)},
            ),
        ],
    )


@dg.asset(
    partitions_def=BATCHES,
    deps=["training_batches", "base_policy"],
    pool=TRAINER,
    freshness_policy=TRAINED,
    group_name="learning",
    kinds={"python", "torch", "huggingface", "wandb"},
    owners=OWNERS,
    description="The checkpoint that GRPO makes of a batch, registered as a candidate. A batch that has been trained "
    "is not trained again: materializing it once more returns the checkpoint that is there. To make another model of "
    "its episodes, run the job `retrain` with its name.",
    check_specs=[
        dg.AssetCheckSpec(
            "checkpoint_is_whole",
            asset="trained_models",
            blocking=True,
            description="The registry's digest of the candidate is that of the files on disk.",
        ),
        dg.AssetCheckSpec(
            "logprobs_agree",
            asset="trained_models",
            blocking=True,
            description="Recorded logprobs are finite and not above 0, and before its first update the trainer gives "
            "the recorded tokens the probability with which they were sampled, if the step that is trained has "
            "played all of them.",
        ),
    ],
    metadata=definition("docs/training.md", table="rl_assets.models", schema=MODELS),
)
def trained_models(
    context: dg.AssetExecutionContext, database: Database, lake: Lake, trainer: Trainer, tracking: Tracking
) -> dg.MaterializeResult:
    from rl_assets.errors import LedgerConflict
    from rl_assets.registry.checkpoints import checkpoint_digest
    from rl_assets.registry.models import model_of_batch, playable, register_candidate
    from rl_assets.reports.plots import learning_curve
    from rl_assets.store.episode_files import read_episodes_parquet
    from rl_assets.store.ledger import advance_batch, get_batch
    from rl_assets.training.manifest import Manifest

    batch_id = context.partition_key
    with database.connect() as conn:
        elsewhere = links(batch_id, besides="trained_models")
        batch = get_batch(conn, batch_id)
        manifest = Manifest.from_json(batch.manifest)
        path = required(
            lake.tree.batch(batch_id).episodes,
            f"training_batches of {batch_id} is not there; materialize it before trained_models",
        )
        episodes = {episode.trajectory_id: episode for episode in read_episodes_parquet(path)}
        if batch.state == "freed":
            raise LedgerConflict(
                f"{batch_id} is freed and is not trained any more; claim its episodes anew, or make another branch"
            )
        if batch.state == "failed":  # whoever runs it again by hand begins its next attempt
            batch = advance_batch(conn, batch_id, "reserved")
        if batch.state == "reserved":
            batch = advance_batch(conn, batch_id, "training", run_id=context.run.run_id)
        untrained = batch.state in ("training", "unknown")
        context.log.info(f"backend: {trainer.settings.backend} ({trainer.settings.backend_why})")
        if not untrained:
            playable(model_of_batch(conn, batch_id))  # it is not made again where it is lost
        result = trainer.service(lake.disk, conn).train(manifest, episodes)
        with conn.transaction():
            model = register_candidate(conn, result)
            if untrained:
                kept = get_batch(conn, batch_id).result or {}
                advance_batch(conn, batch_id, "trained", run_id=context.run.run_id, result={**kept, **result.summary()})
    tracked = tracking.log_training(result, lake.tree.batch(batch_id).directory, lake.disk)
    context.log.info(f"Weights & Biases: {tracked}")
    faults = logprob_faults(episodes.values(), result)
    return dg.MaterializeResult(
        metadata={
            "step": result.step,
            "base_step": result.base_step,
            "checkpoint": dg.MetadataValue.path(str(result.checkpoint_path)),
            "digest": result.checkpoint_digest,
            "episodes": len(manifest.trajectory_ids),
            "backend": result.backend,
            "backend_because": trainer.settings.backend_why,
            "training_seconds": round(result.seconds, 1),
            "wandb": dg.MetadataValue.url(tracked) if tracked.startswith("https://") else tracked,
            "learning_curve": picture(learning_curve(result.curve)),
            "metrics": table(described(result.metrics)),
            **elsewhere,
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="checkpoint_is_whole",
                passed=model.digest == checkpoint_digest(result.checkpoint_path),
                metadata={"registered": model.digest, "on_disk": result.checkpoint_digest},
            ),
            dg.AssetCheckResult(
                check_name="logprobs_agree",
                passed=not faults,
                metadata={"faults": faults, "first_update": result.curve[0] if result.curve else {}},
            ),
        ],
    )


def logprob_faults(episodes: Collection["Episode"], result: "TrainingResult") -> list[str]:
    """What is wrong with recorded logprobs, in sentences, or with how the trainer sees them at first."""
    from rl_assets.episodes import is_logprob

    faults = [
        f"episode {episode.trajectory_id} holds a logprob that is not a finite number of at most 0"
        for episode in episodes
        if not all(is_logprob(p) for step in episode.steps for p in step.logprobs)
    ]
    # An earlier step gave its own episodes other probabilities.
    fresh = all(episode.policy.step == result.base_step for episode in episodes)
    ratio = result.curve[0].get("loss/importance_ratio") if result.curve and fresh else None
    if ratio is not None and abs(ratio - 1.0) > RATIO_TOLERANCE:
        faults.append(f"the mean importance ratio is {ratio:.4f} before the first update; it must be 1")
    return faults[:50]
