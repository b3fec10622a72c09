"""Where steps run: in the run's own process, or each as a job of a Ray cluster."""

import os

import dagster as dg

from rl_assets.errors import ConfigurationError

PASSED_ON = ("RL_ASSETS_EXECUTOR", "RL_ASSETS_SPREAD")
"""What a run tells the jobs of its steps. All else they find on their node, which was started with it, secrets too: a
job's own variables are there for everybody who may see the cluster's dashboard."""


def executor() -> dg.ExecutorDefinition:
    """The executor that RL_ASSETS_EXECUTOR names. Raises ConfigurationError where there is no such one."""
    chosen = os.environ.get("RL_ASSETS_EXECUTOR", "").strip() or "in_process"
    if chosen == "in_process":
        # A step takes 60 ms in the run's process and more than a second in one of its own.
        return dg.in_process_executor
    if chosen != "ray":
        raise ConfigurationError(f"RL_ASSETS_EXECUTOR={chosen!r} is unknown; set it to in_process or ray")
    try:
        from dagster_ray import ray_executor  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "RL_ASSETS_EXECUTOR is ray and dagster-ray is not installed; run `pip install -e '.[ray]'`, or unset it"
        ) from error
    return ray_executor.configured({"ray": {"env_vars": list(PASSED_ON)}}, name="ray")
