"""Python's cyclic garbage collector, held off where objects without cycles are many."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_AFTER = 10_000
"""Containers made and not freed, after which the collector looks for cycles among them."""


def collect_seldom() -> None:
    """Have Python, which looks after 700, look as seldom as that: importing torch, transformers and ART makes objects
    by the million, and looking through them for cycles, which they do not hold, is a fifth of that time.

    Nor does it look as the process ends: with ART loaded that takes 2 s, for memory which the system takes back anyway.
    """
    gc.set_threshold(COLLECT_AFTER, 10, 10)
    atexit.register(gc.freeze)


@contextmanager
def paused_collector() -> Iterator[None]:
    """Episodes by the thousand hold no cycles, and looking for some takes a third of the time of making them.

    What is let go of is freed all the same. Threads may overlap in this: whoever turned the collector off turns it on.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
