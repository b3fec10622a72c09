"""Checkpoints, batches, candidates and decisions made for tests of the registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from rl_assets.market.snapshot import SPLITS
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.registry.decisions import record_evaluation
from rl_assets.registry.gate import Decision, Play, compare
from rl_assets.registry.models import Model, champion_step, register_base, register_candidate
from rl_assets.training.manifest import Manifest, ManifestGroup
from rl_assets.training.result import TrainingResult

LINE = "babylon-agent"
GATE = SPLITS["gate"][:8:4]
"""Seeds of a gate that is quickly played: two snapshots of two market days."""
DAYS = np.repeat(np.arange(16), 4)


def some_play(expected_pnl: float = 0.0, **changes: float) -> Play:
    """Play on 64 snapshots with 4 siblings in which every episode goes alike."""
    values = {"expected_pnl": expected_pnl, "realised_pnl": 0.0, "max_drawdown": 5.0, "breaches": 0.0, "trades": 8.0}
    return Play(**{name: np.full((len(DAYS), 4), value) for name, value in {**values, **changes}.items()})


def a_decision(promote: bool, look: int = 1) -> Decision:
    return compare(DAYS, some_play(2.0 if promote else 0.0), some_play(0.0), look=look)


def a_checkpoint(root: Path, step: int) -> Path:
    path = root / f"{step:04d}"
    path.mkdir(parents=True)
    (path / "config.json").write_text(f'{{"step": {step}}}', encoding="utf-8")
    return path


def a_batch(conn: psycopg.Connection, name: str, base_step: int, state: str = "promoted", line: str = LINE) -> str:
    """A batch in the ledger that holds one group, in the given state."""
    batch_id = f"batch-{name:0>16}"
    groups = (ManifestGroup(f"group-{name}", (f"{name}-0", f"{name}-1"), (0.0, 1.0)),)
    manifest = Manifest(
        batch_id=batch_id,
        model_line=line,
        base_step=base_step,
        judgement_sets=("judgements",),
        windows=("2026-11-23T08:00",),
        groups=groups,
    )
    result = {"metrics": {"loss/train": 0.5}, "seconds": 3.0, "backend": "cpu"}
    conn.execute(
        """INSERT INTO rl_assets.batches (id, model_line, base_step, state, episodes, groups, manifest, result)
           VALUES (%s, %s, %s, %s, 2, 1, %s, %s)""",
        [batch_id, line, base_step, state, Jsonb(manifest.to_json()), Jsonb(result)],
    )
    return batch_id


def a_result(batch_id: str, path: Path, base_step: int, step: int, line: str = LINE) -> TrainingResult:
    return TrainingResult(
        batch_id=batch_id,
        model_line=line,
        base_step=base_step,
        step=step,
        checkpoint_path=path,
        checkpoint_digest=checkpoint_digest(path),
        metrics={"loss/train": 0.5},
        curve=[],
        seconds=3.0,
        backend="cpu",
    )


def a_base(conn: psycopg.Connection, root: Path, line: str = LINE) -> Model:
    path = a_checkpoint(root / line, 0)
    return register_base(conn, line, path, checkpoint_digest(path), metrics={"loss": 1.0})


def a_candidate(conn: psycopg.Connection, root: Path, step: int, base_step: int | None = None) -> Model:
    """A candidate on top of the champion, unless `base_step` names another step."""
    base = champion_step(conn, LINE) if base_step is None else base_step
    assert base is not None
    batch_id = a_batch(conn, str(step), base)
    return register_candidate(conn, a_result(batch_id, a_checkpoint(root / LINE, step), base, step))


def evaluated(conn: psycopg.Connection, model: Model, *, promote: bool) -> Decision:
    """The gate's recorded decision on a candidate, against the champion of now."""
    champion, decision = champion_step(conn, model.model_line), a_decision(promote)
    assert champion is not None and model.batch_id is not None
    record_evaluation(
        conn, batch_id=model.batch_id, candidate_step=model.step, champion_step=champion, decision=decision
    )
    return decision
