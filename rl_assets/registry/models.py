"""The versions of a model line: which one is live, how a candidate takes its place, and the way back.

Every change of a line's state takes the line's lock, so that changes of one line happen one after the other, and is one
transaction over our tables and Babylon's `trained_models`. Babylon's app reads the newest `ready` or `deployed` row as
live: a candidate is there as `training`, a champion as `deployed`, the champion before it as `ready`, and a model that
was turned down or taken back as `archived`. Step 0 has no row there, because no gate has seen it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from rl_assets.errors import LedgerConflict, MissingCheckpoint
from rl_assets.registry.checkpoints import RemoteCheckpoint, checkpoint_digest
from rl_assets.registry.decisions import Evaluation, latest_evaluation
from rl_assets.registry.rollout import close, has_candidate, open_rollout, staged_rollout
from rl_assets.registry.rows import (
    Model,
    enter_history,
    find,
    get_model,
    insert,
    lock,
    lock_champion,
    move,
    point_at,
    pointer,
    select,
    set_state,
)

if TYPE_CHECKING:
    from rl_assets.training.result import TrainingResult


@dataclass(frozen=True, slots=True)
class PlayableModel:
    """A model that can be played: its checkpoint was whole when this was made."""

    model_line: str
    step: int
    version: str
    checkpoint_path: Path | RemoteCheckpoint
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """Who is champion now and who was before; `before` is the same model where nothing was left to do."""

    model: Model
    before: Model
    reason: str

    def __str__(self) -> str:
        now, then = self.model, self.before
        return f"step {now.step}, version {now.version} (before: step {then.step}, version {then.version})"


def register_base(
    conn: psycopg.Connection, model_line: str, path: Path | RemoteCheckpoint, digest: str, *, metrics: dict[str, float]
) -> Model:
    """Register step 0, which is champion until a candidate is better. One that is registered stays as it is, except
    that its path follows files that are the same. Compare the digest of what is returned with that of the files."""
    with conn.transaction():
        lock(conn, model_line)
        known = find(conn, model_line, 0)
        if known is None:
            reason = "the base policy, before any training"
            known = insert(conn, model_line, 0, path, digest, None, None, "champion", metrics)
            conn.execute(
                "INSERT INTO rl_assets.champion (model_line, step, reason) VALUES (%s, 0, %s)", [model_line, reason]
            )
            enter_history(conn, model_line, 0, None, reason)
        elif known.digest == digest and known.checkpoint_path != path:
            known = move(conn, known, path)
    return known


def register_candidate(conn: psycopg.Connection, result: TrainingResult) -> Model:
    """Register what a training made, as a candidate here and as `training` for Babylon. Once per batch: a batch that is
    registered already gives the model that it gave.

    Raises LedgerConflict where the batch or the step is taken by another, or the base step is not registered.
    """
    line, step, path = result.model_line, result.step, result.checkpoint_path
    with conn.transaction():
        lock(conn, line)
        if find(conn, line, result.base_step) is None:
            raise LedgerConflict(f"step {result.base_step} of {line} is not registered; materialize base_policy first")
        known = find(conn, line, step)
        others = select(conn, "batch_id = %s", [result.batch_id])
        taken = [m.step for m in others if (m.model_line, m.step) != (line, step)]
        if taken or (known is not None and known.batch_id != result.batch_id):
            raise LedgerConflict(
                f"{result.batch_id} cannot be step {step} of {line}: "
                + (f"it is step {taken[0]}" if taken else f"that is a model of {known.batch_id if known else None}")
                + "; compare the registry with the checkpoints on disk (`rl-assets verify`)"
            )
        if known is not None:
            moved = known.digest == result.checkpoint_digest and known.checkpoint_path != path
            return move(conn, known, path) if moved else known
        return insert(
            conn,
            line,
            step,
            path,
            result.checkpoint_digest,
            result.batch_id,
            result.base_step,
            "candidate",
            result.metrics,
        )


def champion_step(conn: psycopg.Connection, model_line: str) -> int | None:
    """The step that is live, or None where the line has no model yet."""
    row = conn.execute("SELECT step FROM rl_assets.champion WHERE model_line = %s", [model_line]).fetchone()
    return None if row is None else int(row[0])


def get_latest_rl_model(conn: psycopg.Connection, model_line: str, agent_id: str | None = None) -> PlayableModel:
    """The model to play with, its checkpoint verified against the registered digest: the champion, or, for an agent
    that a rollout has reached (`rollout.has_candidate`), the candidate.

    Raises MissingCheckpoint where there is none, or its files are not what was registered.
    """
    step = champion_step(conn, model_line)
    if step is None:
        raise MissingCheckpoint(f"{model_line} has no model yet; materialize base_policy, or run `rl-assets harness`")
    rollout = None if agent_id is None else staged_rollout(conn, model_line)
    if rollout is not None and has_candidate(rollout, str(agent_id)):
        step = rollout.step
    return playable(get_model(conn, model_line, step))


def playable(model: Model) -> PlayableModel:
    """A registered model with its checkpoint verified. Raises MissingCheckpoint."""
    if checkpoint_digest(model.checkpoint_path) != model.digest:
        raise MissingCheckpoint(
            f"checkpoint {model.checkpoint_path} is not what was registered as {model.model_line} step {model.step}; "
            "restore it, or take a kept step with `rl-assets models rollback`"
        )
    return PlayableModel(model.model_line, model.step, model.version, model.checkpoint_path, model.digest)


def model_of_batch(conn: psycopg.Connection, batch_id: str) -> Model:
    """The model that a batch became. Raises LedgerConflict where none is registered."""
    found = select(conn, "batch_id = %s", [batch_id])
    if not found:
        raise LedgerConflict(f"{batch_id} has made no model yet; materialize trained_models of it")
    return found[0]


def list_models(conn: psycopg.Connection, model_line: str) -> list[Model]:
    """Every version of a line, newest first."""
    return select(conn, "model_line = %s", [model_line])


def lineage(conn: psycopg.Connection, model_line: str, step: int) -> list[Model]:
    """A model and what it stands on, down to step 0. Raises LedgerConflict where there is none of that step."""
    models = {model.step: model for model in list_models(conn, model_line)}
    line = [models.get(step) or get_model(conn, model_line, step)]
    while (parent := line[-1].parent_step) is not None:
        line.append(models[parent])
    return line


def protected_steps(conn: psycopg.Connection, model_line: str) -> set[int]:
    """Steps whose checkpoints must be kept: the champion, the one before it, candidates, those that a batch is being
    trained from, and what all of these stand on."""
    rows = conn.execute(
        """SELECT step FROM rl_assets.champion WHERE model_line = %(line)s
           UNION SELECT previous_step FROM rl_assets.champion WHERE model_line = %(line)s AND previous_step IS NOT NULL
           UNION SELECT step FROM rl_assets.models WHERE model_line = %(line)s AND state = 'candidate'
           UNION SELECT base_step FROM rl_assets.batches WHERE model_line = %(line)s
             AND state NOT IN ('promoted', 'rejected', 'freed')""",
        {"line": model_line},
    ).fetchall()
    steps = [step for (step,) in rows]
    return {model.step for step in steps for model in lineage(conn, model_line, step)}


def promote(conn: psycopg.Connection, model_line: str, step: int) -> Change:
    """Make a candidate the champion, as the gate has decided. Does nothing where it is champion already.

    Raises LedgerConflict where no recorded decision of the gate, against the champion of now, says so, and
    MissingCheckpoint where its files are not what was registered.
    """
    playable(get_model(conn, model_line, step))
    with conn.transaction():
        champion, previous_step = lock_champion(conn, model_line)
        model = get_model(conn, model_line, step)
        if model.step == champion.step:
            before = champion if previous_step is None else get_model(conn, model_line, previous_step)
            return Change(model, before, "it is champion already")
        reason = decided(conn, model, champion, promote=True).decision.reason
        others = staged_rollout(conn, model_line)
        if others is not None and others.step != step:
            raise LedgerConflict(
                f"step {step} of {model_line} cannot be promoted while step {others.step} is with {others.percentage} "
                "% of the agents; wait for its end, or take it back with `rl-assets models rollback`"
            )
        set_state(conn, champion, "retired")
        point_at(conn, model, champion.step, reason)
        return Change(get_model(conn, model_line, step), champion, reason)


def reject(conn: psycopg.Connection, model_line: str, step: int) -> Model:
    """Turn a candidate down, as the gate has decided. Does nothing where it is turned down already.

    Raises LedgerConflict where no recorded decision of the gate, against the champion of now, says so.
    """
    with conn.transaction():
        champion, _ = lock_champion(conn, model_line)
        model = get_model(conn, model_line, step)
        if model.state != "rejected":
            decided(conn, model, champion, promote=False)
            set_state(conn, model, "rejected")
        return get_model(conn, model_line, step)


def rollback(conn: psycopg.Connection, model_line: str, reason: str) -> Change:
    """Make the champion before this one live again, or, while a candidate is with some of the agents, give these the
    champion back. The one that is taken back is rejected for good.

    Raises LedgerConflict where there is none to go back to, or the champion changed meanwhile, and MissingCheckpoint
    where the files of the one before are not what was registered; nothing is changed then.
    """
    ended = _take_back_candidate(conn, model_line, reason)
    if ended is not None:
        return ended
    seen, target = pointer(conn, model_line)
    if target is None:
        raise LedgerConflict(f"{model_line} has no champion before step {seen}; there is nothing to go back to")
    playable(get_model(conn, model_line, target))
    with conn.transaction():
        champion, _ = lock_champion(conn, model_line)
        if champion.step != seen:
            raise LedgerConflict(
                f"the champion of {model_line} changed from step {seen} to step {champion.step} meanwhile; look at "
                "`rl-assets models list`, then roll back again if that is still wanted"
            )
        earlier = conn.execute(
            """SELECT previous_step FROM rl_assets.champion_history WHERE model_line = %s AND step = %s
               ORDER BY id DESC LIMIT 1""",
            [model_line, target],
        ).fetchone()
        staged, watched = staged_rollout(conn, model_line), open_rollout(conn, model_line)
        if staged is not None:
            raise LedgerConflict(
                f"step {staged.step} of {model_line} began to go live meanwhile; roll back again to take it back"
            )
        if watched is not None:
            close(conn, watched, "rolled_back", reason)
        set_state(conn, champion, "rejected")
        point_at(conn, get_model(conn, model_line, target), earlier[0] if earlier else None, reason)
        return Change(get_model(conn, model_line, target), champion, reason)


def _take_back_candidate(conn: psycopg.Connection, model_line: str, reason: str) -> Change | None:
    """End the rollout in which two models play; None where there is none."""
    with conn.transaction():
        champion, _ = lock_champion(conn, model_line)
        rollout = staged_rollout(conn, model_line)
        if rollout is None:
            return None
        candidate = get_model(conn, model_line, rollout.step)
        close(conn, rollout, "rolled_back", reason)
        set_state(conn, candidate, "rejected")
        return Change(champion, get_model(conn, model_line, rollout.step), reason)


def decided(conn: psycopg.Connection, model: Model, champion: Model, *, promote: bool) -> Evaluation:
    """The gate's decision on a candidate, which must be the newest, as wanted, and about the champion of now."""
    who, verb = f"step {model.step} of {model.model_line}", "promoted" if promote else "rejected"
    if model.state != "candidate" or model.batch_id is None:
        raise LedgerConflict(f"{who} is {model.state} and cannot be {verb}; only a candidate can")
    found = latest_evaluation(conn, model.batch_id)
    if found is None or found.candidate_step != model.step or found.champion_step != champion.step:
        raise LedgerConflict(
            f"{who} cannot be {verb}: the gate has not compared it with the champion, step {champion.step}; "
            f"materialize benchmark_evaluations of {model.batch_id}"
        )
    if found.decision.promote is not promote:
        raise LedgerConflict(f"{who} cannot be {verb}, for the gate decided: {found.decision.reason}")
    return found
