"""Text that others wrote, made fit for where it goes: a column, a request, a line of a message.

What a page, a plot or a judge's prompt needs beyond that is in `reports.page`, `reports.drawing` and
`judging.ruler_view`.
"""

from __future__ import annotations

SHORT = 60
"""Characters of a stranger's text that we repeat, unless told otherwise."""


def whole(text: str) -> str:
    """Text in characters of Unicode: halves of surrogate pairs are put together, and become U+FFFD where one is alone.

    Half a pair is text to JSON and to Python, and to nobody else.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable(text: str) -> str:
    """Text that a Postgres column can hold: whole, and with U+FFFD for the null character."""
    return whole(text).replace("\x00", "\ufffd")


def visible(text: str) -> str:
    """Text on one line: what cannot be printed, such as what ends a line or moves a cursor, becomes U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def printable(text: str, most: int = SHORT) -> str:
    """The first `most` characters, made visible."""
    return visible(text[:most]) + ("…" if len(text) > most else "")


def in_a_line(text: str, most: int) -> str:
    """The same of text with lines of its own, which a space parts here."""
    return printable(" ".join(text.split()), most)
