"""Spreading work: one function over many items, in this process or as tasks of a Ray cluster, with results in order.

A result depends on its item alone and tasks get this process's number of threads, so that where an item was worked on
leaves no mark on what comes of it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rl_assets.errors import ConfigurationError, RlAssetsError
from rl_assets.settings import Settings, prepare_environment

Item = TypeVar("Item")
Result = TypeVar("Result")
RETRIES = 3
"""How often a task is begun anew where its worker or its node is lost; not where it raises an error itself."""
AHEAD = 2
"""Tasks per CPU of the cluster that are under way: enough that none waits for this process, few enough for memory."""
SAME = ("OMP_NUM_THREADS",)
"""Variables that a task gets from this process: with another number of threads, torch rounds a last digit otherwise."""


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(function, items)`, over the Ray cluster where RL_ASSETS_SPREAD is `ray`.

    Function and items are pickled; on its node, a task finds the same code and the same environment. Raises what the
    function raises, ConfigurationError where there is no cluster, and RlAssetsError where workers are lost again and
    again.
    """
    return _over_ray(function, items) if Settings.from_env().spread == "ray" else map(function, items)


def width() -> int:
    """How many items are worked on at a time."""
    if Settings.from_env().spread != "ray":
        return 1
    return max(int(_cluster().cluster_resources().get("CPU", 1)), 1)


def _over_ray(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    ray = _cluster()
    environment = {name: value for name in SAME if (value := os.environ.get(name))}
    task = ray.remote(_task).options(
        num_cpus=1, max_retries=RETRIES, name="rl-assets", runtime_env={"env_vars": environment}
    )
    known, under_way = ray.put(function), deque()
    try:
        for item in items:
            under_way.append(task.remote(known, item))
            if len(under_way) >= AHEAD * width():
                yield _result(ray, under_way.popleft())
        while under_way:
            yield _result(ray, under_way.popleft())
    finally:
        for reference in under_way:
            ray.cancel(reference)


def _task(function: Callable[[Item], Result], item: Item) -> Result:
    prepare_environment()
    return function(item)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise RlAssetsError(
            f"a task was lost on the Ray cluster {RETRIES + 1} times ({type(error).__name__}); look at its nodes with "
            "`ray status`, then run this again"
        ) from error


def _cluster() -> Any:
    """Ray, connected to its cluster."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "RL_ASSETS_SPREAD is ray and Ray is not installed; run `pip install -e '.[ray]'`, or unset it"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise ConfigurationError(
                "RL_ASSETS_SPREAD is ray and no cluster answers; start a node here with `ray start`, set RAY_ADDRESS, "
                "or unset it"
            ) from error
    return ray
