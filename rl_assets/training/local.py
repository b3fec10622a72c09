"""ART on a GPU of this machine: Unsloth trains a low-rank adapter, and vLLM serves it to those who play.

ART trains on top of a directory's newest checkpoint and names the next one itself. So each training gets a directory of
its own that holds its base step alone; what comes of it moves to the model line whole or not at all. Importing this
imports torch and ART.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import art
from art import dev
from art.local.backend import LocalBackend
from art.local.checkpoints import get_last_checkpoint_dir
from art.local.service import ModelService
from art.preprocessing.pack import PackedTensors
from art.utils.output_dirs import get_model_dir
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import is_offline_mode
from mp_actors import move_to_child_process

from rl_assets.agents.endpoint import EndpointAgent
from rl_assets.agents.remote import Begin
from rl_assets.episodes import Policy, Sampling
from rl_assets.errors import ConfigurationError, MalformedInput, MissingCheckpoint, ServiceError
from rl_assets.registry.checkpoints import ADAPTER, PROJECT, base_path, checkpoint_digest, checkpoints_of
from rl_assets.settings import LocalSettings
from rl_assets.training.base import BasePolicy
from rl_assets.training.record import TrainingRecord, write_record
from rl_assets.training.untracked import untracked_model

RECORD = "local.json"
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of a dense model that get an adapter."""
MOST_TOKENS = 32_768
"""Of an episode: what ART's backend takes, and drops what is longer with no more than a warning."""
CONCURRENCY = 64
"""Requests to vLLM at a time."""
ANSWER_TOKENS = 512
"""Of an answer; what is cut off there is played as it is, which is mostly an invalid action."""


class WatchedBackend(LocalBackend):
    """ART's backend, with the metrics of each update kept, and without the step that it makes of nothing.

    ART's own way to a service reads which layers to adapt from a table that needs Megatron, which its extra for a GPU
    does not install; `adapter_config` says what that table says of a dense model.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path=str(path))
        self.curve: list[dict[str, float]] = []

    async def _get_service(self, model: art.TrainableModel) -> ModelService:
        if model.name not in self._services:
            directory = get_model_dir(model=model, art_path=self._path)
            config = adapter_config(model.base_model, directory)
            self._services[model.name] = unsloth_service(model.name, model.base_model, config, directory)
        return self._services[model.name]

    async def _train_model(self, *args: Any, **kwargs: Any) -> AsyncIterator[dict[str, float]]:
        async for metrics in super()._train_model(*args, **kwargs):
            self.curve.append({"update": float(len(self.curve)), **{k: float(v) for k, v in metrics.items()}})
            yield metrics

    def _get_packed_tensors(self, *args: Any, **kwargs: Any) -> PackedTensors | None:
        tensors = super()._get_packed_tensors(*args, **kwargs)
        if tensors is None:
            raise MalformedInput(
                "ART packed no episode of the batch, although rewards differ; read what it said in the log, and free "
                "the batch"
            )
        return tensors


def adapter_config(base_model: str, directory: str) -> dev.InternalModelConfig:
    """ART's defaults for a model that trains and serves on the same GPU.

    directory: the model's, whose newest checkpoint, if there is one, is trained on.
    """
    return dev.InternalModelConfig(
        init_args={
            "load_in_4bit": True,
            "max_seq_length": MOST_TOKENS,
            "model_name": get_last_checkpoint_dir(directory) or base_model,
        },
        engine_args={
            "enable_sleep_mode": True,
            "generation_config": "vllm",
            "model": base_model,
            "lora_target_modules": list(ADAPTED),
        },
        peft_args={
            "lora_alpha": 16,
            "r": 8,
            "random_state": 3407,
            "target_modules": list(ADAPTED),
            "use_gradient_checkpointing": "unsloth",
        },
        rollout_weights_mode="lora",
        tinker_args=None,
        trainer_args={
            "adam_beta1": 0.9,
            "adam_beta2": 0.99,
            "disable_tqdm": True,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": True,
            "learning_rate": 5e-6,
            "logging_steps": 1,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.1,
            "num_generations": 2,
            "optim": "paged_adamw_8bit",
            "output_dir": directory,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "save_strategy": "no",
            "weight_decay": 0.1,
        },
    )


def unsloth_service(name: str, base_model: str, config: dev.InternalModelConfig, directory: str) -> ModelService:
    """ART's service for a GPU, in a process of its own. Loads Unsloth, and so needs CUDA."""
    from art.unsloth.service import UnslothService  # pyright: ignore[reportMissingImports]

    os.environ["IMPORT_UNSLOTH"] = "1"  # ART's child process then loads it before what it patches
    service = UnslothService(model_name=name, base_model=base_model, config=config, output_dir=directory)
    return move_to_child_process(service, process_name="model-service")


