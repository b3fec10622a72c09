"""The record of one episode: what a policy saw, said, did and earned.

Everything that passes an episode on (runner, store, judges, training) uses these types. How an episode looks in
Postgres or Parquet belongs in `rl_assets.store`; how it looks to ART belongs in `rl_assets.training.codec`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

WINDOW_FORMAT = "%Y-%m-%dT%H:00"
NO_LOGPROBS = "no_logprobs"
"""Why an episode cannot be trained on as it is, where the policy that is trained could still say how likely it was."""
ROUNDING = 1e-3
"""How far above 0 a logprob may be told by whoever computes in half precision."""


def is_logprob(value: float) -> bool:
    """Whether a number is the finite log of a probability, but for rounding."""
    return math.isfinite(value) and value <= ROUNDING


def window_of(moment: datetime) -> str:
    """The hourly UTC window id of an aware moment, e.g. `2026-11-23T08:00`."""
    if moment.tzinfo is None:
        raise ValueError("a window needs an aware moment; a naive one would be read in local time")
    return moment.astimezone(UTC).strftime(WINDOW_FORMAT)


canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode
"""JSON of a value: sorted keys, no spaces, no NaN."""


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Policy:
    """Who decides. `step` is the checkpoint step of a trained line, and None for an agent that does not learn."""

    name: str
    step: int | None = None

    def __str__(self) -> str:
        return self.name if self.step is None else f"{self.name}@{self.step}"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the policy's tokens were drawn."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One tick of an episode.

    `token_ids` and `logprobs` (nats, under the distribution that was sampled from) cover the response and have equal
    length; both are empty where the policy gives none. `reward` is the change of equity in dollars over the tick and
    `equity` the mark-to-market equity in dollars after it. `credit` is what the step's own order added to the expected
    PnL, in dollars, and is None where no latent value exists; an episode's credits sum to its expected PnL.
    """

    tick: int
    observation: str
    response: str
    action: dict[str, Any]
    valid: bool
    reward: float
    equity: float
    credit: float | None = None
    error: str | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    latency_ms: int = 0

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"tick {self.tick}: {len(self.token_ids)} token ids and {len(self.logprobs)} logprobs")


@dataclass(frozen=True, slots=True)
class Episode:
    """One conversation: a system message, then per tick an observation and an action.

    `snapshot_id` is None for live episodes. Money is in dollars. `expected_pnl` values what is held at the end at the
    final latent value and is None where no such value exists (live play). `breaches` counts invalid actions and
    liquidations. `max_drawdown` is the largest fall of equity from its running peak, in dollars.
    """

    trajectory_id: str
    agent_id: str
    policy: Policy
    scenario_id: str | None
    window_id: str | None
    started_at: datetime
    ended_at: datetime
    system: str
    steps: tuple[Step, ...]
    prompt_version: str | None
    sampling: Sampling | None
    snapshot_id: str | None = None
    sibling: int = 0
    realised_pnl: float | None = None
    expected_pnl: float | None = None
    max_drawdown: float | None = None
    breaches: int = 0
    trades: int = 0
    fees: float = 0.0
    is_evaluation: bool = False

    @property
    def not_trainable(self) -> str | None:
        """Why GRPO cannot use this episode, or None if it can."""
        if self.is_evaluation:
            return "is_evaluation"
        if not self.steps:
            return "empty_steps"
        if not self.system or any(not step.observation for step in self.steps):
            return "no_prompt"
        if any(not step.logprobs for step in self.steps):
            return NO_LOGPROBS
        if any(token < 0 for step in self.steps for token in step.token_ids):
            return "no_token_ids"
        if self.policy.step is None:
            return "no_policy_step"
        return None

    @property
    def content_hash(self) -> str:
        """What was played, without who recorded it when: equal for two plays that agree token by token."""
        return digest(
            {
                "snapshot": self.snapshot_id,
                "scenario": self.scenario_id if self.snapshot_id is None else None,
                "policy": str(self.policy),
                "prompt_version": self.prompt_version,
                "sibling": self.sibling,
                "system": self.system,
                "steps": [
                    [s.observation, s.response, s.valid, s.reward, s.equity, list(s.token_ids), list(s.logprobs)]
                    for s in self.steps
                ],
                "pnl": [self.realised_pnl, self.expected_pnl],
            }
        )
