"""What a judge says: verdicts on members, the ranking of a group, and the judgement set of a window."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from rl_assets.episodes import Episode, canonical
from rl_assets.errors import MalformedInput
from rl_assets.grouping import Group
from rl_assets.text import storable

STEP = 10_000
"""Scores are whole multiples of one in this many: a smaller gap means nothing, and GRPO would make much of it."""


class Judge(Protocol):
    """Whoever ranks groups; see the package for what is expected."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def criteria(self) -> Mapping[str, Any]: ...

    def rank(self, group: Group, episodes: Mapping[str, Episode]) -> Ranking:
        """Rank the members of a group. episodes: by trajectory id, at least those of the group."""
        ...

    def rank_all(self, groups: Sequence[Group], episodes: Mapping[str, Episode]) -> list[Ranking]:
        """What `rank` says of each group, in their order; a judge that is far away is asked about many at once."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one member is worth. score: in [0, 1], in steps of 1e-4. rank: 1 is best; equal scores share a rank.
    components: the parts of the score that the judge names."""

    trajectory_id: str
    score: float
    rank: int
    explanation: str
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """A group as judged: a verdict per member, best first, or none at all where it could not be judged."""

    group_id: str
    verdicts: tuple[Verdict, ...]
    trainable: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge thinks of one member, before it is compared. score: in [0, 1], not yet quantised."""

    score: float
    explanation: str
    components: Mapping[str, float] = field(default_factory=dict)


def rank_members(group: Group, opinions: Mapping[str, Opinion], *, noise: float) -> Ranking:
    """The ranking of a group from one opinion per member, by trajectory id.

    It is not trainable if the group is not, or, as `no_spread`, if best and worst differ by less than `noise` (in
    score) or not at all. Raises MalformedInput if a member lacks its opinion, a stranger has one, or a score is not in
    [0, 1].
    """
    astray = sorted(set(group.trajectory_ids) ^ opinions.keys())
    if astray:
        raise MalformedInput(
            f"{group.group_id} and its scores differ on member {astray[0]}; judge the whole group again"
        )
    for member, opinion in opinions.items():
        if not (math.isfinite(opinion.score) and 0.0 <= opinion.score <= 1.0):
            raise MalformedInput(
                f"the score of {member} is {opinion.score}, not in [0, 1]; judge {group.group_id} again"
            )
    scores = {member: round(opinion.score * STEP) / STEP for member, opinion in opinions.items()}
    best_first = sorted(scores.values(), reverse=True)
    verdicts = [
        Verdict(
            trajectory_id=member,
            score=score,
            rank=best_first.index(score) + 1,
            explanation=storable(opinions[member].explanation),
            components=dict(opinions[member].components),
        )
        for member, score in scores.items()
    ]
    flat = best_first[0] == best_first[-1] or best_first[0] - best_first[-1] < noise
    reason = group.reason if not group.trainable else "no_spread" if flat else None
    ordered = sorted(verdicts, key=lambda verdict: (verdict.rank, verdict.trajectory_id))
    return Ranking(group.group_id, tuple(ordered), reason is None, reason)


def unjudged(group: Group, reason: str) -> Ranking:
    """The ranking of a group that could not, or need not, be judged."""
    return Ranking(group.group_id, (), False, reason if group.trainable else group.reason)


@dataclass(frozen=True, slots=True)
class JudgementSet:
    """All rankings of a window by one judge, named by their content, with the groups that they are of."""

    id: str
    window_id: str
    judge: str
    judge_version: str
    criteria: Mapping[str, Any]
    rankings: tuple[Ranking, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, window_id: str, judge: Judge, rankings: Sequence[Ranking], groups: Sequence[Group]) -> JudgementSet:
        """Raises MalformedInput unless there is exactly one ranking per group."""
        ordered = sorted(rankings, key=lambda ranking: ranking.group_id)
        of_these = sorted(groups, key=lambda group: group.group_id)
        if [ranking.group_id for ranking in ordered] != [group.group_id for group in of_these]:
            raise MalformedInput(f"the rankings of {window_id} are not one per group; judge the window again")
        identity = f"judgements-{_digest(window_id, judge, ordered)[:24]}"
        return cls(identity, window_id, judge.name, judge.version, judge.criteria, tuple(ordered), tuple(of_these))

    @property
    def waiting(self) -> frozenset[str]:
        """Ids of the groups that GRPO could learn from but that have no verdicts."""
        wanted = {group.group_id for group in self.groups if group.trainable}
        return frozenset(r.group_id for r in self.rankings if not r.verdicts and r.group_id in wanted)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _digest(window_id: str, judge: Judge, rankings: Sequence[Ranking]) -> str:
    """The digest of window, judge, judge_version and rankings, of which one ranking at a time is JSON."""
    hashed = hashlib.sha256()
    opening = f'{{"judge":{canonical(judge.name)},"judge_version":{canonical(judge.version)},"rankings":['
    for ranking in rankings:
        hashed.update((opening + canonical(asdict(ranking))).encode())
        opening = ","
    if not rankings:
        hashed.update(opening.encode())
    hashed.update(f'],"window":{canonical(window_id)}}}'.encode())
    return hashed.hexdigest()
