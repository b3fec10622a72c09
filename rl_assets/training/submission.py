"""A training that was handed to W&B: what is written down before, and what the evidence says became of it.

W&B takes no idempotency key and lists no jobs. What can be known is the answer to the submission, the events of a job
whose id came back, and the checkpoints that were not there before. Asking for these belongs in `serverless`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rl_assets.errors import MalformedInput
from rl_assets.text import in_a_line

KEY = "submission"
"""Under which the ledger keeps it in a batch's result."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as W&B lists it."""

    id: str
    step: int


@dataclass(frozen=True)
class Event:
    """What W&B says of a job. kind: training_started, gradient_step, training_ended or training_failed."""

    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Submission:
    """Written before it is sent. attempt: of the batch. model: `<entity>/<project>/<name>`. base_step: of the newest
    checkpoint there, which W&B trains from. known: ids of all checkpoints there. job_id: from the answer. void: why it
    is certain that no training came of it."""

    attempt: int
    model_id: str
    model: str
    base_step: int
    known: tuple[str, ...]
    submitted_at: str
    job_id: str | None = None
    void: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "known": list(self.known)}


@dataclass(frozen=True)
class Fate:
    """What became of a submission, in words, and the checkpoint that it made if it is trained."""

    state: Literal["trained", "failed", "unknown"]
    reason: str
    checkpoint: Checkpoint | None = None


def open_submission(result: Mapping[str, Any] | None, attempt: int) -> Submission | None:
    """The submission of an attempt at a batch that W&B may have accepted. Raises MalformedInput where it is garbled."""
    raw = (result or {}).get(KEY)
    if raw is None:
        return None
    try:
        submission = Submission(**{**raw, "known": tuple(raw["known"])})
    except (KeyError, TypeError) as error:
        raise MalformedInput(f"the ledger's record of a submission is garbled ({error}); restore the row") from error
    return submission if submission.attempt == attempt and submission.void is None else None


def fate_of(submission: Submission, checkpoints: Sequence[Checkpoint], events: Sequence[Event]) -> Fate:
    """What the evidence proves. checkpoints: all that are there now. events: the job's, none if its id is not known."""
    new = sorted((c for c in checkpoints if c.id not in submission.known), key=lambda c: c.step)
    steps = " and ".join(str(c.step) for c in new)
    failure = next((e for e in events if e.kind == "training_failed"), None)
    ended = any(e.kind == "training_ended" for e in events)
    if failure is not None:
        said = in_a_line(str(failure.data.get("error_message") or "no reason given"), 300)
        if not new:
            return Fate("failed", f"W&B says that the training failed: {said}")
        return Fate(
            "unknown",
            f"W&B says that the training failed ({said}), and step {steps} of {submission.model} came meanwhile: "
            "somebody else trains it too; end that, then settle the batch with `rl-assets batches settle`",
        )
    if len(new) > 1:
        return Fate(
            "unknown",
            f"steps {steps} of {submission.model} came since {submission.submitted_at}: somebody else trains it too; "
            "look at W&B which is of this batch, then settle it with `rl-assets batches settle`",
        )
    if submission.job_id is not None and not ended:
        done = sum(e.kind == "gradient_step" for e in events)
        return Fate("unknown", f"job {submission.job_id} has not ended, after {done} updates; W&B is asked again")
    if new:
        return Fate("trained", f"step {new[0].step} of {submission.model} came of it", new[0])
    if ended:
        return Fate(
            "unknown", f"job {submission.job_id} has ended and its checkpoint is not listed yet; W&B is asked again"
        )
    return Fate(
        "unknown",
        f"no answer came to the submission of {submission.submitted_at}, and {submission.model} is at step "
        f"{submission.base_step} as before; W&B is asked again. If no job runs there, settle the batch with "
        "`rl-assets batches settle --not-trained`",
    )
