"""What the environment says: where the data is, which database, which threshold; and what every process sets first.

Nothing here opens a connection or a file. A variable that cannot be used is a `ConfigurationError` that names it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from rl_assets.backends import BASES, CPU, EMBEDDED, MODEL_LINES, choose, line_of
from rl_assets.collector import collect_seldom
from rl_assets.errors import ConfigurationError
from rl_assets.places import Place, place_of
from rl_assets.tree import Tree

REPOSITORY = Path(__file__).resolve().parent.parent
"""The project's directory, which holds `dagster.yaml` and `workspace.yaml`."""

POSTGRES_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://", "postgresql+psycopg2://")
MOST = 1_000_000_000
"""Upper bound of every count that can be set: beyond it is a slip of the keyboard."""


@dataclass(frozen=True)
class RulerSettings:
    """The judge behind an OpenAI-compatible API, and what it may cost.

    model: as litellm names it, or as the server at base_url does; empty for none. api_key: for that model alone.
    passes: shuffled passes over each group, most_passes where they disagree. concurrency: requests at a time.
    requests_per_minute: 0 for no limit. timeout_seconds: per request. prompt_tokens: of one request, at most, by a
    careful estimate; longer episodes are digested. answer_tokens: of one answer, at most, reasoning included.
    tokens and dollars per window and per UTC day: the budget; dollars of None do not bind. input_price, output_price:
    dollars per million tokens, where litellm does not know them. outcome_weight: share of the outcome judge in a score,
    at most a half. rubric: what to grade by; empty for the built-in one.
    """

    model: str = ""
    base_url: str = ""
    api_key: str | None = field(default=None, repr=False)
    passes: int = 3
    most_passes: int = 5
    concurrency: int = 8
    requests_per_minute: int = 0
    timeout_seconds: int = 120
    prompt_tokens: int = 60_000
    answer_tokens: int = 4_000
    tokens_per_window: int = 20_000_000
    tokens_per_day: int = 100_000_000
    dollars_per_window: float | None = None
    dollars_per_day: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    outcome_weight: float = 0.25
    rubric: str = ""

    def __post_init__(self) -> None:
        if self.most_passes < self.passes:
            raise ConfigurationError(
                f"RULER_JUDGE_MOST_PASSES={self.most_passes} is less than RULER_JUDGE_PASSES={self.passes}; raise it"
            )
        if not 0.0 <= self.outcome_weight <= 0.5:
            raise ConfigurationError(
                f"RULER_JUDGE_OUTCOME_WEIGHT={self.outcome_weight} is not from 0 to 0.5; set it to at most a half"
            )
        if (self.input_price is None) != (self.output_price is None):
            raise ConfigurationError(
                "only one of RULER_JUDGE_INPUT_PRICE and RULER_JUDGE_OUTPUT_PRICE is set; set both or none"
            )
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ConfigurationError(
                "RULER_JUDGE_BASE_URL is not the URL of an API; write it like http://127.0.0.1:8000/v1"
            )
        address = urlsplit(self.base_url)
        if address.username or address.password or address.query:  # it is shown with every judgement set
            raise ConfigurationError(
                "RULER_JUDGE_BASE_URL holds a user, a password or a query; leave them out and set RULER_JUDGE_API_KEY"
            )

    def shared(self, among: int) -> RulerSettings:
        """What each of so many judges may ask for at a time. The budget is in the database, for all of them."""
        return replace(
            self,
            concurrency=max(self.concurrency // among, 1),
            requests_per_minute=max(self.requests_per_minute // among, 1) if self.requests_per_minute else 0,
        )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> RulerSettings:
        def count(name: str, least: int) -> int:
            return _at_least(env, f"RULER_JUDGE_{name.upper()}", getattr(cls, name), least=least)

        def amount(name: str) -> float | None:
            return _amount(env, f"RULER_JUDGE_{name.upper()}", getattr(cls, name))

        weight = amount("outcome_weight")
        return cls(
            model=env.get("RULER_JUDGE_MODEL", "").strip(),
            base_url=env.get("RULER_JUDGE_BASE_URL", "").strip().rstrip("/"),
            api_key=env.get("RULER_JUDGE_API_KEY", "").strip() or None,
            passes=count("passes", 1),
            most_passes=count("most_passes", 1),
            concurrency=count("concurrency", 1),
            requests_per_minute=count("requests_per_minute", 0),
            timeout_seconds=count("timeout_seconds", 1),
            prompt_tokens=count("prompt_tokens", 1000),
            answer_tokens=count("answer_tokens", 100),
            tokens_per_window=count("tokens_per_window", 0),
            tokens_per_day=count("tokens_per_day", 0),
            dollars_per_window=amount("dollars_per_window"),
            dollars_per_day=amount("dollars_per_day"),
            input_price=amount("input_price"),
            output_price=amount("output_price"),
            outcome_weight=cls.outcome_weight if weight is None else weight,
        )


@dataclass(frozen=True)
class ServerlessSettings:
    """W&B Training. base_url: of its API, with its version. base_model: what step 0 is, one of those that W&B trains.
    entity: None for the key's own. request_seconds: per request. training_seconds: how long a run waits for its
    training to end; one that takes longer is left to the training sensor, and not lost."""

    api_key: str | None = field(default=None, repr=False)
    base_url: str = "https://api.training.wandb.ai/v1"
    base_model: str = "OpenPipe/Qwen3-14B-Instruct"
    entity: str | None = None
    project: str = "rl-assets"
    request_seconds: int = 120
    training_seconds: int = 21_600

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> ServerlessSettings:
        env = os.environ if env is None else env
        base_url = env.get("SERVERLESS_BASE_URL", "").strip().rstrip("/") or cls.base_url
        if not base_url.startswith(("http://", "https://")):
            raise ConfigurationError(
                "SERVERLESS_BASE_URL is not the URL of an API; write it like http://127.0.0.1:8000/v1"
            )
        return cls(
            api_key=env.get("WANDB_API_KEY", "").strip() or None,
            base_url=base_url,
            base_model=env.get("SERVERLESS_BASE_MODEL", "").strip() or cls.base_model,
            entity=env.get("WANDB_ENTITY", "").strip() or None,
            project=env.get("WANDB_PROJECT", "").strip() or cls.project,
            request_seconds=_at_least(env, "SERVERLESS_REQUEST_SECONDS", cls.request_seconds, least=1),
            training_seconds=_at_least(env, "SERVERLESS_TRAINING_SECONDS", cls.training_seconds, least=1),
        )


@dataclass(frozen=True)
class LocalSettings:
    """ART's backend on a GPU of this machine. base_model: a directory, or a name that Hugging Face has, on which a
    line's adapters stand. request_seconds: per request while it plays."""

    base_model: str = "Qwen/Qwen2.5-3B-Instruct"
    request_seconds: int = 120

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> LocalSettings:
        env = os.environ if env is None else env
        return cls(
            base_model=env.get("LOCAL_BASE_MODEL", "").strip() or cls.base_model,
            request_seconds=_at_least(env, "LOCAL_REQUEST_SECONDS", cls.request_seconds, least=1),
        )


@dataclass(frozen=True)
class Settings:
    """data_dir: root of bulk data, absolute. database_url: Babylon's Postgres, None for the embedded server.
    dagster_pg_url: Dagster's own database, None for the embedded server's.
    min_trajectories: fresh episodes that start a training. most_stale: policy steps that they may be behind.
    group_size: episodes per group. judge: `ruler` once it has a model, else `outcome`. backend_why: in
    words. base_policy: step 0 of a line on the CPU.
    store: where machines share what is in `lake`; None where there is one machine, or its data_dir is a shared disk.
    spread: `ray` where play and judging go to a Ray cluster as tasks, else empty."""

    data_dir: Path
    database_url: str | None = None
    dagster_pg_url: str | None = None
    min_trajectories: int = 1000
    most_stale: int = 0
    group_size: int = 8
    judge: str = "outcome"
    backend: str = CPU
    model_line: str = MODEL_LINES[CPU]
    ruler: RulerSettings = field(default_factory=RulerSettings)
    serverless: ServerlessSettings = field(default_factory=ServerlessSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    backend_why: str = "it is the default"
    base_policy: str = EMBEDDED
    store: Place | None = None
    spread: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the environment. Raises ConfigurationError that names variable, value and remedy."""
        env = os.environ if env is None else env
        ruler = RulerSettings.from_env(env)
        choice = choose(env)
        base_policy = env.get("TRAINING_BASE_POLICY", "").strip() or EMBEDDED
        spread = env.get("RL_ASSETS_SPREAD", "").strip()
        if spread not in ("", "ray"):
            raise ConfigurationError(f"RL_ASSETS_SPREAD={spread!r} is unknown; set it to ray, or unset it")
        if base_policy not in BASES:
            raise ConfigurationError(f"TRAINING_BASE_POLICY={base_policy!r} is unknown; set it to {' or '.join(BASES)}")
        return cls(
            data_dir=_data_dir(env),
            database_url=_postgres(env, "DATABASE_URL"),
            dagster_pg_url=_postgres(env, "DAGSTER_PG_URL"),
            min_trajectories=_at_least(env, "TRAINING_MIN_TRAJECTORIES", 1000, least=1),
            most_stale=_at_least(env, "TRAINING_MOST_STALE", 0, least=0),
            group_size=_at_least(env, "TRAINING_GROUP_SIZE", 8, least=2),
            judge="ruler" if ruler.model else "outcome",
            backend=choice.backend,
            model_line=env.get("TRAINING_MODEL_LINE", "").strip() or line_of(choice.backend, base_policy),
            ruler=ruler,
            serverless=ServerlessSettings.from_env(env),
            local=LocalSettings.from_env(env),
            backend_why=choice.why,
            base_policy=base_policy,
            spread=spread,
            store=place_of(env["RL_ASSETS_STORE"].strip()) if env.get("RL_ASSETS_STORE", "").strip() else None,
        )

    @property
    def lake(self) -> Place:
        """Root of what every machine sees: snapshots, windows, batches, evaluations, archives of checkpoints."""
        return self.data_dir if self.store is None else self.store

    @property
    def tree(self) -> Tree:
        return Tree(self.lake)

    @property
    def postgres_dir(self) -> Path:
        """Where the embedded server lives, data and binaries' run-time files."""
        return self.data_dir / "postgres"

    @property
    def dagster_dir(self) -> Path:
        """Where Dagster keeps the logs of steps."""
        return self.data_dir / "dagster"


def prepare_environment(env: MutableMapping[str, str] | None = None) -> None:
    """Set what libraries read at import, and have imports be quick. Every entry point calls this first; what a person
    has set stays as it is."""
    collect_seldom()
    env = os.environ if env is None else env
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    data_dir = _data_dir(env)
    for name, value in {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else litellm asks GitHub for prices when it is imported
        "HF_HUB_OFFLINE": "1",  # the embedded policy is built here; nothing is to be looked up on a hub
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar per checkpoint loaded would drown what a command says
        "TQDM_DISABLE": "1",  # so would ART's bar per training
        "DO_NOT_TRACK": "1",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",  # Dagster forks; tokenizers warns on each fork otherwise
        "OMP_NUM_THREADS": cores,
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow a busy machine down sixfold
        "DAGSTER_HOME": str(REPOSITORY),
        "RL_ASSETS_DAGSTER_DIR": str(data_dir / "dagster"),  # named in dagster.yaml
        "WANDB_DATA_DIR": str(data_dir / "wandb" / "data"),  # artifacts wait there for `wandb sync`
        "WANDB_CACHE_DIR": str(data_dir / "wandb" / "cache"),
    }.items():
        env.setdefault(name, value)
    if not env.get("WANDB_API_KEY"):
        env.setdefault("WANDB_MODE", "disabled")


def _data_dir(env: Mapping[str, str]) -> Path:
    return Path(env.get("RL_ASSETS_DATA") or REPOSITORY / "data").expanduser().absolute()


def _at_least(env: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= MOST):
        raise ConfigurationError(
            f"{name}={text!r} is not a whole number from {least} to {MOST}; set it to one, or unset it for {default}"
        )
    return int(text)


def _amount(env: Mapping[str, str], name: str, default: float | None) -> float | None:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= MOST:
        raise ConfigurationError(f"{name}={text!r} is not a number from 0 to {MOST}; set it to one, or unset it")
    return value


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