def ensure_local_base(data_dir: Path, model_line: str, settings: LocalSettings) -> BasePolicy:
    """Step 0 of a line: a new adapter, which changes nothing, on the base model. ART makes it unless it is there.

    Raises ConfigurationError where the line stands on another base or the base model is not on this machine.
    """
    target = base_path(data_dir, model_line)
    if target.is_dir():
        known = _base_model(target)
        if known != settings.base_model:
            raise ConfigurationError(
                f"{model_line} stands on {known}; set LOCAL_BASE_MODEL to it, or name a new line with "
                "TRAINING_MODEL_LINE"
            )
    else:
        _check_weights(settings.base_model)
        with workspace(data_dir / "art", f"base-{model_line}") as work:
            asyncio.run(_begin(work, model_line, settings.base_model))
            made = base_path(work, model_line)
            if not (made / ADAPTER).is_file():
                raise ServiceError(f"ART made no adapter for {settings.base_model}; read its logs above")
            _keep(made, target, {"base_model": settings.base_model})
    return BasePolicy(target, checkpoint_digest(target), {}, [])


def train_adapter(
    art_path: Path, base: Path, model_line: str, batch_id: str, groups: list[art.TrajectoryGroup], options: dict
) -> None:
    """One training on top of the checkpoint `base`, saved as the next step of its line with the metrics of each update.

    options: of ART's `train`. Raises MissingCheckpoint where the base is no adapter, and MalformedInput where ART
    packs nothing.
    """
    base_model, step = _base_model(base), int(base.name)
    with workspace(art_path, batch_id) as work:
        own = checkpoints_of(work, model_line)
        own.mkdir(parents=True)
        shutil.copytree(base, own / base.name)
        curve = asyncio.run(_train(work, model_line, base_model, groups, options))
        made = own / f"{step + 1:04d}"
        if not (made / ADAPTER).is_file():
            raise ServiceError(f"ART ended the training of {batch_id} without a checkpoint; read its logs above")
        write_record(made, TrainingRecord(batch_id, step, curve, passes=[{"pass": 0.0}], best_pass=0))
        taken = [int(path.name) for path in base.parent.iterdir() if path.name.isdigit()]
        target = base.parent / f"{max(taken) + 1:04d}"
        _keep(made, target, {"base_model": base_model})


class ServedAgent:
    """An adapter as a player: vLLM serves it for as long as a connection is open, and then leaves the GPU to others."""

    def __init__(self, checkpoint: Path, policy: Policy, settings: LocalSettings, temperature: float = 1.0) -> None:
        self.policy, self.concurrency = policy, CONCURRENCY
        self.sampling: Sampling | None = Sampling(temperature=temperature, max_tokens=ANSWER_TOKENS)
        self._checkpoint, self._settings, self._temperature = checkpoint, settings, temperature

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Begin]:
        with tempfile.TemporaryDirectory(prefix="rl-assets-serve-") as directory:
            work, line = Path(directory), self.policy.name
            own = checkpoints_of(work, line)
            own.mkdir(parents=True)
            (own / self._checkpoint.name).symlink_to(self._checkpoint.absolute())
            backend, model = WatchedBackend(work / "art"), _model(work, line, _base_model(self._checkpoint))
            try:
                await model.register(backend)
                endpoint = EndpointAgent(
                    str(model.inference_base_url),
                    f"{line}@{int(self._checkpoint.name)}",
                    api_key=model.inference_api_key,
                    temperature=self._temperature,
                    max_tokens=ANSWER_TOKENS,
                    concurrency=CONCURRENCY,
                    timeout=float(self._settings.request_seconds),
                    cut_off_counts=True,
                )
                async with endpoint.connected() as begin:
                    yield begin
            finally:
                await backend.close()


@contextmanager
def workspace(art_path: Path, name: str) -> Iterator[Path]:
    """A directory for one training, which nothing of an earlier, killed one is left in. It goes in the end."""
    work = art_path / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _model(work: Path, model_line: str, base_model: str) -> art.TrainableModel:
    return untracked_model(name=model_line, project=PROJECT, base_model=base_model, base_path=str(work / "art"))


async def _begin(work: Path, model_line: str, base_model: str) -> None:
    """ART saves a new adapter as step 0 when it starts to serve a model that has none."""
    backend = WatchedBackend(work / "art")
    try:
        await _model(work, model_line, base_model).register(backend)
    finally:
        await backend.close()


async def _train(
    work: Path, model_line: str, base_model: str, groups: list[art.TrajectoryGroup], options: dict
) -> list[dict[str, float]]:
    backend, model = WatchedBackend(work / "art"), _model(work, model_line, base_model)
    try:
        await model.register(backend)
        await backend.train(model, groups, **options)
    finally:
        await backend.close()
    return backend.curve


def _keep(made: Path, target: Path, record: dict[str, str]) -> None:
    (made / RECORD).write_text(json.dumps(record), encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(made, target)


def _base_model(checkpoint: Path) -> str:
    """What an adapter stands on. Raises MissingCheckpoint where there is no adapter of ours."""
    try:
        return str(json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["base_model"])
    except (OSError, ValueError, KeyError) as error:
        raise MissingCheckpoint(
            f"{checkpoint} is no adapter of the backend local; give the line its own name with TRAINING_MODEL_LINE, "
            "or restore the checkpoint"
        ) from error


def _check_weights(base_model: str) -> None:
    there = Path(base_model).is_dir() or isinstance(try_to_load_from_cache(base_model, "config.json"), str)
    if not there and is_offline_mode():
        raise ConfigurationError(
            f"{base_model} is neither a directory nor in the cache of Hugging Face; set LOCAL_BASE_MODEL to a "
            "directory, or HF_HUB_OFFLINE=0 to have it downloaded"
        )
