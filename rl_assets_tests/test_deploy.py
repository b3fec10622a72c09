"""The instance files of a Ray and of a Kubernetes cluster: ours but for a launcher, which takes what they say."""

from __future__ import annotations

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type

from rl_assets.settings import REPOSITORY

VARIABLES = {
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
    "RL_ASSETS_K8S_NAMESPACE": "agents",
    "RL_ASSETS_K8S_SERVICE_ACCOUNT": "runner",
    "RL_ASSETS_K8S_IMAGE": "registry.example/rl-assets:1",
}


def instance(path: str) -> dict:
    return yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("cluster", ["ray", "kubernetes"])
def test_an_instance_file_differs_from_ours_in_its_launcher_alone(cluster: str):
    theirs, ours = instance(f"deploy/{cluster}/dagster.yaml"), instance("dagster.yaml")
    assert theirs.pop("run_launcher")
    assert theirs == ours


@pytest.mark.ray
@pytest.mark.parametrize("cluster", ["ray", "kubernetes"])
def test_the_launcher_takes_what_its_file_says(cluster: str, monkeypatch: pytest.MonkeyPatch):
    launcher = instance(f"deploy/{cluster}/dagster.yaml")["run_launcher"]
    module = pytest.importorskip(launcher["module"], reason=f"{launcher['module']} is not installed: docs/ray.md")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    schema = resolve_to_config_type(getattr(module, launcher["class"]).config_type())
    taken = process_config(schema, launcher["config"])
    assert taken.success, taken.errors
    assert set(VARIABLES.values()) & set(map(str, _leaves(taken.value)))
    assert not process_config(schema, {**launcher["config"], "no_such_option": 1}).success


def _leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, list) else [value]
