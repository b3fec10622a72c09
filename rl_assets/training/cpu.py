"""ART on a CPU: a LocalBackend whose service trains with torch and answers OpenAI requests with logprobs.

ART tokenises, packs, weighs and computes the loss, and ART's checkpoint directories are kept; the package brings the
forward pass, the optimizer and the server that ART otherwise expects of a GPU.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art import dev
from art import types as art_types
from art.local.backend import LocalBackend
from art.local.service import ModelService
from art.model import TrainableModel
from art.preprocessing.pack import DiskPackedTensors, PackedTensors, packed_tensors_from_dir
from art.preprocessing.tokenize import SFTBatch
from art.utils.output_dirs import get_model_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_assets.agents.grammar import FILE as GRAMMAR
from rl_assets.agents.grammar import load_grammar
from rl_assets.errors import MalformedInput, MissingCheckpoint
from rl_assets.registry.partial import partial_directory
from rl_assets.training.credit import Marks, Notes, lay_over
from rl_assets.training.inference import InferenceServer
from rl_assets.training.learner import Learner
from rl_assets.training.lora import FILE as LORA
from rl_assets.training.lora import adapt, load_lora, merge
from rl_assets.training.options import CpuTraining
from rl_assets.training.progress import Progress, put_back
from rl_assets.training.record import TrainingRecord, write_record

GRADIENT_STEPS = "data/step_num_gradient_steps"
KEEP_SECONDS = 20.0
"""Of work that a killed run may lose, beside the update that it was in. The end of a pass is always kept."""


class CpuBackend(LocalBackend):
    """LocalBackend without a GPU. `parent_step` decides which checkpoint the next training starts from."""

    def __init__(self, *, path: str, training: CpuTraining | None = None) -> None:
        super().__init__(in_process=True, path=path)
        self._supports_result_packing = True
        self._packed_sequence_length_requires_chunk_alignment = False
        self._training = training or CpuTraining()

    async def close(self) -> None:
        """Stop the services. ART's own also sweeps the heap for a GPU's sake, which takes as long as an update."""
        for name in list(self._services):
            service = self._services.pop(name)
            assert isinstance(service, CpuService)
            service.close()

    async def _get_service(self, model: TrainableModel) -> ModelService:
        return self.service(model)

    def _get_packed_tensors(self, model: TrainableModel, *args: Any, **kwargs: Any) -> PackedTensors | None:
        """ART's packed tensors, with each trajectory's advantage spread over its steps. Raises MalformedInput where ART
        has nothing to pack: it would go on to call a copy of the newest checkpoint the next one."""
        tensors = super()._get_packed_tensors(model, *args, **kwargs)
        service = self.service(model)
        if tensors is None:
            raise MalformedInput(
                f"ART packed no episode of {service.batch_id}, although rewards differ; read what it said in the log, "
                "and free the batch"
            )
        service.marks = lay_over(tensors, service.notes)
        return tensors

    def service(self, model: TrainableModel) -> CpuService:
        """The service of a model, started when first asked for."""
        if model.name not in self._services:
            service = CpuService(
                model_name=model.name,
                base_model=model.base_model,
                config={},
                output_dir=get_model_dir(model=model, art_path=self._path),
            )
            service.training = self._training
            self._services[model.name] = service
        service = self._services[model.name]
        assert isinstance(service, CpuService)
        return service


class CpuService:
    """What ART calls a model service: training on packed tensors, and inference of every kept checkpoint."""

    def __init__(self, model_name: str, base_model: str, config: dev.InternalModelConfig, output_dir: str) -> None:
        self.model_name = model_name
        self.base_model = base_model
        self.config = config
        self.output_dir = output_dir
        self.training = CpuTraining()
        self.parent_step: int | None = None
        self.batch_id = ""
        self.notes: Notes = {}
        self.marks: Marks | None = None
        self._server: InferenceServer | None = None

    def checkpoint(self, step: int) -> Path:
        return Path(self.output_dir) / "checkpoints" / f"{step:04d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        root = Path(self.output_dir) / "checkpoints"
        return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []

    async def start_openai_server(self, config: dev.OpenAIServerConfig | None) -> tuple[str, int]:
        """Serve every checkpoint as `<model>@<step>` on loopback. Returns host and port."""
        if self._server is None:
            wanted = (config or {}).get("server_args", {}).get("port")
            self._server = InferenceServer(self.model_name, Path(self.output_dir) / "checkpoints")
            self._server.start(int(wanted) if wanted else 0)
        return self._server.host, self._server.port

    async def vllm_engine_is_sleeping(self) -> bool:
        return False

    async def register_lora_for_step(self, step: int, checkpoint_dir: str) -> None:
        """Nothing to load ahead of time: the server reads a checkpoint when it is first asked for."""

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    async def train_sft(
        self, batches: list[SFTBatch], config: art_types.TrainSFTConfig, verbose: bool = False
    ) -> AsyncIterator[dict[str, float]]:
        raise NotImplementedError("the CPU backend warm-starts in rl_assets.training.base, not through ART's SFT")
        yield {}

    async def train(
        self,
        disk_packed_tensors: DiskPackedTensors,
        config: art_types.TrainConfig,
        _config: dev.TrainConfig,
        verbose: bool = False,
    ) -> AsyncIterator[dict[str, float]]:
        """Passes over the packed batch from `parent_step`; saves the best as the next step. Yields an update's metrics.

        A run that was killed goes on after the last update that it kept. Raises MissingCheckpoint where the parent is
        gone, and CollapsedPolicy where a limit is passed or a gradient is not finite.
        """
        parent_step = self.steps()[-1] if self.parent_step is None else self.parent_step
        parent = self.checkpoint(parent_step)
        if not (parent / "config.json").is_file():
            raise MissingCheckpoint(f"checkpoint {parent} is missing; restore it or roll back to a step that is there")
        assert self.marks is not None
        tensors = packed_tensors_from_dir(**disk_packed_tensors)
        model = AutoModelForCausalLM.from_pretrained(parent, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(parent, local_files_only=True)
        grammar = load_grammar(
            parent, lambda text: tokenizer.encode(text, add_special_tokens=False), model.config.vocab_size
        )
        lora = load_lora(parent)
        if lora is not None:
            adapt(model, lora, self._seed)
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
        state = parent / "optimizer.pt"
        if state.is_file():
            optimizer.load_state_dict(torch.load(state, weights_only=True))
        learner = Learner(
            model,
            grammar,
            tensors,
            self.marks,
            _config,
            micro_batch=self.training.micro_batch,
            max_grad_norm=self.training.max_grad_norm,
        )
        plan = self._plan(self.marks)
        held_out = self.marks.held_out.nonzero()[:, 0].tolist()
        fingerprint = self._fingerprint(tensors, config.learning_rate, _config)
        progress = Progress.resume(self._kept, fingerprint, model, optimizer)
        updates = sum(map(len, plan))
        model.train()
        kept_at = time.monotonic()
        while len(progress.passes) < len(plan) and progress.over is None:
            number = len(progress.passes)
            for rows in plan[number][progress.updates_of_pass :]:
                done = len(progress.curve)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _schedule(done, updates, self.training.warm_up)
                point = learner.update(optimizer, rows)
                progress.curve.append({"update": float(done), "pass": float(number), **point})
                if time.monotonic() - kept_at > KEEP_SECONDS:
                    progress.keep(self._kept, model, optimizer)
                    kept_at = time.monotonic()
                yield {**point, GRADIENT_STEPS: float(updates)}
            gain = learner.gain(held_out) if held_out else None
            progress.end_pass(model, optimizer, gain, self.training.limits)
            progress.keep(self._kept, model, optimizer)
        self._save(model, tokenizer, progress, parent)
        shutil.rmtree(self._kept.parent)

    @property
    def _seed(self) -> int:
        return int.from_bytes(self.batch_id.encode()[-8:] or b"0", "big")

    @property
    def _kept(self) -> Path:
        """Where a run of this batch keeps its progress until it is done."""
        return Path(self.output_dir) / "unfinished" / self.batch_id / "progress.pt"

    def _fingerprint(self, tensors: PackedTensors, learning_rate: float, experimental: dev.TrainConfig) -> str:
        """What a run must agree in to go on where another stopped."""
        content = hashlib.sha256()
        for name in ("tokens", "logprobs", "advantages", "weights"):
            content.update(tensors[name].numpy().tobytes())
        terms = [self.parent_step, learning_rate, asdict(self.training), dict(experimental)]
        return hashlib.sha256(json.dumps([content.hexdigest(), *terms], default=str).encode()).hexdigest()

    def _plan(self, marks: Marks) -> list[list[list[int]]]:
        """Rows of each update of each pass: every pass goes through all that is learnt from, in an order of its own."""
        rng = np.random.default_rng(self._seed)
        rows = (~marks.held_out).nonzero()[:, 0].numpy()
        updates = max(len(rows) // self.training.sequences, 1)
        passes = [rng.permutation(rows) for _ in range(self.training.passes)]
        passes[0] = _by_tiers(passes[0], marks.difficulty[passes[0]], self.training.tiers)
        return [[part.tolist() for part in np.array_split(order, updates)] for order in passes]

    def _save(self, model: Any, tokenizer: Any, progress: Progress, parent: Path) -> None:
        """Write the best pass as the next step, whole or not at all."""
        assert progress.best is not None
        put_back(model, progress.best["model"])
        adapted = (parent / LORA).is_file()
        if adapted:
            merge(model)
        target = self.checkpoint(self.steps()[-1] + 1)
        with partial_directory(target) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            for name in (GRAMMAR, LORA):
                if (parent / name).is_file():
                    shutil.copy(parent / name, partial)
            if not adapted:  # its moments belong to adapters that are gone
                torch.save(progress.best["optimizer"], partial / "optimizer.pt")
            record = TrainingRecord(
                batch_id=self.batch_id,
                parent_step=int(parent.name),
                curve=progress.curve,
                passes=progress.passes,
                best_pass=progress.best["pass"],
                stopped=progress.over,
            )
            write_record(partial, record)
            partial.chmod(0o755)
            os.replace(partial, target)


def _by_tiers(order: np.ndarray, difficulty: np.ndarray, tiers: int) -> np.ndarray:
    """The same rows, tier after tier from easy to hard, and within a tier in the order given (a curriculum as in Bengio
    et al., ICML 2009). Tiers are of about the same size; rows of one difficulty are in one tier."""
    edges = np.quantile(difficulty, np.arange(1, tiers) / tiers)
    return order[np.argsort(np.searchsorted(edges, difficulty), kind="stable")]


def _schedule(done: int, updates: int, warm_up: int) -> float:
    """Factor of the learning rate: a linear rise, then a cosine that ends at nothing."""
    return min(1.0, (done + 1) / max(warm_up, 1)) * 0.5 * (1.0 + math.cos(math.pi * done / updates))
