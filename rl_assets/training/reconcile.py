"""What became of a batch that was handed to W&B: asking, and entering in ledger and registry what is proven."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rl_assets.episodes import digest
from rl_assets.errors import LedgerConflict, RlAssetsError, ServiceError
from rl_assets.registry.checkpoints import RemoteCheckpoint
from rl_assets.registry.models import list_models, register_candidate
from rl_assets.settings import ServerlessSettings
from rl_assets.store.ledger import Batch, advance_batch
from rl_assets.store.submissions import update_submission
from rl_assets.training.manifest import Manifest
from rl_assets.training.result import TrainingResult
from rl_assets.training.submission import Event, Fate, Submission, fate_of, open_submission
from rl_assets.training.wandb_api import ASKING_SECONDS, WandbApi

if TYPE_CHECKING:
    import psycopg

BACKEND = "serverless"


def reconcile(conn: psycopg.Connection, batch: Batch) -> str:
    """Ask W&B what became of a batch that is `unknown`, and enter what is proven. Returns it in words, for the log.

    A candidate is registered where it was trained, and the batch fails, to be tried again, where it certainly was not.
    """
    settings = ServerlessSettings.from_env()
    submission = open_submission(batch.result, batch.attempt)
    if submission is None:
        return f"nobody knows whether {batch.id} was trained; settle it with `rl-assets batches settle`"
    try:
        with WandbApi(settings, seconds=ASKING_SECONDS) as api:
            evidence = ask(api, submission)
        return enter(conn, batch, submission, evidence)
    except RlAssetsError as error:
        return f"{batch.id} stays unknown: {error}"


def settle(conn: psycopg.Connection, batch: Batch, step: int | None) -> str:
    """Enter what a person has found out of a batch that is `unknown`: the step that came of it at W&B, None for none.

    Returns it in words. Raises LedgerConflict where the batch is not unknown or the step cannot be of it, and
    ServiceError.
    """
    if batch.state != "unknown":
        raise LedgerConflict(f"{batch.id} is {batch.state}; only a batch that is unknown is settled")
    submission = open_submission(batch.result, batch.attempt)
    reason = "a person says that no training came of it"
    if submission is None and step is None:
        advance_batch(conn, batch.id, "failed", error=reason)
        return f"{batch.id} is failed: {reason}"
    if submission is None:
        raise LedgerConflict(f"{batch.id} was not submitted to W&B; settle it with --not-trained")
    if step is None:
        return enter(conn, batch, submission, Evidence(Fate("failed", reason)))
    with WandbApi(ServerlessSettings.from_env(), seconds=ASKING_SECONDS) as api:
        events = api.events(submission.job_id) if submission.job_id is not None else []
        new = {c.step: c for c in api.checkpoints(submission.model_id) if c.id not in submission.known}
    if step not in new:
        have = ", ".join(map(str, sorted(new))) or "none"
        raise LedgerConflict(f"step {step} did not come to {submission.model} since then; those that did: {have}")
    fate = Fate("trained", f"a person says that step {step} of {submission.model} came of it", new[step])
    return enter(conn, batch, submission, Evidence(fate, curve_of(events)))


@dataclass(frozen=True)
class Evidence:
    """What became of it, and the curve and seconds of the training as far as they are known."""

    fate: Fate
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def enter(conn: psycopg.Connection, batch: Batch, submission: Submission, evidence: Evidence) -> str:
    """Enter in ledger and registry what the evidence on a batch proves. Returns it in words."""
    fate = evidence.fate
    if fate.state == "trained":
        result = result_of(conn, batch, submission, evidence)
        model = register_candidate(conn, result)
        advance_batch(conn, batch.id, "trained", result={**(batch.result or {}), **result.summary()})
        return f"{batch.id} is trained: {fate.reason}; it is registered as step {model.step}"
    if fate.state == "failed":
        void(conn, batch.id, submission, fate.reason)
        advance_batch(conn, batch.id, "failed", error=fate.reason)
        return f"{batch.id} is failed: {fate.reason}"
    return f"{batch.id} stays unknown: {fate.reason}"


def ask(api: WandbApi, submission: Submission) -> Evidence:
    """What W&B has on a submission now. An answer that cannot be had proves nothing."""
    try:
        events = api.events(submission.job_id) if submission.job_id is not None else []
        checkpoints = api.checkpoints(submission.model_id)
    except ServiceError as error:
        return Evidence(Fate("unknown", str(error)))
    return Evidence(fate_of(submission, checkpoints, events), curve_of(events))


def curve_of(events: Sequence[Event]) -> list[dict[str, float]]:
    """One point per update, under the names that our own training uses."""
    steps = [event.data for event in events if event.kind == "gradient_step"]
    return [
        {"update": float(n), **{_NAMES.get(k, k): float(v) for k, v in data.items() if _is_number(v)}}
        for n, data in enumerate(steps)
    ]


_NAMES = {
    "policy_loss": "loss/train",
    "loss": "loss/train",
    "entropy": "loss/entropy",
    "kl_div": "loss/kl_base",
    "loss/kl_div": "loss/kl_base",
    "grad_norm": "loss/grad_norm",
    "learning_rate": "loss/learning_rate",
}
"""Names that W&B gives to what has another name here."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def result_of(conn: psycopg.Connection, batch: Batch, submission: Submission, evidence: Evidence) -> TrainingResult:
    checkpoint, manifest = evidence.fate.checkpoint, Manifest.from_json(batch.manifest)
    assert checkpoint is not None
    path = RemoteCheckpoint(f"wandb-artifact:///{submission.model}:step{checkpoint.step}")
    names = set.intersection(*(set(point) for point in evidence.curve)) - {"update"} if evidence.curve else set()
    return TrainingResult(
        batch_id=batch.id,
        model_line=batch.model_line,
        base_step=manifest.base_step,
        step=_free_step(conn, batch, checkpoint.step),
        checkpoint_path=path,
        checkpoint_digest=digest([path, checkpoint.id]),
        metrics={name: math.fsum(p[name] for p in evidence.curve) / len(evidence.curve) for name in sorted(names)},
        curve=evidence.curve,
        seconds=evidence.seconds,
        backend=BACKEND,
    )


def _free_step(conn: psycopg.Connection, batch: Batch, wanted: int) -> int:
    """The step under which a batch's model is registered: W&B's own, unless one that was deleted there had it."""
    models = list_models(conn, batch.model_line)
    for model in models:
        if model.batch_id == batch.id:
            return model.step
    taken = {model.step for model in models}
    return wanted if wanted not in taken else max(taken) + 1


def recorded(batch: Batch) -> TrainingResult:
    """The result of a batch that is trained, from the ledger."""
    kept = batch.result or {}
    try:
        return TrainingResult(
            batch_id=batch.id,
            model_line=batch.model_line,
            base_step=batch.base_step,
            step=kept["step"],
            checkpoint_path=RemoteCheckpoint(kept["checkpoint_path"]),
            checkpoint_digest=kept["digest"],
            metrics=kept["metrics"],
            curve=kept["curve"],
            seconds=kept["seconds"],
            backend=kept["backend"],
        )
    except KeyError as error:
        raise LedgerConflict(f"{batch.id} is {batch.state} and its result lacks {error}; it is not at W&B's") from error


def void(conn: psycopg.Connection, batch_id: str, submission: Submission, reason: str) -> None:
    update_submission(conn, batch_id, replace(submission, void=reason))
