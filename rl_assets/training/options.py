"""What a training may be told, and what it does where it is not. Nothing that trains is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """kl_ceiling: mean nats per token from who played at which the passes end early.

    A run stops without a checkpoint if, over the last quarter of a pass, the mean nats per token are fewer than
    entropy_floor, if the share of orders among answers falls under least_trades of what it was at first, or if that of
    refused ones passes most_invalid.
    """

    kl_ceiling: float = 1.0
    entropy_floor: float = 0.02
    least_trades: float = 0.25
    most_invalid: float = 0.25


@dataclass(frozen=True)
class CpuTraining:
    """passes: how often a batch is gone through, at most. sequences: packed sequences per update. micro_batch: how many
    of these at once. warm_up: updates until the learning rate is whole; it then falls along a cosine to nothing.
    max_grad_norm: clip. holdout: share of snapshots that are kept apart; the passes end when one wins nothing more
    there, and the best pass is what is saved. tiers: of difficulty, gone through from easy to hard in the first pass; 1
    for an order that does not ask."""

    passes: int = 2
    sequences: int = 32
    micro_batch: int = 32
    warm_up: int = 5
    max_grad_norm: float = 1.0
    holdout: float = 0.125
    tiers: int = 1
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Grpo:
    """learning_rate: AdamW's. epsilon, epsilon_high: how far an importance ratio may fall under and rise above 1 before
    PPO clips it; wide, since a batch is all that a step learns from. most_stale: policy steps that an episode may be
    behind. recompute: whether episodes without logprobs get those of the step that is trained, on the CPU. cpu: what
    only the CPU backend knows. Advantages are not scaled by their group's spread."""

    learning_rate: float = 1e-3
    epsilon: float = 0.9
    epsilon_high: float = 5.0
    most_stale: int = 0
    recompute: bool = False
    cpu: CpuTraining = field(default_factory=CpuTraining)


GPU_GRPO = Grpo(learning_rate=5e-6, epsilon=0.2, epsilon_high=0.2)
"""For an LLM that learns by an adapter, batch after batch."""

SMOLLM_GRPO = Grpo(
    learning_rate=2e-4,
    # Nobody has taught it to trade, so that holding and refused answers are where it starts and no sign of a collapse;
    # and thousands of tokens fill the memory in a model of this size, so that they go through it a sequence at a time.
    cpu=CpuTraining(passes=1, sequences=8, micro_batch=1, warm_up=1, limits=Limits(least_trades=0.0, most_invalid=1.0)),
)
"""For SmolLM2 on a CPU."""
