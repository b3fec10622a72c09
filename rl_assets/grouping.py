"""GRPO groups: which episodes may be compared with each other, and what a group is called."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from typing import NamedTuple

import orjson

from rl_assets.collector import paused_collector
from rl_assets.episodes import NO_LOGPROBS, Episode, Policy
from rl_assets.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Group:
    """Episodes that are compared with each other.

    `kind` is `benchmark` (same snapshot, prompt version and policy step) or `live` (same window, scenario and policy
    step); `key` is canonical JSON of what the members have in common. `trajectory_ids` are in order of their ids.
    `reason` says why GRPO may not learn from the group, and is None if it may. `policy` and `step` name who played.
    """

    group_id: str
    kind: str
    key: str
    window_id: str
    trajectory_ids: tuple[str, ...]
    trainable: bool
    reason: str | None
    policy: str | None = None
    step: int | None = None


class Alike(NamedTuple):
    """Episodes that have in common all that grouping asks for."""

    policy: Policy
    snapshot_id: str | None
    prompt_version: str | None
    scenario_id: str | None
    not_trainable: str | None
    trajectory_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Share:
    """One of `of` shares of a window, counted from 0: what may be compared with each other is in one share."""

    number: int = 0
    of: int = 1

    def holds(self, policy: str, step: int | None, snapshot_id: str | None, scenario_id: str | None) -> bool:
        """Whether an episode is in this share, by what every episode of its groups has in common."""
        # As text, since the hash of a string is another one in each process.
        common = repr((policy, step, snapshot_id, scenario_id if snapshot_id is None else None))
        return zlib.crc32(common.encode("utf-8", "backslashreplace")) % self.of == self.number


def build_groups(
    episodes: Iterable[Episode], *, window_id: str, group_size: int, recompute: bool = False
) -> list[Group]:
    """The groups that `deal` makes of episodes."""
    alike = (
        Alike(e.policy, e.snapshot_id, e.prompt_version, e.scenario_id, e.not_trainable, (e.trajectory_id,))
        for e in episodes
    )
    return deal(alike, window_id=window_id, group_size=group_size, recompute=recompute)


@paused_collector()
def deal(episodes: Iterable[Alike], *, window_id: str, group_size: int, recompute: bool = False) -> list[Group]:
    """Every episode in exactly one group of at most `group_size`; the same groups whatever the order of the episodes.

    Episodes that cannot be trained on make groups of their own, so that they spoil no other. What cannot be trained on
    is kept, with the reason: an episode's `not_trainable`, or `group_of_one`. recompute: whether episodes of a known
    policy step that lack logprobs count as trainable, since the training will compute them.

    Raises ConfigurationError if in groups of that size nothing could be compared.
    """
    if group_size < 2:
        raise ConfigurationError(f"a group of {group_size} compares nothing; set the group size to at least 2")
    comparable: dict[tuple[str, str, str], tuple[Policy, list[str]]] = {}
    for some in episodes:
        kind, key = _common(some, window_id)
        mended = recompute and some.not_trainable == NO_LOGPROBS and some.policy.step is not None
        trouble = "" if mended else some.not_trainable or ""
        comparable.setdefault((kind, key, trouble), (some.policy, []))[1].extend(some.trajectory_ids)
    groups = []
    for (kind, key, trouble), (policy, ids) in sorted(comparable.items(), key=lambda item: item[0]):
        # Ids are decimal and in order of time, so that the shorter of two is the older.
        for members in _deal(sorted(sorted(ids), key=len), group_size):
            reason = trouble or ("group_of_one" if len(members) == 1 else None)
            groups.append(
                Group(
                    group_id=group_id(kind, key, members),
                    kind=kind,
                    key=key,
                    window_id=window_id,
                    trajectory_ids=members,
                    trainable=reason is None,
                    reason=reason,
                    policy=policy.name,
                    step=policy.step,
                )
            )
    return groups


def group_id(kind: str, key: str, trajectory_ids: Iterable[str]) -> str:
    """The name of a group: a hash of its kind, its key and its members in whatever order."""
    # Of strings alone orjson writes what `digest` hashes, in a tenth of the time.
    content = orjson.dumps([kind, key, sorted(trajectory_ids)])
    return f"group-{hashlib.sha256(content).hexdigest()[:24]}"


def _common(some: Alike, window_id: str) -> tuple[str, str]:
    """The kind, and as JSON with sorted keys what is in common: one line of text per snapshot, of which a window of a
    million episodes has a hundred thousand."""
    name, step = _json(some.policy.name), "null" if some.policy.step is None else some.policy.step
    if some.snapshot_id is None:
        live = f'"scenario": {_json(some.scenario_id)}, "step": {step}, "window": {_json(window_id)}'
        return "live", f'{{"policy": {name}, {live}}}'
    benchmark = f'"prompt_version": {_json(some.prompt_version)}, "snapshot": {_json(some.snapshot_id)}, "step": {step}'
    return "benchmark", f'{{"policy": {name}, {benchmark}}}'


def _json(text: str | None) -> str:
    return "null" if text is None else _quoted(text)


def _deal(ids: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Full groups first, oldest members first: what is complete stays what it is when more episodes arrive.

    Only where one would be left alone do it and the last full group share their members out evenly. Evening out all
    sizes would gain nothing: n members in g groups make n - g comparisons, however they are dealt.
    """
    if len(ids) <= size:
        yield tuple(ids)
        return
    cuts = list(range(0, len(ids), size))
    if size > 2 and len(ids) - cuts[-1] == 1:
        cuts[-1] = cuts[-2] + (size + 2) // 2
    for start, end in zip(cuts, [*cuts[1:], len(ids)], strict=True):
        yield tuple(ids[start:end])
