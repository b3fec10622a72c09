"""Numbers and moments as sentences for people have them."""

from datetime import UTC, datetime


def counted(number: int, what: str) -> str:
    """`1 hour`, `2 hours`. what: in the singular."""
    return f"{number} {what}{'s' * (number != 1)}"


def moment(at: datetime) -> str:
    """To the minute, such as `20:04 UTC (28 Nov)`."""
    at = at.astimezone(UTC)
    return f"{at:%H:%M} UTC ({at.day} {at:%b})"
