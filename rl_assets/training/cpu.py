"""ART on a CPU: a LocalBackend whose service trains with torch and answers OpenAI requests with logprobs.

ART tokenises, packs, weighs and computes the loss, and ART's checkpoint directories are kept; this module brings the
forward pass, the optimizer and the server that ART otherwise expects of a GPU.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art import dev
from art import types as art_types
from art.local.backend import LocalBackend
from art.local.service import ModelService
from art.loss import loss_fn, shift_tensor
from art.model import TrainableModel
from art.preprocessing.pack import DiskPackedTensors, PackedTensors, packed_tensors_from_dir
from art.preprocessing.tokenize import SFTBatch
from art.utils.output_dirs import get_model_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_assets.agents.grammar import Grammar, load_grammar
from rl_assets.errors import MissingCheckpoint
from rl_assets.training.credit import StepAdvantages, spread_advantages
from rl_assets.training.forward import masked_logprobs
from rl_assets.training.inference import InferenceServer

GRADIENT_STEPS = "data/step_num_gradient_steps"


@dataclass(frozen=True)
class CpuTraining:
    """passes: how often a batch is gone through. sequences: packed sequences per update. max_grad_norm: clip.
    entropy_floor: mean nats per chosen token under which a run stops as collapsed. kl_ceiling: mean nats per token from
    the base step at which the passes end early."""

    passes: int = 3
    sequences: int = 64
    micro_batch: int = 16
    max_grad_norm: float = 1.0
    kl_ceiling: float = 0.5


class CpuBackend(LocalBackend):
    """LocalBackend without a GPU. `parent_step` decides which checkpoint the next training starts from."""

    def __init__(self, *, path: str, training: CpuTraining | None = None) -> None:
        super().__init__(in_process=True, path=path)
        self._supports_result_packing = True
        self._packed_sequence_length_requires_chunk_alignment = False
        self._training = training or CpuTraining()

    async def _get_service(self, model: TrainableModel) -> ModelService:
        return self.service(model)

    def _get_packed_tensors(self, model: TrainableModel, *args: Any, **kwargs: Any) -> PackedTensors | None:
        """ART's packed tensors, with each trajectory's advantage spread over its steps where credits are known."""
        tensors = super()._get_packed_tensors(model, *args, **kwargs)
        if tensors is not None:
            spread_advantages(tensors, self.service(model).step_advantages)
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
        self.step_advantages: StepAdvantages = {}
        self.curve: list[dict[str, float]] = []
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

    async def aclose(self) -> None:
        self.close()

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
        """Passes over the packed batch from `parent_step`; saves the result as the next step. Yields an update's metrics.

        Raises MissingCheckpoint where the parent is gone and FloatingPointError where the loss is not finite.
        """
        parent_step = self.steps()[-1] if self.parent_step is None else self.parent_step
        parent = self.checkpoint(parent_step)
        if not (parent / "config.json").is_file():
            raise MissingCheckpoint(f"checkpoint {parent} is missing; restore it or roll back to a step that is there")
        tensors = packed_tensors_from_dir(**disk_packed_tensors)
        model = AutoModelForCausalLM.from_pretrained(parent, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(parent, local_files_only=True)
        grammar = load_grammar(
            parent, lambda text: tokenizer.encode(text, add_special_tokens=False), model.config.vocab_size
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
        state = parent / "optimizer.pt"
        if state.is_file():
            optimizer.load_state_dict(torch.load(state, weights_only=True))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate
        nodes = grammar_nodes(tensors, grammar)
        self.curve = []
        plan = self._plan(len(tensors["tokens"]))
        model.train()
        for update, rows in enumerate(plan):
            point = self._update(model, optimizer, tensors, nodes, grammar, rows, _config)
            self.curve.append({"update": float(update), **point})
            yield {**point, GRADIENT_STEPS: float(len(plan))}
            if point["loss/kl_base"] > self.training.kl_ceiling:
                break
        self._save(model, tokenizer, optimizer, parent)

    def _plan(self, sequences: int) -> list[list[int]]:
        """Rows of each update: every pass goes through all sequences in an order of its own."""
        rng = np.random.default_rng(int.from_bytes(self.batch_id.encode()[-8:] or b"0", "big"))
        size = min(self.training.sequences, sequences)
        updates = max(sequences // size, 1)
        return [
            part.tolist()
            for _ in range(self.training.passes)
            for part in np.array_split(rng.permutation(sequences), updates)
        ]

    def _update(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        tensors: PackedTensors,
        nodes: torch.Tensor,
        grammar: Grammar | None,
        rows: list[int],
        experimental: dev.TrainConfig,
    ) -> dict[str, float]:
        began = time.perf_counter()
        allowed = torch.from_numpy(grammar.allowed) if grammar is not None else None
        spoken_total = float(tensors["assistant_mask"][rows].sum())
        optimizer.zero_grad()
        sums = dict.fromkeys(("policy", "entropy", "kl", "clipped", "ratio"), 0.0)
        for start in range(0, len(rows), self.training.micro_batch):
            part = rows[start : start + self.training.micro_batch]
            inputs: Any = {k: v[part] for k, v in tensors.items() if isinstance(v, torch.Tensor)}
            width = int(inputs["assistant_mask"].any(0).nonzero().max()) + 1
            inputs = {k: v[:, :width] for k, v in inputs.items()}
            mask = tree_mask(inputs["group_ids"], inputs["parent_ids"])
            logprobs, entropy = masked_logprobs(
                model, inputs["tokens"], nodes[part][:, :width], allowed, mask, inputs["input_pos"]
            )
            pad = torch.zeros((len(part), 1))
            new, entropy = torch.cat([logprobs, pad], 1), torch.cat([entropy, pad], 1)
            loss = loss_fn(inputs, new, None, None, experimental, reduction="sum")
            (loss.policy_loss_sum / spoken_total).backward()
            with torch.no_grad():
                spoken = shift_tensor(inputs["assistant_mask"], False)
                gap = (new.detach() - shift_tensor(inputs["logprobs"], 0.0))[spoken]
                ratio = gap.exp()
                sums["policy"] += float(loss.policy_loss_sum.detach())
                sums["entropy"] += float(entropy.detach()[spoken].sum())
                sums["kl"] += float((ratio - 1 - gap).sum())
                sums["clipped"] += float(((ratio < 0.8) | (ratio > 1.2)).sum())
                sums["ratio"] += float(ratio.sum())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), self.training.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient norm of {self.batch_id} is {norm}; no checkpoint is written")
        optimizer.step()
        return {
            "loss/train": sums["policy"] / spoken_total,
            "loss/entropy": sums["entropy"] / spoken_total,
            "loss/kl_base": sums["kl"] / spoken_total,
            "loss/clip_fraction": sums["clipped"] / spoken_total,
            "loss/importance_ratio": sums["ratio"] / spoken_total,
            "loss/grad_norm": norm,
            "data/tokens": float(sum(int(tensors["input_pos"][row].max()) + 1 for row in rows)),
            "time/update_s": time.perf_counter() - began,
        }

    def _save(self, model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, parent: Path) -> None:
        """Write the next step beside its parent, whole or not at all."""
        target = self.checkpoint(self.steps()[-1] + 1)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            if (parent / "grammar.json").is_file():
                shutil.copy(parent / "grammar.json", partial)
            torch.save(optimizer.state_dict(), partial / "optimizer.pt")
            record = {"batch_id": self.batch_id, "parent_step": int(parent.name), "curve": self.curve}
            (partial / "training.json").write_text(json.dumps(record), encoding="utf-8")
            partial.chmod(0o755)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def grammar_nodes(tensors: PackedTensors, grammar: Grammar | None) -> torch.Tensor:
    """int64 (sequences, length): the grammar node before each spoken token (0 without a grammar), -1 elsewhere.

    Raises ValueError where a recorded token is not one the grammar allows.
    """
    spoken = tensors["assistant_mask"].numpy()
    nodes = np.where(spoken, 0, -1).astype(np.int64)
    if grammar is None:
        return torch.from_numpy(nodes)
    tokens, groups = tensors["tokens"].numpy(), tensors["group_ids"].numpy()
    for row in range(len(tokens)):
        node = 0
        for place in np.flatnonzero(spoken[row]):
            if place == 0 or not spoken[row, place - 1] or groups[row, place] != groups[row, place - 1]:
                node = 0
            nodes[row, place] = node
            node = int(grammar.following[node, tokens[row, place]])
            if node < 0:
                raise ValueError(f"packed sequence {row} holds a token at {place} that the grammar does not allow")
    return torch.from_numpy(nodes)


def tree_mask(group_ids: torch.Tensor, parent_ids: torch.Tensor) -> torch.Tensor | None:
    """bool (sequences, 1, length, length), True where a query may look: its own group or its group's shared prompt.

    None where every sequence holds one trajectory, which plain causal attention serves faster.
    """
    real = parent_ids[:, :1]
    alone = (group_ids == group_ids[:, -1:]) | (group_ids == real)
    if bool(alone.all()):
        return None
    length = group_ids.shape[1]
    same = group_ids[:, :, None] == group_ids[:, None, :]
    prompt = parent_ids[:, :, None] == group_ids[:, None, :]
    causal = torch.ones((length, length), dtype=torch.bool).tril()
    return ((same | prompt) & causal)[:, None]
