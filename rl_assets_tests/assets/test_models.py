from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from rl_assets.assets.models import logprob_faults
from rl_assets.assets.shown import table
from rl_assets.episodes import Policy
from rl_assets.training.result import TrainingResult
from rl_assets_tests.store.made import SAMPLE


def trained(ratio: float) -> TrainingResult:
    """On top of step 3, by a trainer that first gave recorded tokens `ratio` times the probability that was sampled."""
    return TrainingResult(
        batch_id="batch-1",
        model_line="line",
        base_step=3,
        step=4,
        checkpoint_path=Path("4"),
        checkpoint_digest="d",
        metrics={},
        curve=[{"update": 0.0, "loss/importance_ratio": ratio}],
        seconds=1.0,
        backend="cpu",
    )


@pytest.mark.parametrize("steps, ratio, is_fault", [((3, 3), 1.3, True), ((3, 2), 1.3, False), ((3, 3), 1.001, False)])
def test_the_trainer_must_agree_with_the_sampler_where_they_are_the_same_step(
    steps: tuple[int, ...], ratio: float, is_fault: bool
):
    episodes = [replace(SAMPLE, policy=Policy("line", step)) for step in steps]
    assert bool(logprob_faults(episodes, trained(ratio))) is is_fault


@pytest.mark.parametrize("logprob, is_fault", [(0.0, False), (5e-4, False), (2e-3, True), (math.nan, True)])
def test_a_recorded_logprob_may_be_rounded_above_0(logprob: float, is_fault: bool):
    step = replace(SAMPLE.steps[0], token_ids=(1,), logprobs=(logprob,))
    assert bool(logprob_faults([replace(SAMPLE, steps=(step,))], trained(1.0))) is is_fault


def test_a_column_of_counts_and_measures_is_one_of_floats():
    shown = table([{"metric": "passes", "value": 2}, {"metric": "loss", "value": 0.5}])
    assert [(column.name, column.type) for column in shown.schema.columns] == [("metric", "string"), ("value", "float")]
