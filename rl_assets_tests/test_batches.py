from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest

from rl_assets import cli
from rl_assets.registry.models import register_candidate
from rl_assets.store.ledger import advance_batch, claim_batch, get_batch, readiness
from rl_assets_tests.registry.made import a_checkpoint, a_result
from rl_assets_tests.store.waiting import LINE, a_champion, waiting


@pytest.fixture
def failed(conn: psycopg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A batch of twenty episodes whose training failed, on the database that the command line uses."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("DAGSTER_PG_URL", postgres_url)
    a_champion(conn)
    waiting(conn, 20, siblings=10)
    batch = claim_batch(conn, model_line=LINE, base_step=0, minimum=20, forced_by=None)
    assert batch is not None
    advance_batch(conn, batch.id, "training")
    advance_batch(conn, batch.id, "failed", error="the disk was full")
    return batch.id


def test_a_failed_batch_is_listed_with_its_error(failed: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(["batches", "list"]) == 0
    said = capsys.readouterr().out
    assert failed in said
    assert "the disk was full" in said


def test_a_decided_batch_is_listed_with_the_gates_reason(
    failed: str, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
):
    for state in ("reserved", "training", "trained"):
        advance_batch(conn, failed, state)
    for state in ("evaluated", "rejected"):
        advance_batch(conn, failed, state, result={"decision": "no trades"})
    assert cli.run(["batches", "list"]) == 0
    assert "no trades" in capsys.readouterr().out


def test_a_failed_batch_can_be_tried_again(failed: str, conn: psycopg.Connection):
    assert cli.run(["batches", "retry", failed]) == 0
    batch = get_batch(conn, failed)
    assert (batch.state, batch.attempt) == ("reserved", 2)


def test_a_failed_batch_gives_its_episodes_back(failed: str, conn: psycopg.Connection):
    assert readiness(conn, LINE, 0).fresh == 0
    assert cli.run(["batches", "free", failed]) == 0
    assert readiness(conn, LINE, 0).fresh == 20


def test_a_batch_is_branched_from_once_it_is_decided_upon(
    failed: str, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
):
    assert cli.run(["batches", "branch", failed]) == cli.FAILED
    assert "is failed; only what was promoted or rejected is trained once more" in capsys.readouterr().err
    for state in ("reserved", "training", "trained", "evaluated", "rejected"):
        advance_batch(conn, failed, state)
    assert cli.run(["batches", "branch", failed]) == 0
    said = capsys.readouterr().out
    assert f"{failed} is trained once more as batch-" in said
    branch = said.split(" as ")[1].split(",")[0]
    assert cli.run(["batches", "free", branch]) == 0
    assert f"{branch} is freed; its episodes stay with {failed}" in capsys.readouterr().out
    assert readiness(conn, LINE, 0).fresh == 0


def test_a_trained_batch_whose_checkpoint_is_lost_is_rejected_and_its_line_goes_on(
    failed: str, conn: psycopg.Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.run(["batches", "reject", failed, "--reason", "the disk is gone"]) == cli.FAILED
    assert "is failed, and only what is trained or evaluated is rejected" in capsys.readouterr().err
    for state in ("reserved", "training"):
        advance_batch(conn, failed, state)
    checkpoint = a_checkpoint(tmp_path, 1)
    register_candidate(conn, a_result(failed, checkpoint, 0, 1, LINE))
    advance_batch(conn, failed, "trained")
    shutil.rmtree(checkpoint)

    assert cli.run(["batches", "reject", failed]) != 0
    assert "--reason" in capsys.readouterr().err
    assert cli.run(["batches", "reject", failed, "--reason", "the disk is gone"]) == 0
    assert f"{failed} is rejected, and step 1 of {LINE} with it" in capsys.readouterr().out
    assert cli.run(["batches", "list"]) == 0
    assert "the disk is gone" in capsys.readouterr().out
    ready = readiness(conn, LINE, 0)
    assert (ready.in_flight_batch, ready.fresh, ready.claimed) == (None, 0, 20)
    assert cli.run(["batches", "branch", failed]) == 0


@pytest.mark.parametrize("verb", [["retry"], ["branch"], ["free"], ["reject", "--reason", "none"]])
def test_a_batch_that_is_none_is_said(failed: str, capsys: pytest.CaptureFixture[str], verb: list[str]):
    assert cli.run(["batches", *verb, "batch-none"]) == cli.FAILED
    assert "the ledger has no batch 'batch-none'" in capsys.readouterr().err


def test_what_is_trained_cannot_be_freed(failed: str, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]):
    for state in ("reserved", "training", "trained"):
        advance_batch(conn, failed, state)
    assert cli.run(["batches", "free", failed]) == cli.FAILED
    assert "is trained and cannot become freed" in capsys.readouterr().err


def test_a_person_says_that_an_unknown_batch_was_not_trained(
    failed: str, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
):
    for state in ("reserved", "training", "unknown"):
        advance_batch(conn, failed, state)
    assert cli.run(["batches", "settle", failed]) != 0
    assert "give either --trained STEP or --not-trained" in capsys.readouterr().err
    assert cli.run(["batches", "settle", failed, "--trained", "1"]) == cli.FAILED
    assert "was not submitted to W&B" in capsys.readouterr().err
    assert cli.run(["batches", "settle", failed, "--not-trained"]) == 0
    batch = get_batch(conn, failed)
    assert (batch.state, batch.error) == ("failed", "a person says that no training came of it")
