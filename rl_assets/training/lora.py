"""LoRA (Hu et al. 2021): low-rank adapters beside the frozen attention matrices of a language model.

A checkpoint says in `lora.json` that it is trained that way. What is saved is the model with its adapters merged, an
ordinary checkpoint; the next training starts adapters of its own.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rl_assets.errors import MalformedInput

FILE = "lora.json"
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Lora:
    """rank of an adapter, and alpha: its product counts alpha / rank times."""

    rank: int = 16
    alpha: float = 32.0


class LowRank(torch.nn.Module):
    """A frozen linear layer plus up @ down, which is nothing at first."""

    def __init__(self, frozen: torch.nn.Linear, lora: Lora, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen = frozen
        self.scale = lora.alpha / lora.rank
        bound = 1.0 / math.sqrt(frozen.in_features)
        down = torch.empty(lora.rank, frozen.in_features).uniform_(-bound, bound, generator=generator)
        self.down = torch.nn.Parameter(down)
        self.up = torch.nn.Parameter(torch.zeros(frozen.out_features, lora.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + (x @ self.down.T) @ (self.up.T * self.scale)


def save_lora(directory: Path, lora: Lora) -> None:
    (directory / FILE).write_text(json.dumps(asdict(lora)), encoding="utf-8")


def load_lora(directory: Path) -> Lora | None:
    """How a checkpoint is trained, or None where all of its weights are. Raises MalformedInput."""
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lora = Lora(int(content["rank"]), float(content["alpha"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedInput(f"{path} does not describe adapters ({error!r}); restore the checkpoint") from error
    if lora.rank < 1:
        raise MalformedInput(f"{path} gives rank {lora.rank}; restore the checkpoint")
    return lora


def adapt(model: PreTrainedModel, lora: Lora, seed: int) -> None:
    """Freeze a model and put adapters beside its attention matrices. Its output stays the same."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for parent, name, layer in _attention(model, torch.nn.Linear):
        setattr(parent, name, LowRank(layer, lora, generator))


@torch.no_grad()
def merge(model: PreTrainedModel) -> None:
    """Add the adapters to what they stand beside, and take them away."""
    for parent, name, layer in _attention(model, LowRank):
        layer.frozen.weight += layer.scale * (layer.up @ layer.down)
        setattr(parent, name, layer.frozen)


def _attention(model: PreTrainedModel, kind: type[torch.nn.Module]) -> list[tuple[torch.nn.Module, str, Any]]:
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if name in ADAPTED and isinstance(layer, kind)
    ]
    assert found, f"the model has no {kind.__name__} among {ADAPTED}"
    return found
