from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from rl_assets.agents.runner import ReferenceAgent
from rl_assets.episodes import Episode
from rl_assets.market.metrics import market_day
from rl_assets.registry.health import examine, probe
from rl_assets.registry.models import PlayableModel
from rl_assets_tests.store.made import SAMPLE


@pytest.mark.parametrize("logprob, is_fault", [(0.0, False), (1e-7, False), (2e-3, True), (-math.inf, True)])
def test_an_endpoint_that_rounds_a_logprob_above_0_is_well(logprob: float, is_fault: bool):
    step = replace(SAMPLE.steps[0], valid=True, token_ids=(1,), logprobs=(logprob,))
    fault = examine([replace(SAMPLE, steps=(step,))]).fault
    assert ("a logprob" in (fault or "")) is is_fault


def test_as_many_market_days_are_played_as_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    played: list[Episode] = []
    monkeypatch.setattr("rl_assets.agents.line_player.agent_of", lambda *_: ReferenceAgent("hold"))
    monkeypatch.setattr("rl_assets.registry.health.examine", played.extend)
    probe(PlayableModel("line", 1, "v1", Path("1"), "digest"), 3)
    assert len({market_day(episode) for episode in played}) == 3
