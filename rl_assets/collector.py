"""Python's cyclic garbage collector, held off while many objects without cycles are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
