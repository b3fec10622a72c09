"""One policy and one packed batch: an update on some of its sequences, and what is won on those that are held out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from art import dev
from art.loss import loss_fn, shift_tensor
from art.preprocessing.pack import PackedTensors
from transformers import PreTrainedModel

from rl_assets.agents.grammar import Grammar
from rl_assets.errors import CollapsedPolicy
from rl_assets.training.credit import Marks
from rl_assets.training.forward import masked_logprobs
from rl_assets.training.packed import answer_starts, grammar_nodes, tree_mask

MOST_RATIO = 10.0
"""An answer counts at most this many times in an estimate of how the new policy would answer."""


@dataclass(frozen=True)
class _Part:
    """Some sequences, cut to their longest. inputs: ART's tensors. spoken, starts: bool, shifted like new logprobs."""

    inputs: Any
    new: torch.Tensor
    entropy: torch.Tensor
    spoken: torch.Tensor
    trades: torch.Tensor
    invalid: torch.Tensor
    starts: torch.Tensor


class Learner:
    """Holds what an update needs. Raises ValueError where a recorded token is not one the grammar allows."""

    def __init__(
        self,
        model: PreTrainedModel,
        grammar: Grammar | None,
        tensors: PackedTensors,
        marks: Marks,
        experimental: dev.TrainConfig,
        *,
        micro_batch: int,
        max_grad_norm: float,
    ) -> None:
        self.model = model
        self._tensors, self._marks, self._experimental = tensors, marks, experimental
        self._nodes = grammar_nodes(tensors, grammar, marks.means)
        self._starts = answer_starts(tensors)
        self._allowed = torch.from_numpy(grammar.allowed) if grammar is not None else None
        self._micro_batch, self._max_grad_norm = micro_batch, max_grad_norm
        low = experimental.get("epsilon") or 0.2
        self._clip = 1.0 - low, 1.0 + (experimental.get("epsilon_high") or low)

    def update(self, optimizer: torch.optim.Optimizer, rows: Sequence[int]) -> dict[str, float]:
        """One step of the optimizer on ART's loss. Returns what was measured before it.

        Raises CollapsedPolicy where the gradient is not finite; the model is then as it was.
        """
        spoken = float(self._tensors["assistant_mask"][rows].sum())
        advantages = self._tensors["advantages"][rows][self._tensors["assistant_mask"][rows]]
        sums = _Sums()
        optimizer.zero_grad()
        for part in self._parts(rows):
            loss = loss_fn(part.inputs, part.new, None, None, self._experimental, reduction="sum")
            (loss.policy_loss_sum / spoken).backward()
            sums.add(part, float(loss.policy_loss_sum.detach()), self._clip)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm))
        if not math.isfinite(norm):
            raise CollapsedPolicy(
                f"the norm of the gradient is {norm}; no checkpoint is written, so lower the learning rate and free "
                "the batch"
            )
        optimizer.step()
        return {
            **sums.means(),
            "loss/grad_norm": norm,
            "data/advantage_spread": float(advantages.std()),
            "data/tokens": float(sum(int(self._tensors["input_pos"][row].max()) + 1 for row in rows)),
        }

    @torch.inference_mode()
    def gain(self, rows: Sequence[int]) -> float:
        """Mean over answers of (ratio - 1) * advantage: how much better than who played the policy would have answered,
        by importance sampling, in the batch's mean |advantage|."""
        gained, answers = 0.0, 0
        for part in self._parts(rows):
            ratio = _answer_ratios(part)
            advantage = shift_tensor(part.inputs["advantages"], 0.0)[part.starts]
            gained += float(((ratio - 1.0) * advantage).sum())
            answers += len(ratio)
        return gained / answers

    def _parts(self, rows: Sequence[int]) -> Iterator[_Part]:
        """Rows of like length together, so that little is padding."""
        ends = self._tensors["assistant_mask"].shape[1] - self._tensors["assistant_mask"].int().flip(1).argmax(1)
        ordered = sorted(rows, key=lambda row: int(ends[row]))
        for start in range(0, len(ordered), self._micro_batch):
            some = ordered[start : start + self._micro_batch]
            width = int(ends[some].max())

            def cut(tensor: torch.Tensor, some: list[int] = some, width: int = width) -> torch.Tensor:
                return tensor[some][:, :width]

            inputs: Any = {k: cut(v) for k, v in self._tensors.items() if isinstance(v, torch.Tensor)}
            mask = tree_mask(inputs["group_ids"], inputs["parent_ids"])
            # Told places, transformers looks for sequences that were packed into one, and masks what a flag would.
            places = None if mask is None else inputs["input_pos"]
            new, entropy = masked_logprobs(self.model, inputs["tokens"], cut(self._nodes), self._allowed, mask, places)
            last = torch.zeros((len(some), 1))
            yield _Part(
                inputs=inputs,
                new=torch.cat([new, last], 1),
                entropy=torch.cat([entropy, last], 1),
                spoken=shift_tensor(inputs["assistant_mask"], False),
                trades=shift_tensor(cut(self._marks.trades), False),
                invalid=shift_tensor(cut(self._marks.invalid), False),
                starts=shift_tensor(cut(self._starts), False),
            )


class _Sums:
    """Sums over spoken tokens and over answers, for the means that an update reports."""

    def __init__(self) -> None:
        self.tokens = self.answers = self.trades = self.invalid = 0.0
        self.loss = self.entropy = self.kl = self.clipped = self.ratio = self.highest = 0.0

    @torch.no_grad()
    def add(self, part: _Part, loss: float, clip: tuple[float, float]) -> None:
        gap = (part.new - shift_tensor(part.inputs["logprobs"], 0.0))[part.spoken]
        ratio = gap.exp()
        self.tokens += len(gap)
        self.loss += loss
        self.entropy += float(part.entropy[part.spoken].sum())
        self.kl += float((ratio - 1 - gap).sum())
        self.clipped += float(((ratio < clip[0]) | (ratio > clip[1])).sum())
        self.ratio += float(ratio.sum())
        self.highest = max(self.highest, float(ratio.max()))
        answers = _answer_ratios(part)
        self.answers += float(answers.sum())
        self.trades += float(answers[part.trades[part.starts]].sum())
        self.invalid += float(answers[part.invalid[part.starts]].sum())

    def means(self) -> dict[str, float]:
        return {
            "loss/train": self.loss / self.tokens,
            "loss/entropy": self.entropy / self.tokens,
            "loss/kl_base": self.kl / self.tokens,
            "loss/clip_fraction": self.clipped / self.tokens,
            "loss/importance_ratio": self.ratio / self.tokens,
            "loss/importance_ratio_max": self.highest,
            "policy/trade_share": self.trades / self.answers,
            "policy/invalid_share": self.invalid / self.answers,
        }


def _answer_ratios(part: _Part) -> torch.Tensor:
    """float32 (answers,): how much more likely the new policy gives each whole answer, at most MOST_RATIO."""
    gap = (part.new - shift_tensor(part.inputs["logprobs"], 0.0)).detach()[part.spoken]
    answer = part.starts[part.spoken].cumsum(0) - 1
    total = torch.zeros(int(part.starts.sum())).index_add(0, answer, gap)
    return total.exp().clamp(max=MOST_RATIO)
