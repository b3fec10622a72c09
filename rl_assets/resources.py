"""What the assets are given: the database, the data directory, the judge, the trainer and the tracker, configured.

A field left empty takes its value from the environment (`rl_assets.settings`), read when it is needed and not when the
definitions are loaded: a bad variable then fails the tick or the run that needs it, with one sentence.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from rl_assets.assets.shown import plainly
from rl_assets.backends import BASES, MODEL_LINES, check, line_of
from rl_assets.errors import ConfigurationError
from rl_assets.places import Place, local_directory, place_of
from rl_assets.settings import RulerSettings, Settings
from rl_assets.tree import BATCH_EPISODES, BATCH_MANIFEST, Tree

if TYPE_CHECKING:
    import psycopg

    from rl_assets.judging import Judge as JudgeProtocol
    from rl_assets.judging.parts import Chosen
    from rl_assets.training.base import BasePolicy
    from rl_assets.training.remote_models import RemoteBase
    from rl_assets.training.result import TrainingResult
    from rl_assets.training.serverless import ServerlessTrainingService
    from rl_assets.training.service import GRPOTrainingService


class Database(dg.ConfigurableResource):
    """The Postgres that holds Babylon's tables and our ledger."""

    url: str = Field(
        default="",
        description="Postgres URL. Leave empty for DATABASE_URL, or for the embedded server where that is not set: "
        "what is written here is shown in the UI, password and all.",
    )

    @contextmanager
    def connect(self) -> Iterator["psycopg.Connection"]:
        """An open connection, closed at the end. Functions of the store manage their own transactions on it.

        What goes wrong while it is open is told as `plainly` tells it.
        """
        from rl_assets.store.database import connect, database_url

        with plainly(), closing(connect(self.url or database_url(Settings.from_env()))) as connection:
            yield connection


class Lake(dg.ConfigurableResource):
    """The tree of bulk data: snapshots, windows, batches and evaluations."""

    directory: str = Field(
        default="",
        description="Root of the data: a directory, or a URL such as s3://bucket/data. Empty: RL_ASSETS_STORE, or else "
        "RL_ASSETS_DATA, or data/ in the project.",
    )

    @property
    def tree(self) -> Tree:
        return Tree(place_of(self.directory)) if self.directory else Settings.from_env().tree

    @property
    def disk(self) -> Path:
        """The directory of this machine in which it trains, and keeps the checkpoints that it plays."""
        given = place_of(self.directory) if self.directory else None
        return given if isinstance(given, Path) else Settings.from_env().data_dir


class Judge(dg.ConfigurableResource):
    """Who ranks the episodes of a group, and how large a group is. The key of a paid judge is RULER_JUDGE_API_KEY."""

    kind: str = Field(
        default="",
        description="`outcome`: expected PnL, drawdown and breaches; free and offline. `ruler`: an LLM compares the "
        "members, in shuffled passes. Empty: `ruler` if RULER_JUDGE_MODEL is set, else `outcome`.",
    )
    group_size: int = Field(default=0, ge=0, description="Episodes per group. 0: TRAINING_GROUP_SIZE, by default 8.")
    model: str = Field(default="", description="ruler: the judge, as litellm names it. Empty: RULER_JUDGE_MODEL.")
    base_url: str = Field(
        default="", description="ruler: an OpenAI-compatible server, without a password. Empty: RULER_JUDGE_BASE_URL."
    )
    passes: int | None = Field(
        default=None, ge=1, description="ruler: passes over each group. Unset: RULER_JUDGE_PASSES, by default 3."
    )
    most_passes: int | None = Field(
        default=None,
        ge=1,
        description="ruler: passes where they disagree. Unset: RULER_JUDGE_MOST_PASSES, by default 5.",
    )
    rubric: str = Field(default="", description="ruler: what to grade by, in words. Empty: the built-in rubric.")
    outcome_weight: float | None = Field(
        default=None,
        ge=0.0,
        le=0.5,
        description="ruler: share of the outcome judge in a score. Unset: RULER_JUDGE_OUTCOME_WEIGHT, by default 0.25.",
    )
    tokens_per_window: int | None = Field(
        default=None, ge=0, description="ruler: budget of a window. Unset: RULER_JUDGE_TOKENS_PER_WINDOW."
    )
    tokens_per_day: int | None = Field(
        default=None, ge=0, description="ruler: budget of a UTC day. Unset: RULER_JUDGE_TOKENS_PER_DAY."
    )
    dollars_per_window: float | None = Field(
        default=None, ge=0.0, description="ruler: budget of a window. Unset: RULER_JUDGE_DOLLARS_PER_WINDOW."
    )
    dollars_per_day: float | None = Field(
        default=None, ge=0.0, description="ruler: budget of a UTC day. Unset: RULER_JUDGE_DOLLARS_PER_DAY."
    )

    @property
    def members(self) -> int:
        return self.group_size or Settings.from_env().group_size

    @property
    def chosen(self) -> "Chosen":
        """Which judge, as the environment says where nothing is filled in here."""
        from rl_assets.judging.parts import Chosen

        settings = Settings.from_env()
        given = {name: value for name in _RULER if (value := getattr(self, name)) not in ("", None)}
        kind = self.kind or ("ruler" if self.model else settings.judge)
        return Chosen(kind, replace(settings.ruler, **given))

    def build(self, conn: "psycopg.Connection") -> "JudgeProtocol":
        """The judge; `ruler` keeps its answers and its budget in the database. Raises ConfigurationError."""
        return self.chosen.build(conn)


