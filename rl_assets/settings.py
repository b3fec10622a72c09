"""What the environment says: where the data is, which database, which threshold; and what every process sets first.

Nothing here opens a connection or a file. A variable that cannot be used is a `ConfigurationError` that names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from rl_assets.errors import ConfigurationError

REPOSITORY = Path(__file__).resolve().parent.parent
"""The project's directory, which holds `dagster.yaml` and `workspace.yaml`."""

POSTGRES_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://", "postgresql+psycopg2://")
MOST = 10_000_000
"""Upper bound of every count that can be set: beyond it is a slip of the keyboard."""


@dataclass(frozen=True)
class Settings:
    """data_dir: root of bulk data, absolute. database_url: Babylon's Postgres, None for the embedded server.
    dagster_pg_url: Dagster's own database, None for the embedded server's.
    min_trajectories: fresh episodes that start a training. group_size: episodes per group."""

    data_dir: Path
    database_url: str | None = None
    dagster_pg_url: str | None = None
    min_trajectories: int = 1000
    group_size: int = 8
    judge: str = "outcome"
    backend: str = "cpu"
    model_line: str = "babylon-agent"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the environment. Raises ConfigurationError that names variable, value and remedy."""
        env = os.environ if env is None else env
        return cls(
            data_dir=Path(env.get("RL_ASSETS_DATA") or REPOSITORY / "data").expanduser().absolute(),
            database_url=_postgres(env, "DATABASE_URL"),
            dagster_pg_url=_postgres(env, "DAGSTER_PG_URL"),
            min_trajectories=_at_least(env, "TRAINING_MIN_TRAJECTORIES", 1000, least=1),
            group_size=_at_least(env, "TRAINING_GROUP_SIZE", 8, least=2),
        )

    @property
    def snapshots(self) -> Path:
        return self.data_dir / "snapshots"

    @property
    def postgres_dir(self) -> Path:
        """Where the embedded server lives, data and binaries' run-time files."""
        return self.data_dir / "postgres"

    @property
    def dagster_dir(self) -> Path:
        """Where Dagster keeps the logs of steps."""
        return self.data_dir / "dagster"


def prepare_environment(env: MutableMapping[str, str] | None = None) -> None:
    """Set what libraries read at import. Every entry point calls this first; what a person has set stays as it is."""
    env = os.environ if env is None else env
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    data_dir = Path(env.get("RL_ASSETS_DATA") or REPOSITORY / "data").expanduser().absolute()
    for name, value in {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else litellm asks GitHub for prices when it is imported
        "HF_HUB_OFFLINE": "1",  # the embedded policy is built here; nothing is to be looked up on a hub
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",  # Dagster forks; tokenizers warns on each fork otherwise
        "OMP_NUM_THREADS": cores,
        "DAGSTER_HOME": str(REPOSITORY),
        "RL_ASSETS_DAGSTER_DIR": str(data_dir / "dagster"),  # named in dagster.yaml
    }.items():
        env.setdefault(name, value)
    if not env.get("WANDB_API_KEY"):
        env.setdefault("WANDB_MODE", "disabled")


def _at_least(env: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= MOST):
        raise ConfigurationError(
            f"{name}={text!r} is not a whole number from {least} to {MOST}; set it to one, or unset it for {default}"
        )
    return int(text)


def _postgres(env: Mapping[str, str], name: str) -> str | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    if not text.startswith(POSTGRES_SCHEMES):
        raise ConfigurationError(
            f"{name} is not a Postgres URL; write it like postgresql://user:password@host:5432/database, or unset it "
            "for the embedded server"
        )
    return text
