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
CHATS: tuple[Source, ...] = (Source("den", 0.85), Source("inn", 0.60))
"""Group chats, whose members alone read them."""
PAID_SOURCES: tuple[Source, ...] = (Source("gem", 0.97), Source("orb", 0.55))
"""Who speaks to those who have paid."""
WIRE = Source("wire", 0.90)
"""The agency that tells of jumps of perpetuals before they come."""
RELIABILITY: dict[str, float] = {
    source.name: 0.5 if source.late else source.reliability for source in (*SOURCES, *CHATS, *PAID_SOURCES, WIRE)
}
