"""The versions of a model line: which one is live, how a candidate takes its place, and the way back.

Every change of a line's state takes the line's lock, so that changes of one line happen one after the other, and is one
transaction over our tables and Babylon's `trained_models`. Babylon's app reads the newest `ready` or `deployed` row as
live: a candidate is there as `training`, a champion as `deployed`, the champion before it as `ready`, and a model that
was turned down or taken back as `archived`. Step 0 has no row there, because no gate has seen it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from rl_assets.errors import LedgerConflict, MissingCheckpoint
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.registry.decisions import Evaluation, latest_evaluation

if TYPE_CHECKING:
    from rl_assets.training.service import TrainingResult

_VERSION = re.compile(r"v(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
_COLUMNS = "model_line, step, version, checkpoint_path, digest, batch_id, parent_step, state, metrics, created_at"


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A model that can be played: its checkpoint was whole when this was made."""

    model_line: str
    step: int
    version: str
    checkpoint_path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Model:
    """A row of the registry. state: candidate, champion, retired or rejected. parent_step: what it was trained from."""

    model_line: str
    step: int
    version: str
    checkpoint_path: Path
    digest: str
    batch_id: str | None
    parent_step: int | None
    state: str
    metrics: dict[str, Any]
    created_at: datetime


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
    conn: psycopg.Connection, model_line: str, path: Path, digest: str, *, metrics: dict[str, float]
) -> Model:
    """Register step 0, which is champion until a candidate is better. One that is registered stays as it is, except
    that its path follows files that are the same. Compare the digest of what is returned with that of the files."""
    with conn.transaction():
        _lock(conn, model_line)
        known = _find(conn, model_line, 0)
        if known is None:
            reason = "the base policy, before any training"
            known = _insert(conn, model_line, 0, path, digest, None, None, "champion", metrics)
            conn.execute(
                "INSERT INTO rl_assets.champion (model_line, step, reason) VALUES (%s, 0, %s)", [model_line, reason]
            )
            _enter_history(conn, model_line, 0, None, reason)
        elif known.digest == digest and known.checkpoint_path != path:
            known = _move(conn, known, path)
    return known


