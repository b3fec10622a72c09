"""Judging: what each member of a group is worth.

A judge has a `name`, a `version` that changes whenever the same episodes may get other scores, and `criteria` that say
in JSON what it weighs. Its `rank` gives one `Ranking` per group, built by `rank_members`: exactly one score per member,
matched by trajectory id, finite and in [0, 1]; the noise below which two scores are one; and an explanation that may be
shown to people. The same group must get the same ranking again. A judge that cannot judge a group as a whole gives
`unjudged(group, reason)` and no score: if GRPO could learn from the group, it then waits for a judge. A group that is
not trainable need not be judged. What a judging costs is no part of a ranking, since a ranking is named by its content.
"""

from rl_assets.judging.outcome import OutcomeJudge
from rl_assets.judging.verdicts import Judge, JudgementSet, Ranking, Verdict, rank_members, unjudged

__all__ = ["Judge", "JudgementSet", "OutcomeJudge", "Ranking", "Verdict", "rank_members", "unjudged"]
