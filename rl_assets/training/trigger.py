"""Whether to train now: the decision that the sensor, the daily schedule, the forcing job and the command line share.

An episode is claimed in one transaction; the run that trains on it is requested afterwards. A crash in between is
healed by looking again, because what is decided here follows from the ledger and from which runs are alive alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rl_assets.errors import LedgerConflict
from rl_assets.registry.models import champion_step
from rl_assets.registry.rollout import staged_rollout
from rl_assets.store.ledger import (
    IN_FLIGHT,
    Batch,
    advance_batch,
    batches,
    branch_batch,
    claim_batch,
    get_batch,
    readiness,
)
from rl_assets.training.submission import open_submission
from rl_assets.wording import counted

if TYPE_CHECKING:
    import psycopg

ATTEMPTS = 3
"""Times a batch is trained before it needs a person, and times what follows a training is tried."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Runs:
    """The orchestrator's runs of one batch: the id of the one that lives, and the `run_key`s that have ended."""

    live: str | None
    ended: frozenset[str]


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the queue led to: a batch to run under `run_key`, or only a reason why nothing is to be run.
    too_few: that reason is that more judged episodes are needed."""

    reason: str
    batch: Batch | None = None
    run_key: str | None = None
    too_few: bool = False


def look(
    conn: psycopg.Connection, *, model_line: str, minimum: int, runs_of: Callable[[str], Runs], most_stale: int = 0
) -> Look:
    """Decide what the next run of a model line is, claiming a batch if `minimum` fresh episodes wait.

    One batch of a line is in flight at a time. `runs_of` gives the runs of a batch; it is called at most once. Where a
    run or another look moves a batch between reading and writing, what it did stands, and the next look decides.
    """
    in_flight = batches(conn, model_line=model_line, states=IN_FLIGHT, limit=1)
    failed = [] if in_flight else batches(conn, model_line=model_line, states=("failed",), limit=20)
    seen = next((batch for batch in (*in_flight, *failed) if in_flight or batch.attempt < ATTEMPTS), None)
    if seen is None:
        return claim(conn, model_line=model_line, minimum=minimum, forced_by=None, most_stale=most_stale)
    if (not in_flight or seen.state == "evaluated") and (held := _held(conn, model_line)) is not None:
        return Look(held)
    try:
        runs = runs_of(seen.id)
        return _resume(conn, seen, runs) if in_flight else _retry(conn, seen, runs)
    except LedgerConflict:
        if get_batch(conn, seen.id) == seen and batches(conn, model_line=model_line, states=IN_FLIGHT) == in_flight:
            raise
        return Look(f"{seen.id} has moved while it was looked at; the next look decides")


def claim(
    conn: psycopg.Connection, *, model_line: str, minimum: int, forced_by: str | None, most_stale: int = 0
) -> Look:
    """Claim a batch of `minimum` fresh episodes; where `forced_by` says who wants it, fewer will do if fewer wait.

    Fresh are episodes of the champion, and of the `most_stale` steps before it.
    One batch of a line is in flight at a time; while one is, nothing is claimed. The run of a batch claimed here is
    requested by whoever called, or else by the training sensor's next look. Raises `LedgerConflict` if it is forced and
    nothing waits.
    """
    base_step = champion_step(conn, model_line)
    if base_step is None:
        return Look(f"{model_line} has no champion yet; materialize base_policy")
    ready = readiness(conn, model_line, base_step, most_stale)
    counts = f"{ready.fresh} of {minimum} fresh episodes"
    if ready.waiting_groups:
        waits = "waits" if ready.waiting_groups == 1 else "wait"
        counts += f"; {counted(ready.waiting_groups, 'group')} {waits} for a judge"
    if (held := _held(conn, model_line)) is not None:
        return Look(f"{held} ({counts})")
    if ready.in_flight_batch is not None:
        return Look(f"{ready.in_flight_batch} is in flight; one batch of {model_line} is trained at a time ({counts})")
    if forced_by is None and ready.fresh < minimum:
        return Look(counts, too_few=True)
    if ready.fresh < minimum:
        logger.warning("the threshold of %d is overridden by %s: %d fresh episodes", minimum, forced_by, ready.fresh)
    batch = claim_batch(
        conn,
        model_line=model_line,
        base_step=base_step,
        minimum=minimum,
        forced_by=forced_by,
        most_stale=most_stale,
    )
    if batch is None:
        return Look(f"{counts}; another look claimed them first")
    return _request(batch, f"{counts}: claimed as {batch.id}, on top of step {base_step}")


def branch(conn: psycopg.Connection, batch_id: str, *, model_line: str, forced_by: str) -> Look:
    """Train once more on the manifest of a batch that was promoted or rejected, with the settings of now.

    What comes of it stands on the same step as the first, is a step of its own, and passes the gate or does not go
    live. The run is requested as after `claim`. Raises LedgerConflict.
    """
    if (first := get_batch(conn, batch_id)).model_line != model_line:
        raise LedgerConflict(f"{batch_id} is of {first.model_line} and this is {model_line}; set TRAINING_MODEL_LINE")
    if (held := _held(conn, model_line)) is not None:
        raise LedgerConflict(held)
    made = branch_batch(conn, batch_id, forced_by)
    return _request(made, f"{batch_id} is trained once more as {made.id}, on top of step {made.base_step}")


def record_failure(conn: psycopg.Connection, batch_id: str, *, run_id: str, run_key: str | None, error: str) -> str:
    """Enter in the ledger that a run of a batch failed; returns what was done, for the log.

    A batch that is not trained yet becomes `failed`, or `unknown` where a service that it was handed to may have
    trained it. One that is trained keeps its state, since its episodes are consumed: what follows the training is
    repeated by the next look. One that another run trains keeps its state, too.
    """
    batch = get_batch(conn, batch_id)
    if run_key is not None and not f"{run_key}:".startswith(f"{_key(batch)}:"):
        return f"run {run_id} belongs to an earlier attempt of {batch_id}, which is {batch.state}"
    if batch.state == "training" and batch.run_id not in (None, run_id):
        # A second run, launched by hand and cancelled in the queue, says nothing of the one that trains.
        return f"{batch_id} stays training in run {batch.run_id}: run {run_id} ended with {error}"
    try:
        return _fail(conn, batch, run_id, error)
    except LedgerConflict:
        if get_batch(conn, batch_id) == batch:
            raise
        return record_failure(conn, batch_id, run_id=run_id, run_key=run_key, error=error)  # by what it is now


def _fail(conn: psycopg.Connection, batch: Batch, run_id: str, error: str) -> str:
    """Raises LedgerConflict if the batch has moved since it was read."""
    if batch.state not in ("reserved", "training"):
        return f"{batch.id} stays {batch.state}: run {run_id} failed with {error}"
    if batch.state == "training" and open_submission(batch.result, batch.attempt) is not None:
        advance_batch(conn, batch.id, "unknown", run_id=run_id, error=error, seen=batch)
        return f"{batch.id} is unknown: run {run_id} ended with {error} after it was submitted"
    advance_batch(conn, batch.id, "failed", run_id=run_id, error=error, seen=batch)
    logger.error("batch %s failed in run %s: %s", batch.id, run_id, error)
    return f"{batch.id} is failed: {error}"


def _retry(conn: psycopg.Connection, failed: Batch, runs: Runs) -> Look:
    if runs.live is not None:  # it would begin the next attempt itself, beside the run that is requested here
        return Look(f"{failed.id} is failed and is in run {runs.live}; it is tried again once that has ended")
    batch = advance_batch(conn, failed.id, "reserved", seen=failed)
    logger.warning("batch %s is tried again, attempt %d of %d", batch.id, batch.attempt, ATTEMPTS)
    return _request(batch, f"{batch.id} is tried again: attempt {batch.attempt} of {ATTEMPTS}")


def _resume(conn: psycopg.Connection, batch: Batch, runs: Runs) -> Look:
    if runs.live is not None:
        return Look(f"{batch.id} is {batch.state}, in run {runs.live}")
    if batch.state == "unknown":
        from rl_assets.training.reconcile import reconcile

        return Look(reconcile(conn, batch))
    if batch.state == "reserved" and _key(batch) not in runs.ended:
        return _request(batch, f"{batch.id} is claimed and has no run")
    if batch.state in ("reserved", "training"):
        return Look(_fail(conn, batch, batch.run_id or "", "its run ended without a result"))
    repeats = sum(key.startswith(f"{_key(batch)}:after-") for key in runs.ended)
    if repeats >= ATTEMPTS:
        return Look(
            f"{batch.id} is {batch.state}, and what follows failed {repeats} times; read the error of its run, then "
            "materialize what failed once it is mended, or, where it cannot be, turn the candidate down with "
            f"`rl-assets batches reject {batch.id} --reason TEXT`"
        )
    return Look(f"{batch.id} is {batch.state}; what follows is repeated", batch, f"{_key(batch)}:after-{repeats + 1}")


def _held(conn: psycopg.Connection, model_line: str) -> str | None:
    """Why nothing is trained now: what comes next stands on the champion, and a candidate may be about to become it."""
    rollout = staged_rollout(conn, model_line)
    if rollout is None:
        return None
    return (
        f"step {rollout.step} of {model_line} is with {rollout.percentage} % of the agents; training waits for its end"
    )


def _key(batch: Batch) -> str:
    return f"{batch.id}:{batch.attempt}"


def _request(batch: Batch, reason: str) -> Look:
    return Look(reason, batch, _key(batch))
