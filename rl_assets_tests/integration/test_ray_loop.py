"""The loop on a real Ray cluster of two nodes, of which one is lost on the way: the same bytes as on one machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rl_assets.services import databases
from rl_assets.settings import REPOSITORY, Settings
from rl_assets_tests.processes import run, settled
from rl_assets_tests.test_spread import patiently

pytestmark = [
    pytest.mark.ray,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("ray", "dagster_ray"))), reason="Ray is not installed; see docs/ray.md"
    ),
]
PLAYED = ("harness", "--snapshots", "8", "--siblings", "8", "--gate-snapshots", "24")
LOST_IN = (None, "training", "trained")
"""The state of the batch in which the second node is lost, which is while it is trained or evaluated."""
PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES": "1",
    "RAY_worker_register_timeout_seconds": "900",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_initial_delay_ms": "60000",
}
"""What Ray needs on a machine that has fewer cores than it has processes."""


def test_a_loop_on_two_nodes_makes_the_bytes_of_one_machine(
    reachable: Path, weak_policy: Path, monkeypatch: pytest.MonkeyPatch
):
    data, kept = settled(reachable / "data", weak_policy), reachable / "kept"
    for name, value in {"OMP_NUM_THREADS": "1", "RL_ASSETS_DATA": str(data), "TRAINING_MIN_TRAJECTORIES": "64"}.items():
        monkeypatch.setenv(name, value)
    code, said = run(data, *PLAYED)
    assert code == 0, said
    copied(data, kept)
    alone = decided(data, monkeypatch, on_ray=False)
    assert [step for step, _ in alone["models"]] == [0, 1]
    for lost_in in LOST_IN:
        copied(kept, data)  # trajectory ids come of the clock, and names of groups and batches of them
        assert decided(data, monkeypatch, on_ray=True, lost_in=lost_in) == alone, f"the node is lost in {lost_in}"


def decided(data: Path, monkeypatch: pytest.MonkeyPatch, *, on_ray: bool, lost_in: str | None = None) -> dict[str, Any]:
    """Run a daemon until the gate has decided on the batch of what was played: what the ledger then holds."""
    with databases(Settings(data)) as urls, monkeypatch.context() as environment:
        given = {"DATABASE_URL": urls.babylon, "DAGSTER_PG_URL": urls.dagster, "DAGSTER_HOME": str(REPOSITORY)}
        for name, value in {**given, "RL_ASSETS_DAGSTER_DIR": str(data / "dagster")}.items():
            environment.setenv(name, value)
        with psycopg.connect(urls.babylon, autocommit=True) as conn:
            if not on_ray:
                with daemon(data, {}):
                    followed(conn, None, lambda: None)
            else:
                with (
                    two_nodes(environment) as (cluster, second),
                    daemon(data, {"RAY_ADDRESS": cluster.address}),
                ):
                    followed(conn, lost_in, lambda: cluster.remove_node(second, allow_graceful=False))
            return {
                "judged": conn.execute("SELECT id FROM rl_assets.judgement_sets ORDER BY id").fetchall(),
                "batches": conn.execute("SELECT id, state FROM rl_assets.batches").fetchall(),
                "models": conn.execute("SELECT step, digest FROM rl_assets.models ORDER BY step").fetchall(),
                # An evaluation that was begun anew may be entered once more.
                "decisions": conn.execute("SELECT DISTINCT decision FROM rl_assets.evaluations").fetchall(),
            }


def followed(conn: psycopg.Connection, lost_in: str | None, lose_a_node: Callable[[], None]) -> None:
    """Wait for the decision; a node is lost when the batch is first seen in the state `lost_in`."""
    deadline, lost = time.monotonic() + 1500, False
    while True:
        found = conn.execute("SELECT state, error FROM rl_assets.batches").fetchone()
        if found is not None and found[0] == lost_in and not lost:
            lost = True
            lose_a_node()
        if found is not None and found[0] in ("promoted", "rejected"):
            assert lost == (lost_in is not None), f"the batch was never seen in {lost_in}"
            return
        assert time.monotonic() < deadline, f"the batch came to no end: {found}"
        time.sleep(0.2)


@contextmanager
def daemon(data: Path, environment: dict[str, str]) -> Iterator[None]:
    """Dagster's daemon, with a log in the data directory."""
    with (data / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "-w", "workspace.yaml"],
            cwd=REPOSITORY,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(120)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def two_nodes(environment: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A cluster with a job server, and its second node. Both find the variables of `cluster.env` in docs/ray.md."""
    from ray._private import services  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    jobs, first_agent, second_agent = free_ports(3)
    instance = {
        "DAGSTER_HOME": str(REPOSITORY / "deploy" / "ray"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{jobs}",
    }
    for name, value in {**PATIENT, **instance, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}.items():
        environment.setenv(name, value)
    environment.setattr(services, "get_node", patiently(services.get_node))
    room = {"num_cpus": 1, "object_store_memory": 200_000_000, "include_log_monitor": False}
    head = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": jobs}
    cluster = Cluster(initialize_head=True, head_node_args={**room, **head, "dashboard_agent_listen_port": first_agent})
    try:
        second = cluster.add_node(**room, dashboard_agent_listen_port=second_agent)
        cluster.wait_for_nodes(timeout=600)
        yield cluster, second
    finally:
        cluster.shutdown()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def copied(source: Path, target: Path) -> None:
    """In place of what is there, with its owners: the database server is none of root's."""
    subprocess.run(["rm", "-rf", str(target)], check=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
