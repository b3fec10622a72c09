"""What ART prints while it trains goes to our log, so that a command says what its own code says and nothing else.

Its progress bar is silenced where the environment is prepared (`rl_assets.settings`): it counts updates, which the
training's curve has with all that was measured of them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


class _Lines(io.TextIOBase):
    """A stream whose lines become entries of a log."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._begun = log, ""

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, whole):
            self._log.info("ART: %s", line.strip())
        return len(text)


@contextmanager
def printed_to(log: logging.Logger) -> Iterator[None]:
    """For as long as the block runs, what this process prints is logged, a line an entry."""
    lines = _Lines(log)
    with redirect_stdout(lines):
        try:
            yield
        finally:
            lines.write("\n")
