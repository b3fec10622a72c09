"""Accidents around the ledger: a server that goes down, runs that are deleted or repeated, and many hands at once."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster_graphql.schema import create_schema

from rl_assets.automation.partitions import BATCHES
from rl_assets.automation.runs import RUN_KEY, runs_of_batch
from rl_assets.definitions import build_defs
from rl_assets.errors import LedgerConflict
from rl_assets.registry.models import champion_step, list_models, register_base
from rl_assets.resources import Database, Lake, Tracking, Trainer
from rl_assets.store.database import connect, migrate
from rl_assets.store.embedded import EmbeddedPostgres
from rl_assets.store.ledger import advance_batch, batches, claimed_ids, get_batch, readiness
from rl_assets.training.trigger import Look, Runs, look
from rl_assets_tests.crash.conftest import World
from rl_assets_tests.crash.worker import LINE as CRASH_LINE
from rl_assets_tests.store.waiting import LINE
from rl_assets_tests.store.waiting import waiting as wait_for_training

pytestmark = [pytest.mark.slow]
Run = Callable[..., dg.ExecuteInProcessResult]


def looked(conn: psycopg.Connection, instance: dg.DagsterInstance, *, line: str = LINE, minimum: int = 4) -> Look:
    return look(conn, model_line=line, minimum=minimum, runs_of=lambda batch: runs_of_batch(instance, batch))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as one:
        yield one


@pytest.fixture
def kept_instance() -> Iterator[dg.DagsterInstance]:
    """One that the UI may be opened on."""
    with dg.instance_for_test() as one:
        yield one


@pytest.fixture
def trained_here(trained: World, tmp_path: Path) -> Iterator[World]:
    world = trained.copy(tmp_path / "world")
    yield world
    world.drop()


@pytest.fixture
def run(trained_here: World, instance: dg.DagsterInstance, undrawn: None) -> Run:
    """Materializes assets of the training job for a batch, in this process, as a run with a key if one is given."""
    resources = {
        "database": Database(url=trained_here.url),
        "lake": Lake(directory=str(trained_here.data)),
        "trainer": Trainer(backend="cpu", model_line=CRASH_LINE, min_trajectories=4),
        "tracking": Tracking(mode="disabled"),
    }
    job = build_defs(resource_overrides=resources).resolve_job_def("training")

    def materialize(batch_id: str, *names: str, run_key: str | None = None) -> dg.ExecuteInProcessResult:
        instance.add_dynamic_partitions(str(BATCHES.name), [batch_id])
        return job.execute_in_process(
            asset_selection=[dg.AssetKey(name) for name in names] or None,
            partition_key=batch_id,
            instance=instance,
            tags={} if run_key is None else {RUN_KEY: run_key},
            raise_on_error=False,
        )

    return materialize


def test_a_server_that_crashes_in_any_transaction_loses_nothing_and_doubles_nothing(
    reachable: Path, instance: dg.DagsterInstance
):
    """A backend dies by SIGKILL just before each commit: Postgres ends all sessions and recovers from its log."""
    server = EmbeddedPostgres(reachable / "postgres", elsewhere=reachable / "elsewhere")
    server.up()
    try:
        migrate(server.url())
        with connect(server.url()) as conn:
            register_base(conn, LINE, Path("/nowhere/0000"), "0" * 64, metrics={})
            wait_for_training(conn, 8)
        states = []
        for state in ("reserved", "training", "trained", "evaluated", "rejected"):
            with pytest.raises(psycopg.OperationalError), connect(server.url()) as conn, conn.transaction():
                move(conn, instance, state)
                os.kill(conn.info.backend_pid, signal.SIGKILL)
            again = reconnected(server)
            states.append([batch.state for batch in batches(again, model_line=LINE)])
            move(again, instance, state)
            again.close()
        assert states == [[], ["reserved"], ["training"], ["trained"], ["evaluated"]]
        with connect(server.url()) as conn:
            (batch,) = batches(conn, model_line=LINE)
            assert (batch.state, batch.attempt, len(claimed_ids(conn, batch.id))) == ("rejected", 1, 4)
            assert readiness(conn, LINE, 0).fresh == 4
            events = conn.execute("SELECT to_state FROM rl_assets.batch_events ORDER BY id").fetchall()
            assert [state for (state,) in events] == ["reserved", "training", "trained", "evaluated", "rejected"]
            assert conn.execute('SELECT count(*) FROM trajectories WHERE "usedInTraining"').fetchone() == (4,)
    finally:
        server.down()


def move(conn: psycopg.Connection, instance: dg.DagsterInstance, state: str) -> None:
    if state == "reserved":
        assert looked(conn, instance).batch is not None
    else:
        advance_batch(conn, batches(conn, model_line=LINE)[0].id, state)


def reconnected(server: EmbeddedPostgres) -> psycopg.Connection:
    """A connection once the server has recovered; `up` waits until it answers."""
    server.up()
    return connect(server.url())


def test_of_many_sensors_at_once_one_claims_and_all_ask_for_the_same_run(conn: psycopg.Connection, postgres_url: str):
    register_base(conn, LINE, Path("/nowhere/0000"), "0" * 64, metrics={})
    wait_for_training(conn, 20)
    start = threading.Barrier(12)

    def sensor(_: int) -> set[str | None]:
        with connect(postgres_url) as own, dg.DagsterInstance.ephemeral() as nothing_ran:
            start.wait()
            return {looked(own, nothing_ran).run_key for _ in range(4)}

    with ThreadPoolExecutor(12) as pool:
        asked = set().union(*pool.map(sensor, range(12)))
    (batch,) = batches(conn, model_line=LINE)
    # One that loses the race to claim has nothing to ask for at that look.
    assert asked - {None} == {f"{batch.id}:1"}
    assert readiness(conn, LINE, 0).fresh == 16


def test_workers_and_sensors_at_once_train_each_episode_once(conn: psycopg.Connection, postgres_url: str):
    """Four look and work at once on one line, each carrying what it is asked for as far as it gets."""
    register_base(conn, LINE, Path("/nowhere/0000"), "0" * 64, metrics={})
    everybody = {episode.trajectory_id for episode in wait_for_training(conn, 40)}
    lock, ended = threading.Lock(), set()

    def worker(number: int) -> None:
        with connect(postgres_url) as own:
            for turn in itertools.count():
                with lock:
                    runs = Runs(None, frozenset(ended))
                try:
                    found = look(own, model_line=LINE, minimum=4, runs_of=lambda _, runs=runs: runs)
                    if found.batch is None:
                        if found.reason.startswith("0 of"):
                            return
                        continue
                    if (turn + number) % 4 == 0 and found.batch.state == "reserved":
                        advance_batch(own, found.batch.id, "failed", error="an accident")
                    else:
                        for state in ("training", "trained", "evaluated", "rejected"):
                            advance_batch(own, found.batch.id, state)
                except LedgerConflict:  # another worker, asked for the same run, was quicker
                    continue
                with lock:
                    ended.add(str(found.run_key))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(worker, number) for number in range(4)]:
            done.result()
    made = batches(conn, model_line=LINE)
    held = Counter(one for batch in made if batch.state != "freed" for one in claimed_ids(conn, batch.id))
    assert set(held.values()) == {1}
    assert held.keys() == everybody
    assert {batch.state for batch in made} <= {"rejected", "failed"}


@pytest.mark.parametrize(
    ("state", "after"), [("reserved", "requested"), ("training", "failed"), ("trained", "repeated")]
)
def test_a_run_that_was_deleted_in_the_ui_is_made_up_for(
    conn: psycopg.Connection, kept_instance: dg.DagsterInstance, state: str, after: str
):
    instance = kept_instance
    register_base(conn, LINE, Path("/nowhere/0000"), "0" * 64, metrics={})
    wait_for_training(conn, 4)
    batch_id = getattr(looked(conn, instance).batch, "id", "")
    run = instance.create_run_for_job(
        build_defs().resolve_job_def("training"), tags={"dagster/partition": batch_id, RUN_KEY: f"{batch_id}:1"}
    )
    for step in {"reserved": [], "training": ["training"], "trained": ["training", "trained"]}[state]:
        advance_batch(conn, batch_id, step, run_id=run.run_id)
    assert looked(conn, instance).run_key is None
    delete_in_the_ui(instance, run.run_id)
    found = looked(conn, instance)
    if after == "requested":
        assert found.run_key == f"{batch_id}:1"
    elif after == "failed":
        assert (found.run_key, get_batch(conn, batch_id).state) == (None, "failed")
        assert looked(conn, instance).run_key == f"{batch_id}:2"
    else:
        assert found.run_key == f"{batch_id}:1:after-1"
    assert len(batches(conn, model_line=LINE)) == 1
    assert len(claimed_ids(conn, batch_id)) == 4


def delete_in_the_ui(instance: dg.DagsterInstance, run_id: str) -> None:
    """What the button of the UI asks over GraphQL."""
    request = """mutation ($id: String!) { deletePipelineRun(runId: $id) { __typename } }"""
    with WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as ui:
        answer = create_schema().execute(request, variables={"id": run_id}, context=ui.create_request_context())
    assert (answer.errors, answer.data) == (None, {"deletePipelineRun": {"__typename": "DeletePipelineRunSuccess"}})
    assert instance.get_run_by_id(run_id) is None


def test_a_batch_that_is_run_again_from_its_manifest_stays_the_model_that_it_is(
    trained_here: World, run: Run, instance: dg.DagsterInstance
):
    with connect(trained_here.url) as conn:
        (batch,) = batches(conn, model_line=CRASH_LINE)
        before = list_models(conn, CRASH_LINE)
        for _ in range(2):  # the run as it was, executed again in the UI, and a backfill of the old batch
            assert run(batch.id, run_key=f"{batch.id}:1").success
            assert get_batch(conn, batch.id).state == "rejected"
        after = list_models(conn, CRASH_LINE)
        assert [(m.step, m.digest, m.batch_id) for m in after] == [(m.step, m.digest, m.batch_id) for m in before]
        assert champion_step(conn, CRASH_LINE) == 0
        assert conn.execute("SELECT count(*) FROM rl_assets.evaluations").fetchone() == (1,)
        assert looked(conn, instance, line=CRASH_LINE).reason == "0 of 4 fresh episodes"


def test_a_trained_batch_whose_checkpoint_is_gone_is_not_trained_again(trained_here: World, run: Run):
    with connect(trained_here.url) as conn:
        (batch,) = batches(conn, model_line=CRASH_LINE)
        candidate = list_models(conn, CRASH_LINE)[0]
        path = Path(str(candidate.checkpoint_path))
        path.rename(path.with_name("elsewhere"))
        result = run(batch.id, "trained_models")
        assert not result.success
        assert "restore it" in failure(result)
        assert not [one for one in path.parent.iterdir() if one.name.isdigit() and one.name != "0000"]
        assert get_batch(conn, batch.id).state == "trained"


def test_a_batch_that_was_freed_is_not_trained(trained_here: World, run: Run):
    with connect(trained_here.url) as conn:
        (batch,) = batches(conn, model_line=CRASH_LINE)
        conn.execute("UPDATE rl_assets.batches SET state = 'freed' WHERE id = %s", [batch.id])
        conn.execute("UPDATE rl_assets.models SET batch_id = NULL WHERE step = 1")
        result = run(batch.id, "trained_models")
        assert not result.success
        assert "freed" in failure(result)


def test_a_failed_batch_that_a_person_runs_again_is_its_next_attempt(trained_here: World, run: Run):
    with connect(trained_here.url) as conn:
        (batch,) = batches(conn, model_line=CRASH_LINE)
        conn.execute("UPDATE rl_assets.batches SET state = 'failed' WHERE id = %s", [batch.id])
        assert run(batch.id, "trained_models").success
        after = get_batch(conn, batch.id)
        assert (after.state, after.attempt) == ("trained", batch.attempt + 1)


def failure(result: dg.ExecuteInProcessResult) -> str:
    return " ".join(
        str(event.step_failure_data.error) + str(event.step_failure_data.user_failure_data)
        for event in result.all_events
        if event.is_step_failure
    )
