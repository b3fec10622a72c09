"""Which pass is the best, when passes end, and what a killed run finds again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rl_assets.errors import CollapsedPolicy
from rl_assets.training.options import Limits
from rl_assets.training.progress import Progress


class Tiny:
    """A model of one number, and its optimizer."""

    def __init__(self, value: float) -> None:
        self.model: Any = torch.nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.set(value)

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.model.weight.fill_(value)

    @property
    def value(self) -> float:
        return float(self.model.weight.detach())


def point(number: int, **changes: float) -> dict[str, float]:
    healthy = {"loss/entropy": 0.5, "policy/trade_share": 0.6, "policy/invalid_share": 0.0, "loss/kl_base": 0.1}
    return {"pass": float(number), **healthy, **changes}


def ended(gains: list[float | None], limits: Limits | None = None, kl: float = 0.1) -> Progress:
    """Progress after passes that left the model at 1, 2, 3 and so on."""
    tiny, progress = Tiny(0.0), Progress("same")
    for number, gain in enumerate(gains):
        tiny.set(number + 1.0)
        progress.curve.append(point(number, **{"loss/kl_base": kl}))
        progress.end_pass(tiny.model, tiny.optimizer, gain, limits or Limits())
    return progress


@pytest.mark.parametrize(
    ("gains", "best", "over"),
    [
        ([0.1], 0, False),
        ([0.1, 0.2], 1, False),
        ([0.2, 0.1], 0, True),
        ([0.2, 0.2], 0, True),
        ([-0.3], 0, False),
        ([None, None], 1, False),
    ],
)
def test_the_pass_that_wins_most_on_what_is_held_out_is_kept(gains: list[float | None], best: int, over: bool) -> None:
    progress = ended(gains)
    assert progress.best is not None
    assert progress.best["pass"] == best
    assert float(progress.best["model"]["weight"]) == best + 1.0
    assert (progress.over is not None) == over


def test_passes_end_where_the_policy_has_gone_far_from_who_played() -> None:
    assert ended([None], Limits(kl_ceiling=0.05)).over == "0.10 nats per token from who played are above 0.05"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"loss/entropy": 0.001}, "its entropy is 0.001"),
        ({"policy/trade_share": 0.1}, "the share of its answers that trade is 0.100"),
        ({"policy/invalid_share": 0.3}, "the share of its answers that are refused is 0.300"),
    ],
)
def test_a_collapse_is_told_with_its_number(changes: dict[str, float], what: str) -> None:
    tiny, progress = Tiny(1.0), ended([0.1])
    progress.curve.append(point(1, **changes))
    with pytest.raises(CollapsedPolicy, match=f"collapsed in pass 2: {what}"):
        progress.end_pass(tiny.model, tiny.optimizer, 0.2, Limits())


def test_a_run_of_the_same_training_finds_model_and_best_pass_again(tmp_path: Path) -> None:
    kept, path = ended([0.2, 0.1]), tmp_path / "batch" / "progress.pt"
    last = Tiny(2.0)
    kept.keep(path, last.model, last.optimizer)
    again = Tiny(0.0)
    found = Progress.resume(path, "same", again.model, again.optimizer)
    assert again.value == 2.0
    assert found.best is not None
    assert (found.curve, found.passes, found.over) == (kept.curve, kept.passes, kept.over)
    assert float(found.best["model"]["weight"]) == 1.0
    assert [p.name for p in path.parent.iterdir()] == ["progress.pt"]


def test_a_run_of_another_training_begins_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "progress.pt", Tiny(7.0)
    ended([0.2]).keep(path, Tiny(1.0).model, Tiny(1.0).optimizer)
    assert Progress.resume(path, "other", other.model, other.optimizer).passes == []
    assert other.value == 7.0
