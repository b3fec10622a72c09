"""Judging: what each member of a group is worth.

A judge has a `name`, a `version` that changes whenever the same episodes may get other scores, and `criteria` that say
in JSON what it weighs. Its `rank` gives one `Ranking` per group, built by `rank_members` from one `Opinion` per member:
a score that is matched by trajectory id, finite and in [0, 1], and an explanation that may be shown to people. With
them goes the noise, below which two scores are one. The same group must get the same ranking again.

A judge that cannot judge a whole group gives `unjudged(group, reason)` and no score: if GRPO could learn from the
group, it then waits for a judge. A group that is not trainable need not be judged. What a judging costs is no part of a
ranking, since a judgement set is named by its content.
"""

from rl_assets.judging.outcome import OutcomeJudge
from rl_assets.judging.verdicts import Judge, JudgementSet, Opinion, Ranking, Verdict, rank_members, unjudged

__all__ = ["Judge", "JudgementSet", "Opinion", "OutcomeJudge", "Ranking", "Verdict", "rank_members", "unjudged"]
