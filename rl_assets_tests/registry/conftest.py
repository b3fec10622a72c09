"""A trained batch with two checkpoints that can be played."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest

from rl_assets import harness
from rl_assets.registry.checkpoints import base_path, checkpoint_digest
from rl_assets.registry.models import register_base, register_candidate
from rl_assets.settings import Settings
from rl_assets.store.ledger import Batch, get_batch
from rl_assets.training.base import WarmStart, ensure_base_policy
from rl_assets.training.record import TrainingRecord, write_record
from rl_assets_tests.registry.made import GATE, LINE, a_batch, a_result


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a step 0 that has imitated next to nothing, and a step 1 that has imitated a bit more."""
    data = tmp_path_factory.mktemp("data")
    ensure_base_policy(data, LINE, warm_start=WarmStart(episodes=16, passes=1))
    elsewhere = tmp_path_factory.mktemp("more")
    more = ensure_base_policy(elsewhere, LINE, warm_start=WarmStart(episodes=32, passes=1))
    step = base_path(data, LINE).with_name("0001")
    shutil.copytree(more.path, step)
    curve = [{"update": 0.0, "loss/train": 0.5}]
    write_record(step, TrainingRecord("batch-1", 0, curve, passes=[{"pass": 0.0}], best_pass=0))
    return data


@pytest.fixture
def batch(conn: psycopg.Connection, trained: Path) -> Batch:
    """A trained batch whose candidate is step 1, with the gate's snapshots provided and step 0 as champion."""
    settings = Settings(trained)
    harness.provide(conn, settings, "gate", GATE)
    base = base_path(trained, LINE)
    register_base(conn, LINE, base, checkpoint_digest(base), metrics={})
    batch_id = a_batch(conn, "1", 0, state="trained")
    register_candidate(conn, a_result(batch_id, base.with_name("0001"), 0, 1))
    return get_batch(conn, batch_id)
