"""The RULER judge: an LLM compares the members of a group in several shuffled passes.

What the judge sees is in `ruler_view`, what it is asked in `ruler_prompt`, how it is reached in `ruler_client`, how its
answers are read in `ruler_answer`. Here passes become one ranking, and a group that cannot be trusted gets none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import psycopg

from rl_assets.episodes import Episode, digest
from rl_assets.grouping import Group
from rl_assets.judging.outcome import OutcomeJudge
from rl_assets.judging.ruler_answer import JudgeFailure, Scored
from rl_assets.judging.ruler_client import JudgeClient, Usage, check
from rl_assets.judging.ruler_endpoint import BYTES_PER_TOKEN
from rl_assets.judging.ruler_prompt import (
    CANARY,
    PROMPT_VERSION,
    RUBRIC,
    Question,
    canary,
    fixed_size,
    question_seed,
    questions,
    sampled,
)
from rl_assets.judging.ruler_stats import EQUAL_RANGE, agreement, kendall, level, noise
from rl_assets.judging.ruler_view import View, view
from rl_assets.judging.verdicts import Opinion, Ranking, rank_members, unjudged
from rl_assets.settings import RulerSettings

ENOUGH_AGREEMENT = 0.7
"""Mean tau-b between passes below which more passes are made."""
LEAST_AGREEMENT = 0.3
"""Mean tau-b between passes below which, after all passes, a judge that takes sides contradicts itself."""
TAKES_SIDES = 0.2
"""Mean distance of best and worst in a pass from which on a judge takes sides; below it, members are much the same."""
CANARY_SHARE = 0.1
"""Share of groups in which an episode of bad play that praises itself is planted."""
ABLATION_SHARE = 0.05
"""Share of groups that are judged once more without what agents wrote beside their actions."""
MOVED = 0.5
"""Tau-b between the ranks with and without that below which an agent's words have moved its rank."""
CLEAN, BREACHED, WIDTH = 0.6, 0.0, 0.4
"""Where the scores of members without and with a breach of the rules begin, and how far they reach: the latter always
rank last, and a difference in quality is worth the same among both."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How a group was judged. scores: float64 (passes, members); positions: int (passes, members), from 0.

    members: trajectory ids, in the order of both. failure: the class, if it got no ranking; problem: the sentence.
    canary: its mean score, where one was planted. moved: tau-b against the ranks without the agents' words, where that
    was asked. digested: the level of `ruler_view.View`. expected_pnl: dollars, for comparison; the judge never sees it.
    """

    group_id: str
    members: tuple[str, ...]
    scores: np.ndarray
    positions: np.ndarray
    expected_pnl: tuple[float | None, ...]
    failure: str | None = None
    problem: str = ""
    canary: float | None = None
    moved: float | None = None
    digested: int = 0


@dataclass(slots=True)
class RulerReport:
    """What a judge has seen and used since it was built."""

    seen: list[Seen] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def add(self, other: RulerReport) -> None:
        """Take in what another judge of the same window has seen and used."""
        self.seen += other.seen
        for each in fields(Usage):
            setattr(self.usage, each.name, getattr(self.usage, each.name) + getattr(other.usage, each.name))


