"""Pools, timeouts and freshness as dagster.yaml and the definitions have them, on an instance of that very file."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy
from dagster._core.instance.config import PoolGranularity
from dagster._core.op_concurrency_limits_counter import GlobalOpConcurrencyLimitsCounter

from rl_assets.automation.jobs import JOBS, MAX_RUNTIME
from rl_assets.automation.policies import DATABASE, JUDGE, TRAINER
from rl_assets.definitions import defs
from rl_assets.settings import REPOSITORY, ServerlessSettings

pytestmark = pytest.mark.usefixtures("undrawn")

TAKES = {
    "pipeline_window": {DATABASE, JUDGE},
    "outcomes": {DATABASE},
    "training": {TRAINER},
    "build_base_policy": {TRAINER},
    "snapshots": set(),
    "leaderboard": set(),
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    settings = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    ours = ("concurrency", "run_monitoring", "run_retries", "retention", "freshness", "sensors", "schedules")
    with dg.instance_for_test(overrides={name: settings[name] for name in ours}) as one:
        yield one


def queued(instance: dg.DagsterInstance, name: str) -> dg.DagsterRun:
    return instance.create_run_for_job(defs.resolve_job_def(name))


def waits(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the queue holds a run back, as its daemon decides it."""
    storage, config = instance.event_log_storage, instance.get_concurrency_config().pool_config
    running = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    for pool in (run.run_op_concurrency.all_pools or ()) if run.run_op_concurrency else ():
        if pool not in storage.get_concurrency_keys():
            storage.initialize_concurrency_limit_to_default(pool)
    counter = GlobalOpConcurrencyLimitsCounter(
        instance,
        [run],
        running,
        storage.get_concurrency_keys(),
        storage.get_pool_limits(),
        pool_granularity=config.pool_granularity,
    )
    return counter.is_blocked(run)


def start(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    instance.report_dagster_event(
        dg.DagsterEvent(event_type_value="PIPELINE_START", job_name=run.job_name), run_id=run.run_id
    )


def end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    instance.report_run_failed(run, "killed")


def test_each_job_takes_the_one_place_of_its_pools_before_it_starts(instance: dg.DagsterInstance):
    config = instance.get_concurrency_config().pool_config
    assert (config.pool_granularity, config.default_pool_limit) == (PoolGranularity.RUN, 1)
    for name, pools in TAKES.items():
        taken = queued(instance, name).run_op_concurrency
        assert set(taken.all_pools or () if taken else ()) == pools, name


def test_a_second_run_waits_for_the_pool_until_the_first_has_ended_even_by_a_kill(instance: dg.DagsterInstance):
    for first, second in (("training", "build_base_policy"), ("pipeline_window", "pipeline_window")):
        running, waiting, other = (queued(instance, name) for name in (first, second, "snapshots"))
        assert not waits(instance, waiting)
        start(instance, running)
        assert waits(instance, waiting)
        assert not waits(instance, other)
        end(instance, running)
        assert not waits(instance, waiting)


def test_a_training_and_a_window_run_beside_each_other_and_a_pool_can_be_given_places(instance: dg.DagsterInstance):
    start(instance, queued(instance, "training"))
    assert not waits(instance, queued(instance, "pipeline_window"))
    instance.event_log_storage.set_concurrency_slots(TRAINER, 2)
    assert not waits(instance, queued(instance, "build_base_policy"))


def test_every_job_has_a_longest_time():
    for job in JOBS:
        assert 60 <= int(defs.resolve_job_def(job.name).tags[MAX_RUNTIME]) <= 28800, job.name


def test_what_a_person_does_once_is_not_executed_again_by_the_queue():
    once = {
        name: defs.resolve_job_def(name).tags["dagster/max_retries"]
        for name in ("rollback", "retrain", "force_training")
    }
    assert once == dict.fromkeys(once, "0")


def test_a_job_of_many_partitions_leaves_the_configuration_to_whoever_starts_a_backfill():
    """Dagster ends a backfill as failed where the job has a configuration and the backfill brings another."""
    of_partitions = [(job.name, defs.resolve_job_def(job.name).partitioned_config) for job in JOBS]
    configured = {name: config.get_run_config_for_partition_key("x") for name, config in of_partitions if config}
    assert len(configured) > 3
    assert not any(configured.values()), configured


def test_a_training_at_wandb_may_take_its_time_and_be_gated(instance: dg.DagsterInstance):
    assert int(defs.resolve_job_def("training").tags[MAX_RUNTIME]) > ServerlessSettings().training_seconds
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_max_runtime_seconds >= ServerlessSettings().training_seconds


def test_freshness_is_watched_where_staleness_means_trouble(instance: dg.DagsterInstance):
    assert instance.freshness_enabled
    nodes = defs.get_repository_def().asset_graph.asset_nodes
    watched = {
        node.key.to_user_string(): node.freshness_policy
        for node in nodes
        if isinstance(node.freshness_policy, TimeWindowFreshnessPolicy)
    }
    assert set(watched) == {"recorded_trajectories", "judged_rankings", "trained_models"}
    windows = {name: policy.fail_window.to_timedelta() for name, policy in watched.items()}
    assert windows["recorded_trajectories"] < windows["judged_rankings"] < windows["trained_models"]
    settles = timedelta(hours=1, minutes=5)  # of an hour, after its first row
    assert all(policy.warn_window and policy.warn_window.to_timedelta() > settles for policy in watched.values())


def test_ticks_are_not_kept_for_ever(instance: dg.DagsterInstance):
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.scheduler.instigation import TickStatus

    for kind in (InstigatorType.SENSOR, InstigatorType.SCHEDULE):
        days = instance.get_tick_retention_settings(kind)
        assert all(0 < days[status] <= 90 for status in (TickStatus.SKIPPED, TickStatus.FAILURE, TickStatus.SUCCESS))
