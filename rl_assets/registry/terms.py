"""The terms of a rollout: in which stages a candidate goes live, and what takes it back by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from rl_assets.errors import ConfigurationError

_PREFIX = "ROLLOUT_"


@dataclass(frozen=True)
class Terms:
    """stages: shares of the agents in percent, rising to 100. alpha: probability with which a candidate that does no
    harm is ever taken back. harm_dollars: of PnL per episode below the champion's that may not be. most_dollars: a
    difference of PnL counts as at most so much. harm_errors: share of failed steps above the champion's that may not
    be. least_pairs: of episodes that a stage takes. most_pairs: of a rollout; a candidate that is not shown to do no
    harm by then is taken back. days: market days that the health check plays.
    """

    stages: tuple[int, ...] = (100,)
    alpha: float = 0.05
    harm_dollars: float = 10.0
    most_dollars: float = 250.0
    harm_errors: float = 0.05
    least_pairs: int = 50
    most_pairs: int = 5_000
    days: int = 8

    def __post_init__(self) -> None:
        if self.stages[-1:] != (100,) or not all(low < high for low, high in pairwise((0, *self.stages))):
            shown = ",".join(map(str, self.stages))
            raise ConfigurationError(f"ROLLOUT_STAGES={shown} does not rise to 100; write it like 5,25,100")
        for name in ("alpha", "harm_errors"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigurationError(
                    f"{_PREFIX}{name.upper()}={getattr(self, name)} is not between 0 and 1; set it to 0.05, or unset it"
                )
        if not 0.0 < self.harm_dollars < self.most_dollars:
            raise ConfigurationError(
                f"ROLLOUT_HARM_DOLLARS={self.harm_dollars} is not between 0 and ROLLOUT_MOST_DOLLARS="
                f"{self.most_dollars}; lower the one or raise the other"
            )
        for name in ("least_pairs", "most_pairs", "days"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{_PREFIX}{name.upper()} is below 1; set it to at least 1, or unset it")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Terms:
        """Read the environment. Raises ConfigurationError with the name at fault."""
        env = os.environ if env is None else env
        found: dict[str, Any] = {}
        for field in fields(cls):
            name = f"{_PREFIX}{field.name.upper()}"
            if text := env.get(name, "").strip():
                found[field.name] = _value(name, text, type(getattr(cls, field.name)))
        return replace(cls(), **found)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stages": list(self.stages)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Terms:
        return cls(**{**raw, "stages": tuple(raw["stages"])})


def _value(name: str, text: str, kind: type) -> object:
    try:
        return tuple(int(part) for part in text.split(",")) if kind is tuple else kind(text)
    except ValueError:
        wanted = {tuple: "whole percentages like 5,25,100", int: "a whole number"}.get(kind, "a number")
        raise ConfigurationError(f"{name}={text!r} is not {wanted}; correct it, or unset it") from None
