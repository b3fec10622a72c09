"""Trainings as Weights & Biases sees them: a run per batch, and the artifacts that lead from episodes to a model.

Each artifact's metadata holds its digest and, as `made_of`, the names and digests of what it was made of, so that the
lineage can be checked with or without W&B's own graph. This loads wandb: import it where it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from rl_assets.episodes import digest
from rl_assets.errors import ConfigurationError, MissingCheckpoint, RlAssetsError, ServiceError
from rl_assets.registry.checkpoints import checkpoint_digest
from rl_assets.registry.partial import partial_directory
from rl_assets.text import in_a_line
from rl_assets.training.manifest import Manifest
from rl_assets.training.result import TrainingResult
from rl_assets.tree import BATCH_EPISODES, BATCH_MANIFEST

MODES = ("online", "offline")
"""In which a training is recorded; who has set `disabled` never loads this."""
START_SECONDS = 30
"""How long W&B may take to begin a run; after that it is written here, for `wandb sync`."""


@dataclass(frozen=True)
class Link:
    """An artifact as those that are made of it name it."""

    name: str
    digest: str


def track_training(
    result: TrainingResult, batch: Path, directory: Path, *, project: str, mode: str, entity: str | None = None
) -> str:
    """Record a training: its curve, its metrics, and its lineage. batch: directory of the batch's files. Returns where.

    Offline, or if W&B cannot be reached, the run is in `directory`/wandb and `wandb sync` brings it there later.
    Raises ConfigurationError for a mode that there is not, MalformedInput where the batch's files are broken, and
    ServiceError where wandb itself fails.
    """
    if mode not in MODES:
        raise ConfigurationError(f"there is no W&B mode {mode!r}; set WANDB_MODE to {', '.join(MODES)} or disabled")
    if mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise ConfigurationError("W&B's mode is online and WANDB_API_KEY is not set; set it, or WANDB_MODE=offline")
    directory.mkdir(parents=True, exist_ok=True)
    lost = ""
    if mode == "online":
        try:
            return _record(result, batch, directory, project, entity, "online")
        except wandb.Error as error:
            lost = f", since W&B could not be reached ({_said(error)}); bring it there with `wandb sync`"
    try:
        return _record(result, batch, directory, project, entity, "offline") + lost
    except wandb.Error as error:
        raise ServiceError(f"wandb cannot record it: {_said(error)}") from error


def fetch_checkpoint(
    name: str, expected: str, target: Path, download: Callable[[str, Path], None] | None = None
) -> None:
    """Bring a model artifact to `target`, which must not exist, if its files have the digest that is expected.

    name: `<entity>/<project>/<line>:step<n>`. Raises MissingCheckpoint where they have another; nothing is kept then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial_directory(target) as partial:
            (download or _download)(name, partial)
            if checkpoint_digest(partial) != expected:
                raise MissingCheckpoint(
                    f"artifact {name} is not what was registered; it is not used, look for another copy"
                )
            partial.chmod(0o755)
            partial.rename(target)
    except OSError as error:
        raise RlAssetsError(
            f"{target} cannot be written ({error.strerror}); make room, or move what is there"
        ) from error


def _download(name: str, target: Path) -> None:
    try:
        wandb.Api().artifact(name, type="model").download(root=str(target), skip_cache=True)
    except (wandb.Error, ValueError) as error:
        raise ServiceError(f"artifact {name} cannot be had from W&B ({_said(error)})") from error


def _record(result: TrainingResult, batch: Path, directory: Path, project: str, entity: str | None, mode: str) -> str:
    manifest = Manifest.from_json((batch / BATCH_MANIFEST).read_text(encoding="utf-8"))
    run = wandb.init(
        project=project,
        entity=entity,
        group=result.model_line,
        job_type="train",
        id=f"{result.batch_id}-{result.step}",  # recorded twice, it is one run
        resume="allow",
        name=result.batch_id,
        mode=mode,  # pyright: ignore[reportArgumentType]
        dir=str(directory),
        config={
            "model_line": result.model_line,
            "base_step": result.base_step,
            "step": result.step,
            "backend": result.backend,
            # Without its scheme, for W&B looks up a value that begins with it.
            "checkpoint": str(result.checkpoint_path).removeprefix("wandb-artifact:///"),
        },
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=START_SECONDS),
    )
    try:
        for point in result.curve:
            run.log(point, step=int(point["update"]))  # of a step that is there already W&B takes no second
        run.summary.update({**result.metrics, "seconds": result.seconds, "digest": result.checkpoint_digest})
        # What a run has used cannot be said offline; there it is an output like the model.
        record = run.use_artifact if mode == "online" else run.log_artifact
        source: list[Link] = []
        for artifact, link in _lineage(manifest, batch):
            record(artifact)
            source = [link]
        if isinstance(result.checkpoint_path, Path):
            model = _artifact(result.model_line, "model", result.checkpoint_digest, source, step=result.step)
            model.add_dir(str(result.checkpoint_path))
            run.log_artifact(model, aliases=[f"step{result.step}"])
        return str(run.url or Path(run.dir).parent)
    finally:
        run.finish()


def _lineage(manifest: Manifest, batch: Path) -> list[tuple[wandb.Artifact, Link]]:
    """Episodes, the groups that are made of them, and the batch that is made of the groups."""
    name, parquet = manifest.batch_id, batch / BATCH_EPISODES
    of_episodes = Link(f"{name}-episodes", _file_digest(parquet))
    episodes = _artifact(of_episodes.name, "episodes", of_episodes.digest, [], episodes=len(manifest.trajectory_ids))
    episodes.add_file(str(parquet))
    raw = manifest.to_json()
    of_groups = Link(f"{name}-groups", digest(raw["groups"]))
    groups = _artifact(of_groups.name, "groups", of_groups.digest, [of_episodes], windows=list(manifest.windows))
    with groups.new_file("groups.json", encoding="utf-8") as file:
        json.dump(raw["groups"], file)
    of_batch = Link(name, digest(raw))
    whole = _artifact(name, "batch", of_batch.digest, [of_groups], judgement_sets=list(manifest.judgement_sets))
    whole.add_file(str(batch / BATCH_MANIFEST))
    return [(episodes, of_episodes), (groups, of_groups), (whole, of_batch)]


def _artifact(name: str, kind: str, content: str, made_of: list[Link], **rest: Any) -> wandb.Artifact:
    metadata: Mapping[str, Any] = {"digest": content, "made_of": {link.name: link.digest for link in made_of}, **rest}
    return wandb.Artifact(name, kind, metadata=dict(metadata))


def _said(error: Exception) -> str:
    said = str(error).replace(os.environ.get("WANDB_API_KEY") or "\0", "***")
    return in_a_line(said, 200)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
