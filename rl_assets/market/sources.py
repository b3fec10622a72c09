"""Who posts, and how far each can be believed. The names are public; the reliabilities are what an agent must learn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """reliability: probability that a post tells what the source looks at. late: it looks at the past, not ahead."""

    name: str
    reliability: float
    late: bool = False


SOURCES: tuple[Source, ...] = (
    Source("oak", 0.92),
    Source("elm", 0.88),
    Source("fir", 0.78),
    Source("ash", 0.70),
    Source("yew", 0.50),
    Source("fig", 0.50),
    Source("ivy", 0.15),
    Source("bay", 0.90, late=True),
)
RELIABILITY: dict[str, float] = {source.name: 0.5 if source.late else source.reliability for source in SOURCES}
