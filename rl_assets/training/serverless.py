"""Training at W&B through ART's ServerlessBackend: one batch, one submission, whatever the network does.

W&B takes no idempotency key, trains from a model's newest checkpoint and gives no list of jobs. So what is there is
written to the ledger before a batch is handed over, nothing is handed over twice, and a batch whose answer was lost
waits as `unknown` until the evidence decides (`submission.judge`): in the run itself, or at a later tick (`reconcile`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rl_assets.episodes import Episode, digest
from rl_assets.errors import (
    ConfigurationError,
    LedgerConflict,
    MalformedInput,
    MissingCheckpoint,
    RlAssetsError,
    ServiceError,
    UnknownOutcome,
)
from rl_assets.registry.checkpoints import Remote
from rl_assets.registry.models import get_model, list_models, protected_steps, register_candidate
from rl_assets.settings import ServerlessSettings
from rl_assets.store.ledger import Batch, advance_batch, get_batch
from rl_assets.store.submissions import begin_submission, update_submission
from rl_assets.training.manifest import Manifest
from rl_assets.training.result import TrainingResult
from rl_assets.training.submission import Checkpoint, Event, Submission, Verdict, judge, open_submission
from rl_assets.training.wandb_api import RemoteModel, WandbApi, refusal

if TYPE_CHECKING:
    import art
    import psycopg

BACKEND = "serverless"
LEARNING_RATE = 5e-6
"""Of the adapter that W&B trains on the base model: ART's default."""
EPSILON = 0.2
"""How far an importance ratio may leave 1 before PPO clips it."""
ASKING_SECONDS = 25.0
"""For all that is asked at a time: a sensor's tick ends at 60 s, and has more to do."""
REFUSED = frozenset({400, 401, 402, 403, 404, 405, 413, 422, 429})
"""Answers to a submission after which it is certain that nothing was accepted."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteBase:
    """Step 0 of a line at W&B: the base model before any training."""

    path: Remote
    digest: str
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


def ensure_remote_base(settings: ServerlessSettings, model_line: str) -> RemoteBase:
    """The model of a line at W&B, made where there is none. Raises ServiceError, and ConfigurationError where there is
    one on another base model."""
    with WandbApi(settings, seconds=ASKING_SECONDS) as api:
        model = api.model(settings.entity, settings.project, model_line, settings.base_model)
    if model.base_model != settings.base_model:
        raise ConfigurationError(
            f"{model.path} at W&B stands on {model.base_model}; set SERVERLESS_BASE_MODEL to it, or name a new "
            "line with TRAINING_MODEL_LINE"
        )
    path = _reference(model, 0)
    return RemoteBase(path, _identity(path, model, []))


def remote_digest(path: Remote) -> str:
    """The digest of a checkpoint at W&B as it is now. Raises MissingCheckpoint where it is gone, and ServiceError."""
    settings = ServerlessSettings.from_env()
    entity, project, name, _ = path.parts
    with WandbApi(settings, seconds=ASKING_SECONDS) as api:
        model = api.model(entity, project, name, settings.base_model)
        return _identity(path, model, api.checkpoints(model.id))


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
            evidence = _ask(api, submission)
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
        return enter(conn, batch, submission, Evidence(Verdict("failed", reason)))
    with WandbApi(ServerlessSettings.from_env(), seconds=ASKING_SECONDS) as api:
        events = api.events(submission.job_id) if submission.job_id is not None else []
        new = {c.step: c for c in api.checkpoints(submission.model_id) if c.id not in submission.known}
    if step not in new:
        have = ", ".join(map(str, sorted(new))) or "none"
        raise LedgerConflict(f"step {step} did not come to {submission.model} since then; those that did: {have}")
    verdict = Verdict("trained", f"a person says that step {step} of {submission.model} came of it", new[step])
    return enter(conn, batch, submission, Evidence(verdict, _curve(events)))


@dataclass(frozen=True)
class Evidence:
    """A verdict, and the curve and seconds of the training as far as they are known."""

    verdict: Verdict
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def enter(conn: psycopg.Connection, batch: Batch, submission: Submission, evidence: Evidence) -> str:
    """Enter in ledger and registry what the evidence on a batch proves. Returns it in words."""
    verdict = evidence.verdict
    if verdict.state == "trained":
        result = _result(conn, batch, submission, evidence)
        model = register_candidate(conn, result)
        advance_batch(conn, batch.id, "trained", result={**(batch.result or {}), **result.summary()})
        return f"{batch.id} is trained: {verdict.reason}; it is registered as step {model.step}"
    if verdict.state == "failed":
        _void(conn, batch.id, submission, verdict.reason)
        advance_batch(conn, batch.id, "failed", error=verdict.reason)
        return f"{batch.id} is failed: {verdict.reason}"
    return f"{batch.id} stays unknown: {verdict.reason}"


class ServerlessTrainingService:
    """Trains at W&B. `train` may be called again for a batch: what was handed over is asked about, and not handed over
    again. The connection is the ledger's."""

    def __init__(self, conn: psycopg.Connection, model_line: str, settings: ServerlessSettings) -> None:
        self._conn, self.model_line, self._settings = conn, model_line, settings

    def train(self, manifest: Manifest, episodes: Mapping[str, Episode]) -> TrainingResult:
        """One step of GRPO from `manifest.base_step` on exactly the manifest's episodes, of a batch that is `training`.

        Raises UnknownOutcome, with the batch moved to `unknown`, where nobody knows yet whether it was trained. After
        every other error it certainly was not: MalformedInput where episodes are missing, stale or without token ids,
        ServiceError where W&B refuses or cannot be reached, MissingCheckpoint and LedgerConflict where the base step is
        not what W&B would train from.
        """
        batch = get_batch(self._conn, manifest.batch_id)
        if manifest.model_line != self.model_line:
            raise MalformedInput(f"{batch.id} is of line {manifest.model_line}, this service trains {self.model_line}")
        if batch.state not in ("training", "unknown"):
            return _recorded(batch)
        submission = open_submission(batch.result, batch.attempt)
        if submission is None:
            submission, evidence = self._submit(batch, manifest, _groups(manifest, episodes))
        else:
            with WandbApi(self._settings, seconds=ASKING_SECONDS) as api:
                evidence = _ask(api, submission)
        if evidence.verdict.state == "trained":
            return _result(self._conn, batch, submission, evidence)
        reason = evidence.verdict.reason
        if evidence.verdict.state == "failed":
            _void(self._conn, batch.id, submission, reason)
            raise ServiceError(reason)
        advance_batch(self._conn, batch.id, "unknown", error=reason)
        raise UnknownOutcome(f"nobody knows yet whether {batch.id} was trained: {reason}")

    def _submit(
        self, batch: Batch, manifest: Manifest, groups: list[art.TrajectoryGroup]
    ) -> tuple[Submission, Evidence]:
        """Hand a batch over, once, and wait for its end."""
        base = get_model(self._conn, self.model_line, manifest.base_step)
        if not isinstance(base.checkpoint_path, Remote):
            raise MalformedInput(
                f"step {base.step} of {self.model_line} is in {base.checkpoint_path} and W&B cannot train it; set "
                "TRAINING_BACKEND=cpu for this line, or name another with TRAINING_MODEL_LINE"
            )
        entity, project, name, step = base.checkpoint_path.parts
        with WandbApi(self._settings, seconds=ASKING_SECONDS) as api:
            model = api.model(entity, project, name, self._settings.base_model)
            known = self._rewound(api, model, base.checkpoint_path, base.digest)
        submission = Submission(
            attempt=batch.attempt,
            model_id=model.id,
            model=model.path,
            base_step=step,
            known=tuple(checkpoint.id for checkpoint in known),
            submitted_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        )
        began = time.perf_counter()
        submission = asyncio.run(self._hand_over(batch.id, submission, model, groups))
        with WandbApi(self._settings, seconds=ASKING_SECONDS) as api:
            evidence = _ask(api, submission)
        return submission, replace(evidence, seconds=time.perf_counter() - began)

    def _rewound(self, api: WandbApi, model: RemoteModel, base: Remote, base_digest: str) -> list[Checkpoint]:
        """The checkpoints of a model once `base` is the newest: later ones that were turned down are deleted, since W&B
        trains from the newest."""
        known, step = api.checkpoints(model.id), base.parts[-1]
        if _identity(base, model, known) != base_digest:
            raise MissingCheckpoint(
                f"{base} is not what was registered; take a kept step with `rl-assets models rollback`"
            )
        above = [checkpoint.step for checkpoint in known if checkpoint.step > step]
        ours = {m.digest: m.step for m in list_models(self._conn, self.model_line)}
        kept = protected_steps(self._conn, self.model_line)
        for later in above:
            mine = ours.get(_identity(_reference(model, later), model, known))
            if mine is None:
                raise LedgerConflict(
                    f"step {later} of {model.path} at W&B came from nobody here, and W&B would train from it: somebody "
                    "else trains this model; end that and delete the step there, or name another line with "
                    "TRAINING_MODEL_LINE"
                )
            if mine in kept:
                raise LedgerConflict(
                    f"W&B would train from step {later} of {model.path}, and the batch was played by step {step}; free "
                    "it, so that the next one is played by the champion"
                )
        if above:
            _log.info("W&B trains from the newest checkpoint; steps %s of %s, turned down, go", above, model.path)
            api.delete_checkpoints(model.id, above)
            known = api.checkpoints(model.id)
            if any(checkpoint.step > step for checkpoint in known):
                raise ServiceError(f"W&B has not deleted steps {above} of {model.path}; delete them there, then retry")
        return known

    async def _hand_over(
        self, batch_id: str, submission: Submission, model: RemoteModel, groups: list[art.TrajectoryGroup]
    ) -> Submission:
        """Submit through ART and wait. Returns the submission with what is known of it afterwards.

        Raises ServiceError where it is certain that W&B accepted nothing.
        """
        from openai import APIConnectionError, APIStatusError

        from rl_assets.training.art_serverless import trainable, watched_backend

        begun, now = False, submission

        def before() -> None:
            nonlocal begun
            begin_submission(self._conn, batch_id, submission)
            begun = True

        def after(job_id: str) -> None:
            nonlocal now
            now = replace(submission, job_id=job_id)
            update_submission(self._conn, batch_id, now)
            _log.info("%s is job %s on %s at W&B, from step %d", batch_id, job_id, model.path, submission.base_step)

        backend = watched_backend(self._settings, before, after)
        try:
            async with asyncio.timeout(self._settings.training_seconds):
                await backend.train(
                    trainable(model),
                    groups,
                    learning_rate=LEARNING_RATE,
                    ppo=True,
                    epsilon=EPSILON,
                    scale_rewards=False,
                )
        except Exception as error:
            if not begun:
                raise
            # Whatever went wrong on the way, what W&B has decides; only a refusal is known at once.
            said = " ".join(str(error).replace(str(self._settings.api_key), "***").split())[:300]
            refused = None
            if now.job_id is None and isinstance(error, APIStatusError) and error.status_code in REFUSED:
                refused = refusal(error.status_code, said)
            elif now.job_id is None and isinstance(error, APIConnectionError) and _never_connected(error):
                refused = f"W&B could not be reached ({error.__cause__}); nothing was submitted"
            if refused is not None:
                _void(self._conn, batch_id, now, refused)
                raise ServiceError(refused) from error
            _log.warning("while W&B trained %s: %s: %s", batch_id, type(error).__name__, said)
        finally:
            await backend.close()
        return now


