"""The embedded judge: what an episode earned, how deep it fell on the way, and whether it kept the rules.

It needs no network and gives the same scores on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rl_assets.episodes import Episode
from rl_assets.grouping import Group
from rl_assets.judging.verdicts import Opinion, Ranking, rank_members, unjudged

PNL_WEIGHT, DRAWDOWN_WEIGHT = 0.9, 0.1
HALF_WAY = 0.1
"""The return on starting equity that is worth half of what any return can be worth."""
LEAST = 0.1
"""What the worst episode without a breach gets: there is room below it for those with one."""
BREACH_GAP = 0.01
"""How far below every member without a breach one with a breach is put, and what each further breach takes."""
MOST_BREACHES = 5
"""From this many on a breach more is no worse."""
NOISE = 0.002
"""Scores that differ by less are one: about half a dollar on a thousand."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """pnl and drawdown as shares of starting equity; drawdown is at most 1."""

    pnl: float
    drawdown: float
    breaches: int
    text: str


class OutcomeJudge:
    """Scores by expected PnL, or by realised PnL where a member has no expected one; then drawdown and breaches.

        score = LEAST + (1 - LEAST) * (0.9 * s(pnl) + 0.1 * (1 - drawdown)),   s(x) = 1/2 + x / (2 (|x| + HALF_WAY))

    A member with a rule breach (an invalid action or a liquidation) scores below every member without one. s does not
    depend on the other members, so that a dollar is worth the same in every group.
    """

    name = "outcome"
    version = "1"

    @property
    def criteria(self) -> Mapping[str, Any]:
        return {
            "pnl": PNL_WEIGHT,
            "drawdown": DRAWDOWN_WEIGHT,
            "half_way_return": HALF_WAY,
            "breach_gap": BREACH_GAP,
            "noise": NOISE,
        }

    def rank(self, group: Group, episodes: Mapping[str, Episode]) -> Ranking:
        """Scores depend on the members alone, not on their order. A group without outcomes stays unjudged."""
        members = [episodes[member] for member in group.trajectory_ids]
        outcomes = _outcomes(members)
        if outcomes is None:
            return unjudged(group, "no_outcome")
        own = [_score(outcome) for outcome in outcomes]
        clean = min((s for s, outcome in zip(own, outcomes, strict=True) if not outcome.breaches), default=1.0)
        opinions = {}
        for member, outcome, score in zip(members, outcomes, own, strict=True):
            if outcome.breaches:
                score = min(score, clean) - BREACH_GAP * (1 + min(outcome.breaches, MOST_BREACHES))
            components = {"pnl": outcome.pnl, "drawdown": outcome.drawdown, "breaches": float(outcome.breaches)}
            opinions[member.trajectory_id] = Opinion(score, outcome.text, components)
        return rank_members(group, opinions, noise=NOISE)

    def rank_all(self, groups: Sequence[Group], episodes: Mapping[str, Episode]) -> list[Ranking]:
        return [self.rank(group, episodes) for group in groups]


def _outcomes(members: Sequence[Episode]) -> list[_Outcome] | None:
    """One per member, all by the same kind of PnL; None if there is no kind that all of them have."""
    if any(not member.steps for member in members):
        return None
    for kind, pnls in (
        ("expected", [member.expected_pnl for member in members]),
        ("realised", [member.realised_pnl for member in members]),
    ):
        known = [pnl for pnl in pnls if pnl is not None]
        if len(known) == len(members):
            return [_outcome(member, kind, pnl) for member, pnl in zip(members, known, strict=True)]
    return None


def _outcome(member: Episode, kind: str, pnl: float) -> _Outcome:
    first = member.steps[0]
    # Live agents may start with nothing; a dollar then keeps the shares finite.
    start = max(first.equity - first.reward, 1.0)
    fall = member.max_drawdown
    if fall is None:
        equities = [start, *(step.equity for step in member.steps)]
        fall = max(peak - equity for peak, equity in zip(accumulate(equities, max), equities, strict=True))
    text = f"{kind} PnL {pnl:+.2f} dollars on {start:.2f}, drawdown {fall:.2f} dollars"
    if member.breaches:
        text += f", {member.breaches} rule breach{'es' if member.breaches > 1 else ''}: below all members without one"
    return _Outcome(pnl / start, min(fall / start, 1.0), member.breaches, text)


def _score(outcome: _Outcome) -> float:
    gain = 0.5 + outcome.pnl / (2 * (abs(outcome.pnl) + HALF_WAY))
    return LEAST + (1 - LEAST) * (PNL_WEIGHT * gain + DRAWDOWN_WEIGHT * (1 - outcome.drawdown))
