"""A manifest is whole, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rl_assets.errors import MalformedInput
from rl_assets.training.manifest import Manifest, ManifestGroup

WHOLE = Manifest(
    "batch-1", "line", 3, ("judgements-1",), ("2026-11-23T08:00",), (ManifestGroup("group-1", ("1", "2"), (0.0, 1.0)),)
)


def test_a_manifest_survives_json() -> None:
    assert Manifest.from_json(json.dumps(WHOLE.to_json())) == WHOLE


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda raw: raw.pop("base_step"), "base_step"),
        (lambda raw: raw["groups"][0].update(rewards=[0.0]), "lacks a reward"),
        (lambda raw: raw["groups"][0].update(rewards=[0.0, float("nan")]), "lacks a reward"),
        (lambda raw: raw["groups"][0].update(rewards=[0.0, 15]), "lacks a reward"),
        (lambda raw: raw["groups"][0].update(rewards=[0.0, "good"]), "lacks or garbles"),
        (lambda raw: raw["groups"][0].update(trajectory_ids=["1", "1"]), "names a trajectory twice"),
        (lambda raw: raw.update(groups=[]), "names no trajectory"),
    ],
)
def test_a_manifest_that_is_not_whole_is_refused(spoil: Callable[[dict[str, Any]], None], what: str) -> None:
    raw = json.loads(json.dumps(WHOLE.to_json()))
    spoil(raw)
    with pytest.raises(MalformedInput, match=what):
        Manifest.from_json(raw)


def test_a_manifest_that_is_not_json_is_refused() -> None:
    with pytest.raises(MalformedInput, match="is not JSON"):
        Manifest.from_json("{")