_RULER = tuple(field.name for field in fields(RulerSettings) if field.name in Judge.model_fields)


class Trainer(dg.ConfigurableResource):
    """Which model line is trained, where, and from how many fresh episodes on."""

    backend: str = Field(
        default="",
        description="ART backend. `cpu` trains with torch in this process, `local` with Unsloth and vLLM on a GPU of "
        "this machine, `serverless` at W&B. Empty: TRAINING_BACKEND, or `serverless` if WANDB_API_KEY is set, `local` "
        "if there is a CUDA GPU with openpipe-art[backend], else `cpu`.",
    )
    base_policy: str = Field(
        default="",
        description="Step 0 of a line on the CPU. `embedded`: a small model built here. `smollm2`: "
        "SmolLM2-135M-Instruct from the extra `smollm`, trained by LoRA. Empty: TRAINING_BASE_POLICY, or `embedded`.",
    )
    model_line: str = Field(
        default="",
        description="Name of the model line; one batch of a line is in flight at a time. Empty: the environment's.",
    )
    min_trajectories: int = Field(
        default=0,
        ge=0,
        description="Fresh judged episodes that start a training. 0: TRAINING_MIN_TRAJECTORIES, by default 1000.",
    )
    most_stale: int | None = Field(
        default=None,
        ge=0,
        description="Policy steps that an episode may be behind the champion and still be trained on. Unset: "
        "TRAINING_MOST_STALE, by default 0.",
    )
    recompute_logprobs: bool = Field(
        default=False,
        description="What becomes of episodes of a known policy step that were recorded without logprobs. Off: they "
        "are left out of every batch, as `no_logprobs`. On: groups may be trained on with them, and the step that is "
        "trained says how likely their answers were; only on the backend `cpu`.",
    )

    curriculum_tiers: int = Field(
        default=1,
        ge=1,
        description="Tiers of difficulty that the first pass over a batch goes through from easy to hard; a snapshot "
        "is as hard as those who played it did badly. 1: an order that does not ask; only on the backend `cpu`.",
    )

    @property
    def line(self) -> str:
        return self.settings.model_line

    @property
    def settings(self) -> Settings:
        """The environment's settings, with what is filled in here in their place. Raises ConfigurationError."""
        known = Settings.from_env()
        for name, value, choices in (
            ("backend", self.backend, MODEL_LINES),
            ("base_policy", self.base_policy, BASES),
        ):
            if value and value not in choices:
                raise ConfigurationError(f"trainer.{name}={value!r} is unknown; set it to {' or '.join(choices)}")
        backend, base = self.backend or known.backend, self.base_policy or known.base_policy
        changed = (backend, base) != (known.backend, known.base_policy)
        return replace(
            known,
            backend=backend,
            backend_why="the trainer's configuration says so" if self.backend else known.backend_why,
            base_policy=base,
            min_trajectories=self.min_trajectories or known.min_trajectories,
            most_stale=known.most_stale if self.most_stale is None else self.most_stale,
            model_line=self.model_line or (line_of(backend, base) if changed else known.model_line),
        )

    def check(self) -> None:
        """Raises ConfigurationError where the line cannot be trained here, so that nothing is claimed for it."""
        check(self.settings)

    def service(self, data_dir: Path, conn: "psycopg.Connection") -> "GRPOTrainingService | ServerlessTrainingService":
        """What trains the line. Raises ConfigurationError."""
        from rl_assets.training.lines import service_of

        return service_of(self.settings, data_dir, conn, recompute=self.recompute_logprobs, tiers=self.curriculum_tiers)

    def base(self, data_dir: Path, on_progress: Callable[[int, int], None]) -> "BasePolicy | RemoteBase":
        """Step 0 of the line, made where there is none; `on_progress` is called with updates done and in all."""
        from rl_assets.training.lines import base_of

        return base_of(self.settings, data_dir, on_progress)


class Tracking(dg.ConfigurableResource):
    """Weights & Biases: one run per training batch, in a group per model line."""

    project: str = Field(default="", description="W&B project. Empty: WANDB_PROJECT, or rl-assets.")
    mode: str = Field(
        default="",
        description="`online` needs WANDB_API_KEY; `offline` writes the run under <data>/wandb, for `wandb sync`; "
        "`disabled` writes nothing. Empty: WANDB_MODE, or online.",
    )

    def log_training(self, result: "TrainingResult", batch: Place, data_dir: Path) -> str:
        """Record a training with its lineage, once however often this is called. batch: where the files of its batch
        are. Returns where it is recorded, or why it is not tracked: the training stands either way."""
        mode = self.mode or os.environ.get("WANDB_MODE", "online")
        if mode == "disabled":
            return "not tracked"
        from rl_assets.errors import RlAssetsError
        from rl_assets.tracking import track_training

        settings = Settings.from_env().serverless
        try:
            with local_directory(batch, BATCH_MANIFEST, BATCH_EPISODES) as files:
                return track_training(
                    result,
                    files,
                    data_dir,
                    project=self.project or settings.project,
                    entity=settings.entity,
                    mode=mode,
                )
        except (RlAssetsError, OSError) as error:
            return f"not tracked: {error}"
