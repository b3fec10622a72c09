"""The manifest: exactly which episodes, in which groups and with which rewards, make the next step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rl_assets.episodes import NO_LOGPROBS, Episode
from rl_assets.errors import MalformedInput


@dataclass(frozen=True)
class ManifestGroup:
    """A group as judged: one reward in [0, 1] per trajectory."""

    group_id: str
    trajectory_ids: tuple[str, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Manifest:
    """One batch. base_step: the step that it trains on top of. judgement_sets: the append-only sets its rewards are
    from. windows: hours (UTC) its episodes were recorded in."""

    batch_id: str
    model_line: str
    base_step: int
    judgement_sets: tuple[str, ...]
    windows: tuple[str, ...]
    groups: tuple[ManifestGroup, ...]

    @property
    def trajectory_ids(self) -> tuple[str, ...]:
        return tuple(i for group in self.groups for i in group.trajectory_ids)

    def staleness(self, episode: Episode) -> int:
        """How many policy steps an episode is behind the step that is trained. Raises MalformedInput if it has none."""
        if episode.policy.step is None:
            raise MalformedInput(
                f"trajectory {episode.trajectory_id} cannot be trained on (no_policy_step); group its window again"
            )
        return self.base_step - episode.policy.step

    def without_logprobs(self, episodes: Mapping[str, Episode]) -> list[str]:
        """Those of the batch's episodes that lack nothing for training but logprobs."""
        return [i for i in self.trajectory_ids if i in episodes and episodes[i].not_trainable == NO_LOGPROBS]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> Manifest:
        """Check and read. Raises MalformedInput: a batch is never trained on a manifest that is not whole."""
        if isinstance(raw, str):
            try:
                raw = json.loads(raw)
            except json.JSONDecodeError as error:
                raise MalformedInput(f"the manifest is not JSON ({error}); restore it from the ledger") from error
        try:
            manifest = cls(
                batch_id=str(raw["batch_id"]),
                model_line=str(raw["model_line"]),
                base_step=int(raw["base_step"]),
                judgement_sets=tuple(map(str, raw["judgement_sets"])),
                windows=tuple(map(str, raw["windows"])),
                groups=tuple(
                    ManifestGroup(
                        str(g["group_id"]), tuple(map(str, g["trajectory_ids"])), tuple(map(float, g["rewards"]))
                    )
                    for g in raw["groups"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedInput(f"the manifest lacks or garbles {error}; restore it from the ledger") from error
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise MalformedInput unless every trajectory is named once, with one reward in [0, 1]."""
        ids = self.trajectory_ids
        if not ids:
            raise MalformedInput(f"manifest {self.batch_id} names no trajectory; free the batch and claim it again")
        if len(set(ids)) != len(ids):
            raise MalformedInput(f"manifest {self.batch_id} names a trajectory twice; restore it from the ledger")
        for group in self.groups:
            if len(group.rewards) != len(group.trajectory_ids) or not all(
                math.isfinite(r) and 0.0 <= r <= 1.0 for r in group.rewards
            ):
                raise MalformedInput(f"group {group.group_id} of {self.batch_id} lacks a reward in [0, 1]; re-judge it")

    def check_trainable(self, model_line: str) -> None:
        """Raise MalformedInput unless a service of this line can learn from it: it is whole, and rewards differ."""
        if self.model_line != model_line:
            raise MalformedInput(
                f"{self.batch_id} is of line {self.model_line} and this service trains {model_line}; give it to the "
                "service of its line"
            )
        self.check()
        if all(len(set(group.rewards)) == 1 for group in self.groups):
            raise MalformedInput(
                f"{self.batch_id} holds nothing to learn from: in no group do rewards differ; free it and re-judge"
            )
