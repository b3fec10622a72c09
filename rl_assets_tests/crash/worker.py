"""A process that loads everything once, and then forks a child per order: one that looks as the daemon's sensor does,
and materializes what it is asked to, until it is told to die or nothing is left to do.

Orders come as lines of JSON, and so do answers: the signal that ended the child, or its exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import dagster as dg
import pytest

from rl_assets.agents.skill import audit_kind_skill
from rl_assets.automation.partitions import BATCHES
from rl_assets.automation.runs import RUN_KEY
from rl_assets.automation.sensors import training_sensor
from rl_assets.definitions import build_defs
from rl_assets.market.config import WorldConfig
from rl_assets.market.leakage import audit_kind
from rl_assets.resources import Database, Lake, Trainer
from rl_assets_tests.crash.points import Points
from rl_assets_tests.pictures import leave_blank

LINE = "crash"
MINIMUM = 12
MOST_LOOKS = 8
NO_LOGS = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}
"""Overrides of a Dagster instance: two processes per step would follow its output."""
LOADED = (
    "art.local.backend",
    "dagster._core.storage.sqlite_storage",
    "matplotlib.backends.backend_agg",
    "pandas",
    "rl_assets.agents.line_player",
    "rl_assets.registry.evaluate",
    "rl_assets.reports.batch",
    "rl_assets.reports.runs",
    "rl_assets.training.step",
    "transformers.models.llama.modeling_llama",
    "wandb",
)
"""What a child would otherwise load for itself, which takes longer than its work."""


@dataclass(frozen=True)
class Order:
    """url: of the database. data: the data directory. home: of the Dagster instance. log: where the points that are
    reached are noted. die_at: the crash point, from 1, at which to be killed. stop_at: how the point begins at which
    enough has been done."""

    url: str
    data: str
    home: str
    log: str
    die_at: int | None
    stop_at: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def work(order: Order) -> None:
    """Look and run until a look has nothing to do."""
    points = Points(Path(order.log), order.die_at, order.stop_at)
    points.install(Path(order.data))
    resources = {
        "database": Database(url=order.url),
        "lake": Lake(directory=order.data),
        "trainer": Trainer(backend="cpu", model_line=LINE, min_trajectories=MINIMUM),
    }
    defs = build_defs(resource_overrides=resources)
    job = defs.resolve_job_def("training")
    needed = {name: value for name, value in resources.items() if name in training_sensor.required_resource_keys}
    with dg.DagsterInstance.local_temp(order.home, NO_LOGS) as instance:
        bury_the_dead(instance)
        for _ in range(MOST_LOOKS):
            with dg.build_sensor_context(instance=instance, definitions=defs, resources=needed) as context:
                result = training_sensor(context)
            assert isinstance(result, dg.SensorResult)
            if not result.run_requests:
                said = (result.skip_reason.skip_message if result.skip_reason else None) or ""
                sys.stdout.write(said + "\n")
                if said.endswith("fresh episodes"):
                    return
                continue
            (request,) = result.run_requests
            points.reach("before the request")
            instance.add_dynamic_partitions(str(BATCHES.name), [str(request.partition_key)])
            points.reach("before the run")
            run = job.execute_in_process(
                partition_key=request.partition_key,
                instance=instance,
                tags={RUN_KEY: str(request.run_key)},
                raise_on_error=True,
            )
            assert run.success
        raise AssertionError(f"after {MOST_LOOKS} looks there is still something to do")


def bury_the_dead(instance: dg.DagsterInstance) -> None:
    """What the daemon's run monitoring does: a run whose process is gone has failed."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])):
        instance.report_run_failed(run, "its process is gone")


def main() -> None:
    # Loaded before the first fork, in one thread: a fork keeps none of the others.
    for name in LOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    leave_blank(pytest.MonkeyPatch())
    # Kept by the functions, and the same for every child.
    audit_kind(WorldConfig())
    audit_kind_skill(WorldConfig())
    gc.freeze()  # no child looks through what was there before it
    for line in sys.stdin:
        order = Order(**json.loads(line))
        child = os.fork()
        if child == 0:
            with Path(order.log).with_suffix(".said").open("a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            code = 0
            try:
                work(order)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
