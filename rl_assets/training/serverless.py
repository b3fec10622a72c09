"""Training at W&B through ART's ServerlessBackend: one batch, one submission, whatever the network does.

W&B takes no idempotency key, trains from a model's newest checkpoint and gives no list of jobs. So what is there is
written to the ledger before a batch is handed over, nothing is handed over twice, and a batch whose answer was lost
waits as `unknown` until the evidence decides (`submission.judge`): in the run itself, or at a later tick (`reconcile`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rl_assets.episodes import Episode
from rl_assets.errors import (
    LedgerConflict,
    MalformedInput,
    MissingCheckpoint,
    ServiceError,
    UnknownOutcome,
)
from rl_assets.registry.checkpoints import RemoteCheckpoint
from rl_assets.registry.models import get_model, list_models, protected_steps
from rl_assets.settings import ServerlessSettings
from rl_assets.store.ledger import Batch, advance_batch, get_batch
from rl_assets.store.submissions import begin_submission, update_submission
from rl_assets.text import in_a_line
from rl_assets.training.manifest import Manifest
from rl_assets.training.reconcile import Evidence, ask, recorded, result_of, void
from rl_assets.training.remote_models import identity, reference
from rl_assets.training.result import TrainingResult
from rl_assets.training.submission import Checkpoint, Submission, open_submission
from rl_assets.training.wandb_api import ASKING_SECONDS, RemoteModel, WandbApi, refusal

if TYPE_CHECKING:
    import art
    import psycopg

LEARNING_RATE = 5e-6
"""Of the adapter that W&B trains on the base model: ART's default."""
EPSILON = 0.2
"""How far an importance ratio may leave 1 before PPO clips it."""
REFUSED = frozenset({400, 401, 402, 403, 404, 405, 413, 422, 429})
"""Answers to a submission after which it is certain that nothing was accepted."""

_log = logging.getLogger(__name__)


class ServerlessTrainingService:
    """Trains at W&B. `train` may be called again for a batch: what was handed over is asked about, and not handed over
    again. The connection is the ledger's."""

    def __init__(
        self, conn: psycopg.Connection, model_line: str, settings: ServerlessSettings, most_stale: int = 0
    ) -> None:
        self._conn, self.model_line, self._settings, self._most_stale = conn, model_line, settings, most_stale

    def train(self, manifest: Manifest, episodes: Mapping[str, Episode]) -> TrainingResult:
        """One step of GRPO from `manifest.base_step` on exactly the manifest's episodes, of a batch that is `training`.

        Raises UnknownOutcome, with the batch moved to `unknown`, where nobody knows yet whether it was trained. After
        every other error it certainly was not: MalformedInput where the manifest cannot be trained on or episodes are
        missing, stale or without token ids, ServiceError where W&B refuses or cannot be reached, MissingCheckpoint and
        LedgerConflict where the base step is not what W&B would train from.
        """
        manifest.check_trainable(self.model_line)
        batch = get_batch(self._conn, manifest.batch_id)
        if batch.state not in ("training", "unknown"):
            return recorded(batch)
        submission = open_submission(batch.result, batch.attempt)
        if submission is None:
            submission, evidence = self._submit(batch, manifest, _groups(manifest, episodes, self._most_stale))
        else:
            with WandbApi(self._settings, seconds=ASKING_SECONDS) as api:
                evidence = ask(api, submission)
        if evidence.fate.state == "trained":
            return result_of(self._conn, batch, submission, evidence)
        reason = evidence.fate.reason
        if evidence.fate.state == "failed":
            void(self._conn, batch.id, submission, reason)
            raise ServiceError(reason)
        advance_batch(self._conn, batch.id, "unknown", error=reason)
        raise UnknownOutcome(f"nobody knows yet whether {batch.id} was trained: {reason}")

    def _submit(
        self, batch: Batch, manifest: Manifest, groups: list[art.TrajectoryGroup]
    ) -> tuple[Submission, Evidence]:
        """Hand a batch over, once, and wait for its end."""
        base = get_model(self._conn, self.model_line, manifest.base_step)
        if not isinstance(base.checkpoint_path, RemoteCheckpoint):
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
            evidence = ask(api, submission)
        return submission, replace(evidence, seconds=time.perf_counter() - began)

    def _rewound(self, api: WandbApi, model: RemoteModel, base: RemoteCheckpoint, base_digest: str) -> list[Checkpoint]:
        """The checkpoints of a model once `base` is the newest: later ones that were turned down are deleted, since W&B
        trains from the newest."""
        known, step = api.checkpoints(model.id), base.parts[-1]
        if identity(base, model, known) != base_digest:
            raise MissingCheckpoint(
                f"{base} is not what was registered; take a kept step with `rl-assets models rollback`"
            )
        above = [checkpoint.step for checkpoint in known if checkpoint.step > step]
        ours = {m.digest: m.step for m in list_models(self._conn, self.model_line)}
        kept = protected_steps(self._conn, self.model_line)
        for later in above:
            mine = ours.get(identity(reference(model, later), model, known))
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
            said = in_a_line(str(error).replace(str(self._settings.api_key), "***"), 300)
            refused = None
            if now.job_id is None and isinstance(error, APIStatusError) and error.status_code in REFUSED:
                refused = refusal(error.status_code, said)
            elif now.job_id is None and isinstance(error, APIConnectionError) and _never_connected(error):
                refused = f"W&B could not be reached ({error.__cause__}); nothing was submitted"
            if refused is not None:
                void(self._conn, batch_id, now, refused)
                raise ServiceError(refused) from error
            _log.warning("while W&B trained %s: %s: %s", batch_id, type(error).__name__, said)
        finally:
            await backend.close()
        return now


def _never_connected(error: BaseException) -> bool:
    import httpx

    return isinstance(error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol))


def _groups(manifest: Manifest, episodes: Mapping[str, Episode], most_stale: int) -> list[art.TrajectoryGroup]:
    from rl_assets.training.codec import to_groups

    return to_groups(manifest, episodes, most_stale)
