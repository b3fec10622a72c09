"""Which checkpoints may go, and their deletion: told to the database first, then moved aside, then deleted, here and in
the store.

A prune that is killed at any point is finished by the next one: what was told and is not gone yet is taken up again. So
are the copies that this machine has of what another one pruned.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from rl_assets.errors import RlAssetsError
from rl_assets.registry import archive
from rl_assets.registry.checkpoints import KEEP, RemoteCheckpoint
from rl_assets.registry.models import get_model, list_models, playable, protected_steps
from rl_assets.registry.partial import abandoned, size_of, sweep
from rl_assets.registry.rows import lock
from rl_assets.settings import ServerlessSettings


@dataclass(frozen=True, slots=True)
class Pruned:
    """A directory that was deleted, or would be. step: None for one that was never finished."""

    step: int | None
    path: Path
    bytes: int


def needed_steps(conn: psycopg.Connection, model_line: str) -> set[int]:
    """Steps whose checkpoints must stay: those that `protected_steps` names (the champion, the one before it,
    candidates, the base of what is being trained, and what all of these stand on), the two models of an open rollout,
    and every step that the manifest of a batch names as its base, unless the batch was freed."""
    rows = conn.execute(
        """SELECT base_step FROM rl_assets.batches WHERE model_line = %(line)s AND state <> 'freed'
           UNION SELECT step FROM rl_assets.rollouts WHERE model_line = %(line)s AND state IN ('staged', 'watched')
           UNION SELECT champion_step FROM rl_assets.rollouts WHERE model_line = %(line)s
             AND state IN ('staged', 'watched')""",
        {"line": model_line},
    ).fetchall()
    return protected_steps(conn, model_line) | {step for (step,) in rows}


def pruned_steps(conn: psycopg.Connection, model_line: str) -> set[int]:
    """Steps whose checkpoints retention gave up."""
    rows = conn.execute("SELECT step FROM rl_assets.pruned_checkpoints WHERE model_line = %s", [model_line]).fetchall()
    return {step for (step,) in rows}


def prunable(conn: psycopg.Connection, model_line: str, checkpoints: Path, keep: int) -> list[Pruned]:
    """Checkpoints that may go, the oldest first: not needed, not among the newest `keep`, and still on disk or in the
    store.

    checkpoints: the directory of the line's steps. At least the newest is kept: the number of the next step follows it.
    """
    models = list_models(conn, model_line)
    stay = needed_steps(conn, model_line) | {model.step for model in models[: max(keep, 1)]}
    stay |= pruned_steps(conn, model_line)
    found = []
    for model in sorted(models, key=lambda model: model.step):
        path = model.checkpoint_path
        if model.step in stay or not isinstance(path, Path) or not _is_of(path, checkpoints):
            continue
        size = _bytes_at(path)
        if size is not None:
            found.append(Pruned(model.step, path, size))
    return found


def prune(
    conn: psycopg.Connection, model_line: str, checkpoints: Path, *, keep: int = KEEP, dry_run: bool = False
) -> list[Pruned]:
    """Delete the checkpoints that may go, and directories that a killed process left; returns what went, with its size.

    dry_run: say what would go, and touch nothing. Raises RlAssetsError where the disk refuses; the next prune goes on.
    """
    leftovers = [Pruned(None, path, size_of(path)) for path in abandoned(checkpoints)] if checkpoints.is_dir() else []
    if dry_run:
        begun = [Pruned(step, path, size) for step, path, size in _unfinished(conn, model_line)]
        return [*begun, *prunable(conn, model_line, checkpoints, keep), *leftovers]
    with conn.transaction():
        lock(conn, model_line)
        for found in prunable(conn, model_line, checkpoints, keep):
            conn.execute(
                "INSERT INTO rl_assets.pruned_checkpoints (model_line, step, path, bytes) VALUES (%s, %s, %s, %s)",
                [model_line, found.step, str(found.path), found.bytes],
            )
    try:
        went = [
            Pruned(step, path, size)
            for step, path, size in _unfinished(conn, model_line)
            if _finish(conn, model_line, checkpoints, step, path)
        ]
        return [*went, *(found for found in leftovers if sweep(found.path))]
    except OSError as error:
        raise RlAssetsError(
            f"{error.filename} cannot be deleted ({error.strerror}); see to its permissions, then prune again"
        ) from error


def shown(gone: Sequence[Pruned], *, dry_run: bool) -> str:
    """What a prune did, in a sentence."""
    steps = ", ".join(str(one.step) for one in gone if one.step is not None)
    unfinished = sum(one.step is None for one in gone)
    size = sum(one.bytes for one in gone) / 2**20
    what = f"steps {steps or 'none'}" + (f", and {unfinished} that were never finished" if unfinished else "")
    return f"{'would delete' if dry_run else 'deleted'} {what}: {size:,.1f} MiB"


def restore(conn: psycopg.Connection, model_line: str, step: int, serverless: ServerlessSettings) -> Path:
    """Fetch a checkpoint from W&B unless it is here, and enter that it is back; returns where it is.

    Raises RlAssetsError where it is kept at W&B alone, and MissingCheckpoint where it is not what was registered.
    """
    from rl_assets.tracking import fetch_checkpoint

    model = get_model(conn, model_line, step)
    path = model.checkpoint_path
    if isinstance(path, RemoteCheckpoint):
        raise RlAssetsError(f"{path} is kept at W&B and needs no copy here")
    if not path.exists():
        place = f"{serverless.entity}/{serverless.project}" if serverless.entity else serverless.project
        fetch_checkpoint(f"{place}/{model_line}:step{step}", model.digest, path)
    playable(model)
    forget_pruning(conn, model_line, step)
    archive.keep(path)
    return path


def forget_pruning(conn: psycopg.Connection, model_line: str, step: int) -> None:
    """Enter that a checkpoint is back."""
    conn.execute("DELETE FROM rl_assets.pruned_checkpoints WHERE model_line = %s AND step = %s", [model_line, step])


def _finish(conn: psycopg.Connection, model_line: str, checkpoints: Path, step: int, path: Path) -> bool:
    """Delete what was told; False where the step is needed again and still there."""
    aside = path.with_name(f".pruned-{path.name}")
    with conn.transaction():
        lock(conn, model_line)
        stays = _bytes_at(path) is not None and (
            step in needed_steps(conn, model_line) or not _is_of(path, checkpoints)
        )
        if stays:
            forget_pruning(conn, model_line, step)
        elif path.is_dir():
            os.replace(path, aside)
    if stays:
        if path.is_dir():
            archive.keep(path)  # another machine may have deleted it there
        return False
    if aside.is_dir():
        shutil.rmtree(aside)
    archive.discard(path)
    conn.execute(
        "UPDATE rl_assets.pruned_checkpoints SET gone_at = clock_timestamp() WHERE model_line = %s AND step = %s",
        [model_line, step],
    )
    return True


def _unfinished(conn: psycopg.Connection, model_line: str) -> list[tuple[int, Path, int]]:
    rows = conn.execute(
        """SELECT step, path, bytes, gone_at IS NULL FROM rl_assets.pruned_checkpoints
           WHERE model_line = %s ORDER BY step""",
        [model_line],
    ).fetchall()
    told = ((step, Path(path), size, begun) for step, path, size, begun in rows)
    return [(step, path, size) for step, path, size, begun in told if begun or _is_copy(path)]


def _is_copy(path: Path) -> bool:
    """Whether a checkpoint that is gone from the store is still here: the machine that pruned it was another."""
    return path.is_dir() and archive.archive_of(path) is not None


def _bytes_at(path: Path) -> int | None:
    """The size of a checkpoint here or, failing that, in the store; None where it is in neither."""
    return size_of(path) if path.is_dir() else archive.kept_bytes(path)


def _is_of(path: Path, checkpoints: Path) -> bool:
    """Whether a path is that of a step in the directory of steps, and nothing else that a row may name."""
    return path.name.isdigit() and path.parent.resolve() == checkpoints.resolve()
