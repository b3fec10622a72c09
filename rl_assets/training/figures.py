"""What the figures of a training are called, what they mean, and in which unit: the one place that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

UPDATES, WHOLE = "mean over updates", "whole training"


class Figure(NamedTuple):
    """unit: empty for a ratio. over: what a single number of a training stands for."""

    meaning: str
    unit: str = ""
    over: str = UPDATES

    @property
    def label(self) -> str:
        return f"{self.meaning} ({self.unit})" if self.unit else self.meaning


FIGURES = {
    "loss/train": Figure("Policy loss"),
    "loss/entropy": Figure("Entropy", "nats per token"),
    "loss/kl_base": Figure("KL from base", "nats per token"),
    "loss/clip_fraction": Figure("Tokens outside the clip", "share"),
    "loss/importance_ratio": Figure("Importance ratio, mean"),
    "loss/importance_ratio_max": Figure("Importance ratio, highest"),
    "loss/grad_norm": Figure("Gradient norm before clipping"),
    "loss/learning_rate": Figure("Learning rate"),
    "data/advantage_spread": Figure("Standard deviation of advantages"),
    "data/tokens": Figure("Tokens per update", "tokens"),
    "data/staleness": Figure("Policy steps behind, mean", "steps", WHOLE),
    "data/staleness_max": Figure("Policy steps behind, most", "steps", WHOLE),
    "data/recomputed": Figure("Episodes whose logprobs were recomputed", "episodes", WHOLE),
    "data/passes": Figure("Passes over the batch", "passes", WHOLE),
    "data/best_pass": Figure("The pass that was kept, from 1", "passes", WHOLE),
    "held_out/gain": Figure("Gain per held-out answer after a pass", "mean |advantage| of the batch", WHOLE),
    "policy/trade_share": Figure("Answers that trade", "share"),
    "policy/invalid_share": Figure("Answers that are no valid action", "share"),
    "loss": Figure("Cross entropy", "nats per token"),
    "parameters": Figure("Weights of the model", "weights", WHOLE),
    "vocabulary": Figure("Pieces of the tokenizer", "pieces", WHOLE),
    "episodes": Figure("Episodes that were imitated", "episodes", WHOLE),
    "imitation_loss": Figure("Cross entropy at the end", "nats per token", WHOLE),
    "seconds": Figure("Time that it took", "seconds", WHOLE),
}
UNKNOWN = Figure("as the backend names it", "as the backend has it")
_COUNTS = frozenset({"steps", "episodes", "passes", "weights", "pieces"})
_PASS = re.compile(r"^held_out/gain_pass_\d+$")


def described(metrics: Mapping[str, float]) -> list[dict[str, str | float]]:
    """A row per figure; counts are whole numbers. What a backend names in its own way stands under that name."""
    return [_row(name, value) for name, value in metrics.items()]


def _row(name: str, value: float) -> dict[str, str | float]:
    figure = FIGURES.get("held_out/gain" if _PASS.match(name) else name, UNKNOWN)
    whole = figure.unit in _COUNTS and float(value).is_integer()
    return {
        "metric": name,
        "value": int(value) if whole else value,
        "unit": figure.unit or "none",
        "over": figure.over,
        "meaning": figure.meaning,
    }
