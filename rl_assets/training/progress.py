"""How far a training has come: its passes, which one is the best, when it must stop, and how a killed run goes on."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rl_assets.errors import CollapsedPolicy
from rl_assets.training.options import Limits

State = dict[str, Any]


@dataclass
class Progress:
    """curve: a point per update. passes: a summary per pass. best: model and optimizer after the best pass. over: no
    further pass is wanted, for the reason given."""

    fingerprint: str
    curve: list[dict[str, float]] = field(default_factory=list)
    passes: list[dict[str, float]] = field(default_factory=list)
    best: State | None = None
    over: str | None = None

    @property
    def updates_of_pass(self) -> int:
        """How many updates of the pass that is not closed yet are done."""
        return sum(point["pass"] == len(self.passes) for point in self.curve)

    def end_pass(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, gain: float | None, limits: Limits
    ) -> None:
        """Close a pass. gain: what it wins on what is held out, None where nothing is; the last pass is then the best.

        Raises CollapsedPolicy where a limit is passed.
        """
        points = [point for point in self.curve if point["pass"] == len(self.passes)]
        last = points[-max(len(points) // 4, 1) :]  # over all of it, what falls late is still high on average
        self._guard({name: sum(point[name] for point in last) / len(last) for name in last[0]}, limits)
        winning = gain is None or gain > max((p["held_out_gain"] for p in self.passes), default=-float("inf"))
        summary = {"pass": float(len(self.passes)), "kl_base": points[-1]["loss/kl_base"]}
        self.passes.append(summary if gain is None else {**summary, "held_out_gain": gain})
        if winning:
            self.best = {
                "pass": len(self.passes) - 1,
                "model": deepcopy(learnt(model)),
                "optimizer": deepcopy(optimizer.state_dict()),
            }
        elif gain is not None:
            self.over = f"pass {len(self.passes)} won nothing more on what is held out"
        if summary["kl_base"] > limits.kl_ceiling:
            self.over = f"{summary['kl_base']:.2f} nats per token from who played are above {limits.kl_ceiling}"

    def _guard(self, mean: dict[str, float], limits: Limits) -> None:
        first = self.curve[0]
        least = limits.least_trades * first["policy/trade_share"]
        for name, value, bad in (
            ("its entropy", mean["loss/entropy"], mean["loss/entropy"] < limits.entropy_floor),
            ("the share of its answers that trade", mean["policy/trade_share"], mean["policy/trade_share"] < least),
            (
                "the share of its answers that are refused",
                mean["policy/invalid_share"],
                mean["policy/invalid_share"] > limits.most_invalid,
            ),
        ):
            if bad:
                raise CollapsedPolicy(
                    f"the policy collapsed in pass {len(self.passes) + 1}: {name} is {value:.3f}; no checkpoint is "
                    "written, so lower the learning rate or epsilon and free the batch"
                )

    def keep(self, path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        """Write all of it, whole or not at all, so that a run which is killed later goes on from here."""
        partial = path.with_name(f"{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "fingerprint": self.fingerprint,
            "curve": self.curve,
            "passes": self.passes,
            "best": self.best,
            "over": self.over,
            "model": learnt(model),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, partial)
        os.replace(partial, path)

    @classmethod
    def resume(cls, path: Path, fingerprint: str, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Progress:
        """What a killed run of the same training kept, put back into model and optimizer, or a beginning."""
        if path.is_file():
            state = torch.load(path, weights_only=True)
            if state["fingerprint"] == fingerprint:
                put_back(model, state["model"])
                optimizer.load_state_dict(state["optimizer"])
                return cls(fingerprint, state["curve"], state["passes"], state["best"], state["over"])
        return cls(fingerprint)


def learnt(model: PreTrainedModel) -> State:
    """What training changes in a model: its weights without those that are frozen."""
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def put_back(model: PreTrainedModel, state: State) -> None:
    """The opposite of `learnt`. Raises ValueError where the model has other weights."""
    if state.keys() != learnt(model).keys():
        raise ValueError("what was kept of the training is of another model")
    model.load_state_dict(state, strict=False)
