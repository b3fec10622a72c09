"""Checkpoints, here or at W&B: where they are, the digest by which the registry knows one, and whether it is still what
it was."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rl_assets.errors import MalformedInput, MissingCheckpoint
from rl_assets.registry.archive import bring

ADAPTER = "adapter_config.json"
"""The file by which a checkpoint is known to be a low-rank adapter, which a server with its base model plays."""
PROJECT = "rl-assets"
"""Of ART: what it names the directory after in which it keeps lines."""
KEEP = 5
"""Newest steps of a line that are kept whatever became of them, unless told otherwise."""
_BLOCK = 1 << 20
_REMOTE = re.compile(r"wandb-artifact:///([^/:]+)/([^/:]+)/([^/:]+):step(\d{1,9})")


class RemoteCheckpoint(str):
    """A checkpoint at W&B, as its endpoint takes it for `model`: `wandb-artifact:///<entity>/<project>/<name>:step<n>`.

    Raises MalformedInput where it is not that.
    """

    def __new__(cls, text: str) -> RemoteCheckpoint:
        if _REMOTE.fullmatch(text) is None:
            raise MalformedInput(f"{text!r} names no checkpoint at W&B; restore the row of the registry that holds it")
        return super().__new__(cls, text)

    @property
    def parts(self) -> tuple[str, str, str, int]:
        """Entity, project, name and the step there."""
        found = _REMOTE.fullmatch(self)
        assert found is not None
        entity, project, name, step = found.groups()
        return entity, project, name, int(step)


def checkpoints_of(data_dir: Path, model_line: str) -> Path:
    """The directory of a line's steps on this machine, where ART looks for them."""
    return data_dir / "art" / PROJECT / "models" / model_line / "checkpoints"


def base_path(data_dir: Path, model_line: str) -> Path:
    """The directory of step 0."""
    return checkpoints_of(data_dir, model_line) / "0000"


def located(text: str) -> Path | RemoteCheckpoint:
    """Where a checkpoint is, from the text that the registry keeps of it."""
    return RemoteCheckpoint(text) if text.startswith("wandb-artifact:") else Path(text)


def checkpoint_digest(path: Path | RemoteCheckpoint) -> str:
    """SHA-256 over the names and contents of all files below a directory, in order of name; of a checkpoint at W&B,
    over its name and the identity that W&B gives it, which costs a request. One that the store has and this machine has
    not is fetched.

    Raises MissingCheckpoint if there is no such checkpoint.
    """
    if isinstance(path, RemoteCheckpoint):
        from rl_assets.training.remote_models import remote_digest

        return remote_digest(path)
    bring(path)
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
