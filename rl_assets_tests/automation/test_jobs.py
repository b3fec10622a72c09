from __future__ import annotations

from pathlib import Path

import dagster as dg
import psycopg
import pytest

from rl_assets.automation.jobs import force_training_job, retrain_job, rollback_job
from rl_assets.resources import Database, Trainer
from rl_assets.store.ledger import get_batch
from rl_assets_tests.registry.made import LINE, a_base, a_batch


@pytest.fixture
def resources(postgres_url: str) -> dict[str, object]:
    return {"database": Database(url=postgres_url), "trainer": Trainer(model_line=LINE, backend="cpu")}


def test_a_failed_batch_is_tried_again_as_the_launchpad_is_filled_in(
    conn: psycopg.Connection, resources: dict[str, object], tmp_path: Path
):
    a_base(conn, tmp_path)
    failed = a_batch(conn, "1", 0, state="failed")
    before = get_batch(conn, failed).attempt
    assert retrain_job.execute_in_process(resources=resources).success
    after = get_batch(conn, failed)
    assert (after.state, after.attempt) == ("reserved", before + 1)


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (retrain_job, "has failed; to train on what waits, run force_training"),
        (force_training_job, "no fresh episode of babylon-agent step 0 waits"),
        (rollback_job, "there is nothing to go back to"),
    ],
    ids=lambda value: value.name if isinstance(value, dg.JobDefinition) else "",
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    conn: psycopg.Connection,
    resources: dict[str, object],
    tmp_path: Path,
    job: dg.JobDefinition,
    sentence: str,
):
    a_base(conn, tmp_path)
    with pytest.raises(dg.Failure, match=sentence):
        job.execute_in_process(resources=resources)
