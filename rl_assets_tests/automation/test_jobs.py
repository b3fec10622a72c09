from __future__ import annotations

from pathlib import Path

import dagster as dg
import psycopg
import pytest
import yaml

from rl_assets.automation.jobs import force_training_job, rejudge_job, retrain_job, rollback_job
from rl_assets.definitions import defs
from rl_assets.resources import Database, Trainer
from rl_assets.store.ledger import batches, get_batch
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


def test_a_batch_that_was_decided_upon_is_branched_from(
    conn: psycopg.Connection, resources: dict[str, object], tmp_path: Path
):
    a_base(conn, tmp_path)
    first = a_batch(conn, "1", 0, state="rejected")
    config = {"ops": {"train_batch_again": {"config": {"batch": first}}}}
    assert retrain_job.execute_in_process(run_config=config, resources=resources).success
    (again,) = batches(conn, model_line=LINE, states=("reserved",))
    assert (again.branch_of, again.forced_by, again.attempt) == (first, "the job retrain", 1)
    assert get_batch(conn, first).state == "rejected"


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (retrain_job, "has failed; name one that was promoted or rejected"),
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


def test_what_the_description_of_rejudge_shows_can_be_pasted():
    _, _, shown = str(rejudge_job.description).partition("```yaml\n")
    config = yaml.safe_load(shown.partition("```")[0])
    assert config["resources"]["judge"]["config"]["kind"] == "ruler"
    assert dg.validate_run_config(defs.resolve_job_def("rejudge"), config)
