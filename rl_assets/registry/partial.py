"""Directories in the making: hidden beside their place, locked by whoever fills them, and swept once nobody does.

A process that is killed leaves its directory behind, and the kernel lets go of its lock: that is how it is told apart
from one that is still being filled, whatever the process ids are and whoever else runs.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = re.compile(r"\.\d{4,9}-[a-z0-9_]{8}")
STILL_SECONDS = 3_600
"""How long nothing in a directory must have changed before it is swept: a file system may know no locks."""


@contextmanager
def partial_directory(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, to be filled and moved there. What is not moved is deleted at the end."""
    partial, handle = _made(target)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(handle)


def _made(target: Path) -> tuple[Path, int]:
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        _lock(handle, wait=True)
        if partial.exists():  # nobody swept it before it was locked
            return partial, handle
        os.close(handle)


def abandoned(checkpoints: Path, now: float | None = None) -> list[Path]:
    """Directories that were being filled below `checkpoints` by processes that are gone. now: seconds since 1970."""
    before = (time.time() if now is None else now) - STILL_SECONDS
    found = sorted(path for path in checkpoints.glob(".*") if _PARTIAL.fullmatch(path.name) and path.is_dir())
    return [path for path in found if newest_change(path) < before and not _is_held(path)]


def sweep(path: Path) -> bool:
    """Delete an abandoned directory; False where somebody holds it after all."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _lock(handle, wait=False):
            return False
        shutil.rmtree(path)
        return True
    finally:
        os.close(handle)


def size_of(path: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def newest_change(path: Path) -> float:
    """When a directory, or anything in it, last changed: seconds since 1970."""
    return max(part.lstat().st_mtime for part in (path, *path.rglob("*")))


def _is_held(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return not _lock(handle, wait=False)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether the lock was had. Where the file system has none it never is, so nothing is swept there."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
