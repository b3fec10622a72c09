from __future__ import annotations

import dagster as dg
import pytest

from rl_assets.commands.harness import _failures_from_now
from rl_assets.definitions import build_defs
from rl_assets.errors import MalformedInput


def test_only_failed_runs_on_the_way_are_failures_and_say_why(monkeypatch: pytest.MonkeyPatch):
    defs = build_defs()
    with dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setattr(dg.DagsterInstance, "get", lambda: instance)
        failures = _failures_from_now()
        for name in ("rollback", "training", "pipeline_window"):
            run = instance.create_run_for_job(defs.resolve_job_def(name))
            instance.report_run_failed(run, "it took too long to start")
        (failure,) = failures()
    assert failure.startswith("pipeline_window ")
    assert "it took too long to start" in failure


@dg.op
def read_rows() -> None:
    try:
        raise MalformedInput("row 7 has no steps; correct its recorder")
    except MalformedInput as error:
        raise dg.Failure("the window is not whole") from error


@dg.job(name="pipeline_window")
def window() -> None:
    read_rows()


def test_a_failure_is_told_in_the_words_of_its_cause(monkeypatch: pytest.MonkeyPatch):
    with dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setattr(dg.DagsterInstance, "get", lambda: instance)
        failures = _failures_from_now()
        run = window.execute_in_process(instance=instance, raise_on_error=False)
        assert failures() == [f"pipeline_window {run.run_id}: row 7 has no steps; correct its recorder"]
