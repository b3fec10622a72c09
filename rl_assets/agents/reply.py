"""What an agent answers at a tick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """text as the policy said it, without the end token. token_ids and logprobs (nats) include the end token, and are
    empty for an agent without tokens. prompt_tokens: length of the context. latency_ms: this answer's share of time."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    latency_ms: int = 0