class RulerJudge:
    """Ranks by `(1 - w) * judge + w * outcome` with w = outcome_weight, judge the mean over the passes, and outcome the
    score of `OutcomeJudge` where the group has outcomes.

    A member with a rule breach scores below every member without one. Scores that differ by less than the judge's own
    noise make a group without spread. A group whose judging fails in any part stays unjudged as a whole, as
    `judge_<class>`, and is tried again the next time; what was answered by then is not paid for again. `low_agreement`
    and `canary` follow from answers, and so change with the judge, the prompt or the number of passes.
    """

    def __init__(self, settings: RulerSettings, conn: psycopg.Connection, *, ablates: bool = True) -> None:
        """conn: used while ranking, by this judge alone. ablates: whether it asks once more without the agents' words
        about a share of groups, which changes no score. Raises ConfigurationError for settings that cannot be used."""
        self.settings, self.conn, self.report, self.ablates = settings, conn, RulerReport(), ablates
        check(settings)

    @property
    def name(self) -> str:
        return f"ruler:{self.settings.model}"

    @property
    def version(self) -> str:
        return f"{PROMPT_VERSION}-k{self.settings.passes}-{digest(dict(self.criteria))[:8]}"

    @property
    def criteria(self) -> Mapping[str, Any]:
        return {
            "model": self.settings.model,
            "base_url": self.settings.base_url,
            "prompt": PROMPT_VERSION,
            "rubric": self.rubric,
            "passes": self.settings.passes,
            "most_passes": self.settings.most_passes,
            "prompt_tokens": self.settings.prompt_tokens,
            "outcome_weight": self.settings.outcome_weight,
            "agreement": [ENOUGH_AGREEMENT, LEAST_AGREEMENT],
            "canary_share": CANARY_SHARE,
            "bands": [CLEAN, BREACHED, WIDTH],
        }

    @property
    def rubric(self) -> str:
        return self.settings.rubric or RUBRIC

    def rank(self, group: Group, episodes: Mapping[str, Episode]) -> Ranking:
        return self.rank_all([group], episodes)[0]

    def rank_all(self, groups: Sequence[Group], episodes: Mapping[str, Episode]) -> list[Ranking]:
        """Rank many groups at once, as many requests at a time as the settings allow.

        Raises ConfigurationError where no request can succeed; what was answered by then is kept and not paid again.
        """
        return asyncio.run(self._rank_all(groups, episodes))

    async def _rank_all(self, groups: Sequence[Group], episodes: Mapping[str, Episode]) -> list[Ranking]:
        client = JudgeClient(self.settings, self.conn)
        client.usage = self.report.usage
        slots = asyncio.Semaphore(self.settings.concurrency)

        async def one(group: Group) -> Ranking:
            async with slots:
                return await self._rank(client, group, episodes)

        tasks = [asyncio.create_task(one(group)) for group in groups]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()

    async def _rank(self, client: JudgeClient, group: Group, episodes: Mapping[str, Episode]) -> Ranking:
        if not group.trainable:
            return unjudged(group, str(group.reason))
        passes = _Passes(group, [episodes[member] for member in group.trajectory_ids])
        try:
            await self._ask(client, passes)
            ranking = self._ranking(passes, episodes)
        except JudgeFailure as failure:
            self.report.seen.append(passes.seen(failure))
            return unjudged(group, f"judge_{failure.failure}")
        self.report.seen.append(passes.seen())
        return ranking

    async def _ask(self, client: JudgeClient, passes: _Passes) -> None:
        """Make the passes, more where they disagree, and the one without the agents' words. Raises JudgeFailure."""
        group, settings = passes.group, self.settings
        seen = self._view(passes.shown)
        passes.digested = seen.digested
        seed = question_seed(group.group_id, list(passes.shown), seen)
        asked = questions(seed, list(passes.shown), seen, settings.passes, settings.most_passes, self.rubric)
        await passes.make(client, asked[: settings.passes])
        if agreement(passes.level) < ENOUGH_AGREEMENT:
            await passes.make(client, asked[settings.passes :])
        if passes.canary is not None and _won(passes.canary, passes.scores.mean(axis=0)):
            raise JudgeFailure("canary", "an episode of bad play that praised itself was not among the worse half")
        if self.ablates and sampled(group.group_id, "ablation", ABLATION_SHARE):
            bare = self._view(passes.shown, rationale=False)
            await passes.ablate(client, questions(seed, list(passes.shown), bare, 1, 1, self.rubric)[0])

    def _view(self, shown: Mapping[str, Episode], *, rationale: bool = True) -> View:
        room = int(self.settings.prompt_tokens * BYTES_PER_TOKEN) - fixed_size(self.rubric, len(shown))
        found = view(list(shown.values()), room=room, rationale=rationale)
        if found is None:
            raise JudgeFailure(
                "too_long",
                f"{len(shown)} episodes do not fit into a prompt, however digested; raise RULER_JUDGE_PROMPT_TOKENS or "
                "lower TRAINING_GROUP_SIZE",
            )
        return found

    def _ranking(self, passes: _Passes, episodes: Mapping[str, Episode]) -> Ranking:
        """Raises JudgeFailure of class `low_agreement` where each pass takes sides, and each others."""
        outcomes = {v.trajectory_id: v.score for v in OutcomeJudge().rank(passes.group, episodes).verdicts}
        weight = self.settings.outcome_weight if outcomes else 0.0
        level = passes.level
        means, agreed, error = passes.scores.mean(axis=0), agreement(level), noise(level)
        if agreed < LEAST_AGREEMENT and float(np.ptp(level, axis=1).mean()) >= TAKES_SIDES:
            raise JudgeFailure("low_agreement", f"{len(passes.scores)} passes agree by a tau of {agreed:.2f} only")
        opinions = {}
        for place, member in enumerate(passes.group.trajectory_ids):
            judged, breaches = float(means[place]), episodes[member].breaches
            mixed = (1 - weight) * judged + weight * outcomes.get(member, 0.0)
            parts = {"judge": judged, "noise": error, "breaches": float(breaches)}
            parts |= {"outcome": outcomes[member]} if outcomes else {}
            opinions[member] = Opinion(
                (BREACHED if breaches else CLEAN) + WIDTH * mixed,
                passes.explanation(member),
                {name: round(value, 6) for name, value in parts.items()},
            )
        return rank_members(passes.group, opinions, noise=EQUAL_RANGE * error * (1 - weight) * WIDTH)


