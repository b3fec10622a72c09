from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rl_assets.registry.health import examine
from rl_assets_tests.store.made import SAMPLE


@pytest.mark.parametrize("logprob, is_fault", [(0.0, False), (1e-7, False), (2e-3, True), (-math.inf, True)])
def test_an_endpoint_that_rounds_a_logprob_above_0_is_well(logprob: float, is_fault: bool):
    step = replace(SAMPLE.steps[0], valid=True, token_ids=(1,), logprobs=(logprob,))
    fault = examine([replace(SAMPLE, steps=(step,))]).fault
    assert ("a logprob" in (fault or "")) is is_fault