def _never_connected(error: BaseException) -> bool:
    import httpx

    return isinstance(error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol))


def _groups(manifest: Manifest, episodes: Mapping[str, Episode]) -> list[art.TrajectoryGroup]:
    from rl_assets.training.codec import to_groups

    return to_groups(manifest, episodes)


def _ask(api: WandbApi, submission: Submission) -> Evidence:
    """What W&B has on a submission now. An answer that cannot be had proves nothing."""
    try:
        events = api.events(submission.job_id) if submission.job_id is not None else []
        checkpoints = api.checkpoints(submission.model_id)
    except ServiceError as error:
        return Evidence(Verdict("unknown", str(error)))
    return Evidence(judge(submission, checkpoints, events), _curve(events))


def _curve(events: Sequence[Event]) -> list[dict[str, float]]:
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


def _result(conn: psycopg.Connection, batch: Batch, submission: Submission, evidence: Evidence) -> TrainingResult:
    checkpoint, manifest = evidence.verdict.checkpoint, Manifest.from_json(batch.manifest)
    assert checkpoint is not None
    path = Remote(f"wandb-artifact:///{submission.model}:step{checkpoint.step}")
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


def _recorded(batch: Batch) -> TrainingResult:
    """The result of a batch that is trained, from the ledger."""
    kept = batch.result or {}
    try:
        return TrainingResult(
            batch_id=batch.id,
            model_line=batch.model_line,
            base_step=batch.base_step,
            step=kept["step"],
            checkpoint_path=Remote(kept["checkpoint_path"]),
            checkpoint_digest=kept["digest"],
            metrics=kept["metrics"],
            curve=kept["curve"],
            seconds=kept["seconds"],
            backend=kept["backend"],
        )
    except KeyError as error:
        raise LedgerConflict(f"{batch.id} is {batch.state} and its result lacks {error}; it is not at W&B's") from error


def _void(conn: psycopg.Connection, batch_id: str, submission: Submission, reason: str) -> None:
    update_submission(conn, batch_id, replace(submission, void=reason))


def _reference(model: RemoteModel, step: int) -> Remote:
    return Remote(f"wandb-artifact:///{model.path}:step{step}")


def _identity(path: Remote, model: RemoteModel, checkpoints: Sequence[Checkpoint]) -> str:
    """What the registry knows a checkpoint at W&B by: its name, and the id that W&B gave it. Step 0 is the base model.

    Raises MissingCheckpoint where there is none of that step.
    """
    step = path.parts[-1]
    if step == 0:
        return digest([path, f"base {model.base_model}"])
    for checkpoint in checkpoints:
        if checkpoint.step == step:
            return digest([path, checkpoint.id])
    raise MissingCheckpoint(f"{path} is not at W&B any more; take a kept step with `rl-assets models rollback`")
