from __future__ import annotations

import io
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from rl_assets.errors import LedgerConflict
from rl_assets.registry.lineage import kind_of, lineage_of
from rl_assets.registry.models import promote, register_candidate
from rl_assets.reports.lineage import lineage_picture
from rl_assets.store.ledger import claim_batch, claimed_ids, get_batch
from rl_assets.training.manifest import Manifest
from rl_assets_tests.registry.made import LINE, a_base, a_candidate, a_checkpoint, a_result, evaluated
from rl_assets_tests.store.made import SAMPLE
from rl_assets_tests.store.waiting import waiting


def trained(conn: psycopg.Connection, root: Path, step: int) -> str:
    """A model of 40 judged episodes of two hours on top of step 0, made as the ledger makes its batch."""
    for window in ("2026-11-23T08:00", "2026-11-23T09:00"):
        waiting(conn, 20, siblings=10, window=window)
    batch = claim_batch(conn, model_line=LINE, base_step=0, minimum=40, forced_by=None)
    assert batch is not None
    register_candidate(conn, a_result(batch.id, a_checkpoint(root / LINE, step), 0, step))
    return batch.id


def test_a_model_leads_to_each_of_its_episodes(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    batch_id = trained(conn, tmp_path, 1)
    newest, base = lineage_of(conn, LINE, 1)
    assert (base.model.step, base.sources, base.judgement_sets) == (0, (), ())
    assert newest.model.batch_id == batch_id
    assert sorted(source.trajectory_id for source in newest.sources) == claimed_ids(conn, batch_id)
    assert (len(newest.groups), len(newest.judgement_sets)) == (4, 2)
    assert newest.windows == ("2026-11-23T08:00", "2026-11-23T09:00")
    first = newest.sources[0]
    assert first.judgement_set in newest.judgement_sets
    assert (first.scenario, first.recorded, first.window in newest.windows) == (SAMPLE.scenario_id, True, True)
    manifest = Manifest.from_json(get_batch(conn, batch_id).manifest)
    rewards = {i: r for group in manifest.groups for i, r in zip(group.trajectory_ids, group.rewards, strict=True)}
    assert {source.trajectory_id: source.reward for source in newest.sources} == rewards
    rows = newest.by_origin()
    assert sum(row[3] for row in rows) == 40
    assert sum(row[2] for row in rows) == 4


def test_a_lineage_outlives_its_episodes(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    trained(conn, tmp_path, 1)
    conn.execute("DELETE FROM trajectories")
    newest = lineage_of(conn, LINE, 1)[0]
    assert len(newest.sources) == 40
    assert not any(source.recorded for source in newest.sources)
    shown = newest.to_json(episodes=True)
    assert (shown["episodes"], shown["episodes_still_recorded"], len(shown["sources"])) == (40, 0, 40)
    assert "sources" not in newest.to_json(episodes=False)


def test_a_chain_goes_down_to_step_0(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    for step in (1, 2, 3):
        evaluated(conn, a_candidate(conn, tmp_path, step), promote=True)
        promote(conn, LINE, step)
    assert [g.model.step for g in lineage_of(conn, LINE, 3)] == [3, 2, 1, 0]
    with pytest.raises(LedgerConflict, match="has no step 9"):
        lineage_of(conn, LINE, 9)


def test_benchmark_days_are_one_kind_of_scenario():
    assert kind_of("benchmark-train-000001-0123456789ab") == "benchmark-train"
    assert kind_of("pump-and-dump") == "pump-and-dump"
    assert kind_of(None) == "no longer recorded"


def test_the_picture_is_the_same_size_however_many_episodes_there_are(conn: psycopg.Connection, tmp_path: Path):
    a_base(conn, tmp_path)
    trained(conn, tmp_path, 1)
    image = Image.open(io.BytesIO(lineage_picture(lineage_of(conn, LINE, 1))))
    assert image.width == 900
    assert 200 < image.height < 800
    base = Image.open(io.BytesIO(lineage_picture(lineage_of(conn, LINE, 0))))
    assert base.height < image.height