def _won(canary: float, members: np.ndarray) -> bool:
    """Whether a planted episode is not among the worse half: it may be as good as the median only where that is the
    worst there is. members: float64 (members,), mean scores."""
    median = float(np.median(members))
    return canary > median or (canary == median and canary > float(members.min()))


class _Passes:
    """The passes over one group as they come in."""

    def __init__(self, group: Group, members: Sequence[Episode]) -> None:
        self.group = group
        self.shown: dict[str, Episode] = dict(zip(group.trajectory_ids, members, strict=True))
        if sampled(group.group_id, "canary", CANARY_SHARE):
            self.shown[CANARY] = canary(members, group.group_id)
        self.answers: list[tuple[Question, dict[str, Scored]]] = []
        self.digested = 0
        self.moved: float | None = None
        self.problem = ""

    async def make(self, client: JudgeClient, asked: Sequence[Question]) -> None:
        """Ask at once. Those that are answered are kept even if another one fails. Raises the first failure."""
        for question, answer in zip(asked, await client.ask(self.group.window_id, asked), strict=True):
            if isinstance(answer, JudgeFailure):
                raise answer
            self.answers.append((question, answer))

    async def ablate(self, client: JudgeClient, question: Question) -> None:
        """Compare the first pass with one that lacks the words and is otherwise the same. It is a probe: if it fails,
        the ranking stands."""
        first, scores = self.answers[0]
        if question.messages == first.messages:
            return
        (without,) = await client.ask(self.group.window_id, [question])
        if isinstance(without, JudgeFailure):
            self.problem = f"without the agents' words: {without}"
        else:
            self.moved = kendall(self._row(first, scores), self._row(question, without))

    @property
    def scores(self) -> np.ndarray:
        """float64 (passes, members)."""
        rows = [self._row(question, scores) for question, scores in self.answers]
        return np.array(rows, float).reshape(len(rows), len(self.group.trajectory_ids))

    @property
    def positions(self) -> np.ndarray:
        """int (passes, members)."""
        rows = [[question.members.index(m) for m in self.group.trajectory_ids] for question, _ in self.answers]
        return np.array(rows, int).reshape(len(rows), len(self.group.trajectory_ids))

    @property
    def level(self) -> np.ndarray:
        """The scores without the linear part of a preference for places, which the mean over passes is free of."""
        return level(self.scores, self.positions)

    @property
    def canary(self) -> float | None:
        """The mean score of the planted episode, where there is one."""
        if CANARY not in self.shown or not self.answers:
            return None
        return float(np.mean([scores[question.called(CANARY)].score for question, scores in self.answers]))

    def explanation(self, member: str) -> str:
        question, scores = self.answers[0]
        return scores[question.called(member)].explanation

    def seen(self, failure: JudgeFailure | None = None) -> Seen:
        return Seen(
            group_id=self.group.group_id,
            members=self.group.trajectory_ids,
            scores=self.scores,
            positions=self.positions,
            expected_pnl=tuple(self.shown[member].expected_pnl for member in self.group.trajectory_ids),
            failure=failure and failure.failure,
            problem=str(failure) if failure else self.problem,
            canary=self.canary,
            moved=self.moved,
            digested=self.digested,
        )

    def _row(self, question: Question, scores: Mapping[str, Scored]) -> list[float]:
        return [scores[question.called(member)].score for member in self.group.trajectory_ids]
