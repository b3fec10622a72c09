"""Checkpoint directories: the digest by which the registry knows one, and finding out that it is not what it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rl_assets.errors import MissingCheckpoint

_BLOCK = 1 << 20


def checkpoint_digest(path: Path) -> str:
    """SHA-256 over the names and contents of all files below a directory, in order of name.

    Raises MissingCheckpoint if it is not a directory with files in it.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise MissingCheckpoint(f"checkpoint {path} is missing or empty; restore it, or roll back to a kept step")
    whole = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                content.update(block)
        whole.update(f"{file.relative_to(path).as_posix()}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()
