"""What a live Babylon server offers a player over A2A, found out without changing anything there.

Babylon answers 21 operations: the feed, the list of markets, statistics and moderation; none of them trades. Which it
supports is asked with no parameters, so that one that would act has nothing to act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rl_assets.a2a.client import Remote, RemoteRefusal

LOOKS = {"markets.list_prediction": "markets", "social.get_feed": "posts"}
"""Operations that look, and what of their result is a list."""
TRADES = (
    "markets.buy_shares",
    "markets.sell_shares",
    "markets.open_position",
    "markets.close_position",
    "portfolio.get_balance",
)
"""What a player needs besides."""
UNSUPPORTED = "Unsupported operation"


@dataclass(frozen=True)
class Offer:
    """found: what a look gave, or what the server said."""

    operation: str
    supported: bool
    found: str


async def survey(remote: Remote) -> list[Offer]:
    """Ask for every operation that playing needs. Raises RemoteError if the server stops answering."""
    offers = []
    for operation in (*LOOKS, *TRADES):
        try:
            result = await remote.call(operation, {"limit": 20} if operation in LOOKS else {})
        except RemoteRefusal as refusal:
            offers.append(Offer(operation, not str(refusal).startswith(UNSUPPORTED), str(refusal)))
            continue
        what = LOOKS.get(operation, "")
        listed = result.get(what) if isinstance(result, dict) else None
        offers.append(Offer(operation, True, f"{len(listed)} {what}" if isinstance(listed, list) else "an answer"))
    return offers


def missing(offers: Sequence[Offer]) -> list[str]:
    """Operations that playing needs and the server does not have."""
    return [offer.operation for offer in offers if not offer.supported]