def register_candidate(conn: psycopg.Connection, result: TrainingResult) -> Model:
    """Register what a training made, as a candidate here and as `training` for Babylon. Once per batch: a batch that is
    registered already gives the model that it gave.

    Raises LedgerConflict where the batch or the step is taken by another, or the base step is not registered.
    """
    line, step, path = result.model_line, result.step, result.checkpoint_path
    with conn.transaction():
        _lock(conn, line)
        if _find(conn, line, result.base_step) is None:
            raise LedgerConflict(f"step {result.base_step} of {line} is not registered; materialize base_policy first")
        known = _find(conn, line, step)
        others = _select(conn, "batch_id = %s", [result.batch_id])
        taken = [m.step for m in others if (m.model_line, m.step) != (line, step)]
        if taken or (known is not None and known.batch_id != result.batch_id):
            raise LedgerConflict(
                f"{result.batch_id} cannot be step {step} of {line}: "
                + (f"it is step {taken[0]}" if taken else f"that is a model of {known.batch_id if known else None}")
                + "; compare the registry with the checkpoints on disk (`rl-assets verify`)"
            )
        if known is not None:
            moved = known.digest == result.checkpoint_digest and known.checkpoint_path != path
            return _move(conn, known, path) if moved else known
        model = _insert(
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
        conn.execute(
            """INSERT INTO trained_models ("id", "modelId", "version", "baseModel", "trainingBatch", "status",
                                           "storagePath", "createdAt", "updatedAt")
               VALUES (%(id)s, %(id)s, %(version)s, %(base)s, %(batch)s, 'training', %(path)s, %(now)s, %(now)s)""",
            {
                "id": _babylon_id(model),
                "version": model.version,
                "base": f"{line}@{result.base_step}",
                "batch": result.batch_id,
                "path": str(path),
                "now": _now(),
            },
        )
    return model


def champion_step(conn: psycopg.Connection, model_line: str) -> int | None:
    """The step that is live, or None where the line has no model yet."""
    row = conn.execute("SELECT step FROM rl_assets.champion WHERE model_line = %s", [model_line]).fetchone()
    return None if row is None else int(row[0])


def get_latest_rl_model(conn: psycopg.Connection, model_line: str) -> LiveModel:
    """The model that every agent plays with: the champion, its checkpoint verified against the registered digest.

    Raises MissingCheckpoint where there is none, or its files are not what was registered.
    """
    step = champion_step(conn, model_line)
    if step is None:
        raise MissingCheckpoint(f"{model_line} has no model yet; materialize base_policy, or run `rl-assets harness`")
    return playable(get_model(conn, model_line, step))


def playable(model: Model) -> LiveModel:
    """A registered model with its checkpoint verified. Raises MissingCheckpoint."""
    if checkpoint_digest(model.checkpoint_path) != model.digest:
        raise MissingCheckpoint(
            f"checkpoint {model.checkpoint_path} is not what was registered as {model.model_line} step {model.step}; "
            "restore it, or take a kept step with `rl-assets models rollback`"
        )
    return LiveModel(model.model_line, model.step, model.version, model.checkpoint_path, model.digest)


def get_model(conn: psycopg.Connection, model_line: str, step: int) -> Model:
    """A registered model. Raises LedgerConflict where there is none of that step."""
    model = _find(conn, model_line, step)
    if model is None:
        raise LedgerConflict(f"{model_line} has no step {step}; `rl-assets models list` shows those that it has")
    return model


def model_of_batch(conn: psycopg.Connection, batch_id: str) -> Model:
    """The model that a batch became. Raises LedgerConflict where none is registered."""
    found = _select(conn, "batch_id = %s", [batch_id])
    if not found:
        raise LedgerConflict(f"{batch_id} has made no model yet; materialize trained_models of it")
    return found[0]


def list_models(conn: psycopg.Connection, model_line: str) -> list[Model]:
    """Every version of a line, newest first."""
    return _select(conn, "model_line = %s", [model_line])


def lineage(conn: psycopg.Connection, model_line: str, step: int) -> list[Model]:
    """A model and what it stands on, down to step 0. Raises LedgerConflict where there is none of that step."""
    models = {model.step: model for model in list_models(conn, model_line)}
    line = [models.get(step) or get_model(conn, model_line, step)]
    while (parent := line[-1].parent_step) is not None:
        line.append(models[parent])
    return line


def protected_steps(conn: psycopg.Connection, model_line: str) -> set[int]:
    """Steps whose checkpoints must be kept: champion, the one before it, candidates, and what all of them stand on."""
    pointer = conn.execute("SELECT step, previous_step FROM rl_assets.champion WHERE model_line = %s", [model_line])
    steps = {step for step in pointer.fetchone() or () if step is not None}
    steps |= {model.step for model in list_models(conn, model_line) if model.state == "candidate"}
    return {model.step for step in steps for model in lineage(conn, model_line, step)}


def promote(conn: psycopg.Connection, model_line: str, step: int) -> Change:
    """Make a candidate the champion, as the gate has decided. Does nothing where it is champion already.

    Raises LedgerConflict where no recorded decision of the gate, against the champion of now, says so, and
    MissingCheckpoint where its files are not what was registered.
    """
    playable(get_model(conn, model_line, step))
    with conn.transaction():
        champion, previous_step = _lock_champion(conn, model_line)
        model = get_model(conn, model_line, step)
        if model.step == champion.step:
            before = champion if previous_step is None else get_model(conn, model_line, previous_step)
            return Change(model, before, "it is champion already")
        reason = _decided(conn, model, champion, promote=True).decision.reason
        _set_state(conn, champion, "retired", babylon="ready")
        _point_at(conn, model, champion.step, reason)
        return Change(get_model(conn, model_line, step), champion, reason)


def reject(conn: psycopg.Connection, model_line: str, step: int) -> Model:
    """Turn a candidate down, as the gate has decided. Does nothing where it is turned down already.

    Raises LedgerConflict where no recorded decision of the gate, against the champion of now, says so.
    """
    with conn.transaction():
        champion, _ = _lock_champion(conn, model_line)
        model = get_model(conn, model_line, step)
        if model.state != "rejected":
            _decided(conn, model, champion, promote=False)
            _set_state(conn, model, "rejected", babylon="archived")
        return get_model(conn, model_line, step)


def rollback(conn: psycopg.Connection, model_line: str, reason: str) -> Change:
    """Make the champion before this one live again. The one that is taken back is rejected for good.

    Raises LedgerConflict where there is none to go back to, or the champion changed meanwhile, and MissingCheckpoint
    where the files of the one before are not what was registered; nothing is changed then.
    """
    seen, target = _pointer(conn, model_line)
    if target is None:
        raise LedgerConflict(f"{model_line} has no champion before step {seen}; there is nothing to go back to")
    playable(get_model(conn, model_line, target))
    with conn.transaction():
        champion, _ = _lock_champion(conn, model_line)
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
        _set_state(conn, champion, "rejected", babylon="archived")
        _point_at(conn, get_model(conn, model_line, target), earlier[0] if earlier else None, reason)
        return Change(get_model(conn, model_line, target), champion, reason)


def _decided(conn: psycopg.Connection, model: Model, champion: Model, *, promote: bool) -> Evaluation:
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


def _point_at(conn: psycopg.Connection, model: Model, previous_step: int | None, reason: str) -> None:
    conn.execute(
        """UPDATE rl_assets.champion SET step = %s, previous_step = %s, reason = %s, changed_at = clock_timestamp()
           WHERE model_line = %s""",
        [model.step, previous_step, reason, model.model_line],
    )
    _enter_history(conn, model.model_line, model.step, previous_step, reason)
    # Last, for this is what Babylon's app sees.
    _set_state(conn, model, "champion", babylon="deployed")


def _enter_history(conn: psycopg.Connection, line: str, step: int, previous_step: int | None, reason: str) -> None:
    conn.execute(
        "INSERT INTO rl_assets.champion_history (model_line, step, previous_step, reason) VALUES (%s, %s, %s, %s)",
        [line, step, previous_step, reason],
    )


def _set_state(conn: psycopg.Connection, model: Model, state: str, *, babylon: str) -> None:
    conn.execute(
        "UPDATE rl_assets.models SET state = %s WHERE model_line = %s AND step = %s",
        [state, model.model_line, model.step],
    )
    conn.execute(
        """UPDATE trained_models SET "status" = %(status)s, "updatedAt" = %(now)s,
             "deployedAt" = CASE WHEN %(status)s = 'deployed' THEN %(now)s ELSE "deployedAt" END,
             "archivedAt" = CASE WHEN %(status)s = 'archived' THEN %(now)s END
           WHERE "modelId" = %(id)s""",
        {"status": babylon, "now": _now(), "id": _babylon_id(model)},
    )


def _insert(
    conn: psycopg.Connection,
    line: str,
    step: int,
    path: Path,
    digest: str,
    batch_id: str | None,
    parent_step: int | None,
    state: str,
    metrics: dict[str, float],
) -> Model:
    conn.execute(
        """INSERT INTO rl_assets.models
             (model_line, step, version, checkpoint_path, digest, batch_id, parent_step, state, metrics)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)""",
        [line, step, _next_version(conn, line), str(path), digest, batch_id, parent_step, state, Jsonb(metrics)],
    )
    return get_model(conn, line, step)


def _move(conn: psycopg.Connection, model: Model, path: Path) -> Model:
    """The same files elsewhere: the data directory has been moved."""
    conn.execute(
        "UPDATE rl_assets.models SET checkpoint_path = %s WHERE model_line = %s AND step = %s",
        [str(path), model.model_line, model.step],
    )
    conn.execute(
        'UPDATE trained_models SET "storagePath" = %s, "updatedAt" = %s WHERE "modelId" = %s',
        [str(path), _now(), _babylon_id(model)],
    )
    return get_model(conn, model.model_line, model.step)


def _next_version(conn: psycopg.Connection, line: str) -> str:
    """The highest version of the line, ours or Babylon's, with its last part raised by one."""
    rows = conn.execute(
        """SELECT version FROM rl_assets.models WHERE model_line = %(line)s
           UNION ALL SELECT "version" FROM trained_models WHERE starts_with("modelId", %(line)s || '-v')""",
        {"line": line},
    ).fetchall()
    known = [tuple(map(int, found.groups())) for (text,) in rows if (found := _VERSION.fullmatch(text))]
    if not known:
        return "v1.0.0"
    major, minor, patch = max(known)
    return f"v{major}.{minor}.{patch + 1}"


def _find(conn: psycopg.Connection, line: str, step: int) -> Model | None:
    return next(iter(_select(conn, "model_line = %s AND step = %s", [line, step])), None)


def _select(conn: psycopg.Connection, where: str, parameters: list[object]) -> list[Model]:
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"SELECT {_COLUMNS} FROM rl_assets.models WHERE {where} ORDER BY step DESC",  # pyright: ignore
            parameters,
        ).fetchall()
    return [Model(**{**row, "checkpoint_path": Path(row["checkpoint_path"])}) for row in rows]


def _lock_champion(conn: psycopg.Connection, line: str) -> tuple[Model, int | None]:
    """Take the line's lock; returns the champion and the step before it."""
    _lock(conn, line)
    step, previous_step = _pointer(conn, line)
    return get_model(conn, line, step), previous_step


def _pointer(conn: psycopg.Connection, line: str) -> tuple[int, int | None]:
    row = conn.execute("SELECT step, previous_step FROM rl_assets.champion WHERE model_line = %s", [line]).fetchone()
    if row is None:
        raise LedgerConflict(f"{line} has no champion yet; materialize base_policy")
    return row[0], row[1]


def _lock(conn: psycopg.Connection, line: str) -> None:
    """Held until the transaction ends. Advisory, because a line that is new has no row yet that could be locked."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('rl_assets.models ' || %s, 0))", [line])


def _babylon_id(model: Model) -> str:
    return f"{model.model_line}-{model.version}"


def _now() -> datetime:
    """Babylon's columns hold UTC without saying so."""
    return datetime.now(UTC).replace(tzinfo=None)
