"""The report of a training batch: what was trained, what came of it, and whether it went live. One HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MalformedInput
from rl_assets.places import Place
from rl_assets.registry.archive import bring
from rl_assets.registry.checkpoints import RemoteCheckpoint
from rl_assets.registry.gate import Decision
from rl_assets.reports.page import Picture, number, render, write_page
from rl_assets.reports.summary import by_policy, shown_intervals, summarise
from rl_assets.store.episode_files import read_episodes_parquet
from rl_assets.tree import BatchFiles

if TYPE_CHECKING:
    import psycopg

    from rl_assets.registry.models import Model
    from rl_assets.training.manifest import Manifest


def write_batch_report(conn: psycopg.Connection, files: BatchFiles, batch_id: str) -> Place:
    """Write the report of an evaluated batch and return its path. Writing it again replaces it.

    files: the batch's, of which its evaluation is there. Raises LedgerConflict where no such batch or model is known,
    MalformedInput where the batch has not been evaluated or a file of it is damaged, and MissingCheckpoint where the
    record of its training is; nothing is written then.
    """
    from rl_assets.registry.decisions import latest_evaluation
    from rl_assets.registry.models import model_of_batch
    from rl_assets.store.ledger import get_batch
    from rl_assets.training.manifest import Manifest
    from rl_assets.training.record import read_record

    batch, model, found = get_batch(conn, batch_id), model_of_batch(conn, batch_id), latest_evaluation(conn, batch_id)
    if found is None:
        raise MalformedInput(f"{batch_id} has not been evaluated; materialize benchmark_evaluations of it first")
    curve = (batch.result or {}).get("curve")
    if not isinstance(model.checkpoint_path, RemoteCheckpoint):
        bring(model.checkpoint_path)
        curve = read_record(model.checkpoint_path).curve
    return render_batch_report(
        files.report,
        manifest=Manifest.from_json(batch.manifest),
        model=model,
        curve=curve or [],
        result=batch.result or {},
        decision=found.decision.to_json(),
        champion=Policy(model.model_line, found.champion_step),
        episodes=read_episodes_parquet(files.evaluation),
    )


def render_batch_report(
    path: Place,
    *,
    manifest: Manifest,
    model: Model,
    curve: Sequence[Mapping[str, float]],
    result: Mapping[str, Any],
    decision: Mapping[str, Any],
    champion: Policy,
    episodes: Sequence[Episode],
) -> Place:
    """Write a page that needs no other file from what is given, and return its path.

    model: the candidate that the batch became. curve: a point per update, as `plots.learning_curve` takes them. result:
    what the ledger keeps of the training; of it `backend` and `seconds` are shown if they are there. decision:
    `Decision.to_json()` of the gate. champion: whom the candidate was compared with. episodes: everybody's play on the
    gate snapshots. Raises MalformedInput where these do not belong together or a number is NaN, and RlAssetsError where
    the disk refuses; nothing is written then.
    """
    from rl_assets.reports.plots import group_spread, learning_curve, paired_gate, pnl_by_policy

    gate = Decision.from_json(dict(decision))
    candidate = Policy(model.model_line, model.step)
    batch_id = manifest.batch_id
    if model.batch_id != batch_id:
        raise MalformedInput(f"the model is of {model.batch_id}, the manifest of {batch_id}; pass those of one batch")
    rows = summarise(by_policy(episodes))
    missing = [str(policy) for policy in (candidate, champion) if str(policy) not in {row.policy for row in rows}]
    if missing:
        raise MalformedInput(f"{missing[0]} has not played the gate; materialize benchmark_evaluations of {batch_id}")
    by_day = dict(zip(gate.days, gate.day_effects, strict=True))
    bounds = f"lower bound {number(gate.lower)}, minimum effect {number(gate.minimum_effect)}"
    page = render(
        "batch.html",
        manifest=manifest,
        decision=gate,
        candidate=candidate,
        champion=champion,
        roles={str(champion): "champion", str(candidate): "candidate"},
        told=_told(manifest, model, len(curve), result),
        conditions=gate.conditions(),
        rows=rows,
        metrics=sorted(model.metrics.items()),
        lineage=_lineage(manifest, model, champion),
        paired=Picture(
            paired_gate(by_day, gate.lower, gate.minimum_effect, gate.effect),
            f"Difference of expected PnL on {len(by_day)} market days: mean {number(gate.effect)} dollars, {bounds}",
        ),
        intervals=Picture(pnl_by_policy(shown_intervals(rows)), "Mean and interval per policy, as in the table below"),
        curve=Picture(learning_curve(curve), f"Metrics of training over {len(curve)} updates"),
        spread=Picture(
            group_spread({group.group_id: group.rewards for group in manifest.groups}, "Reward (0 to 1)"),
            f"Rewards of the members of {len(manifest.groups)} groups",
        ),
    )
    return write_page(path, page)


def _told(manifest: Manifest, model: Model, updates: int, result: Mapping[str, Any]) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("Episodes", f"{len(manifest.trajectory_ids):,}"),
        ("Groups", len(manifest.groups)),
        ("Windows (hours)", len(manifest.windows)),
        ("Judgement sets", len(manifest.judgement_sets)),
        ("Base step", manifest.base_step),
        ("New step", model.step),
        ("Updates", updates),
    ]
    if "backend" in result:
        facts.append(("Backend", result["backend"]))
    # A batch that had been trained before is only read again, which takes no time worth telling.
    if result.get("seconds"):
        facts.append(("Training (s)", number(result["seconds"], 1)))
    return facts


def _lineage(manifest: Manifest, model: Model, champion: Policy) -> list[tuple[str, object]]:
    return [
        ("Model line", model.model_line),
        ("Candidate", f"step {model.step}, version {model.version}"),
        ("Trained from step", manifest.base_step),
        ("Compared with", champion),
        ("Checkpoint", model.checkpoint_path),
        ("SHA-256 of the checkpoint", model.digest),
        ("Batch", manifest.batch_id),
    ]
