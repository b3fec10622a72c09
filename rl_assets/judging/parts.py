"""Judging a window in parts, wherever that is: each part reads its episodes from the window's file.

It is told which judge by what can travel; the key of a paid judge does not, and is found where the judging is done.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rl_assets.errors import ConfigurationError
from rl_assets.grouping import Group
from rl_assets.judging.outcome import OutcomeJudge
from rl_assets.judging.verdicts import Judge, Ranking
from rl_assets.places import Place
from rl_assets.settings import RulerSettings, Settings

if TYPE_CHECKING:
    import psycopg

    from rl_assets.judging.ruler import RulerReport


@dataclass(frozen=True)
class Chosen:
    """Which judge: `outcome`, or `ruler` with these settings."""

    kind: str
    ruler: RulerSettings

    def __reduce__(self) -> tuple:
        return _arrived, (self.kind, replace(self.ruler, api_key=None))

    def build(self, conn: psycopg.Connection, among: int = 1, *, ablates: bool = True) -> Judge:
        """The judge, one of so many that judge at a time; `ruler` keeps its answers and its budget in the database, and
        ablates.

        Raises ConfigurationError.
        """
        if self.kind == "outcome":
            return OutcomeJudge()
        if self.kind == "ruler":
            from rl_assets.judging.ruler import RulerJudge

            return RulerJudge(self.ruler.shared(among), conn, ablates=ablates)
        raise ConfigurationError(f"there is no judge {self.kind!r}; use `outcome` or `ruler`")


def _arrived(kind: str, ruler: RulerSettings) -> Chosen:
    return Chosen(kind, replace(ruler, api_key=Settings.from_env().ruler.api_key))


@dataclass(frozen=True)
class Part:
    """Some groups of a window, and the rows of its file that hold their members."""

    groups: Sequence[Group]
    rows: Sequence[int]


@dataclass(frozen=True)
class Judged:
    """What became of some groups. unstable: ids of groups that another look ranks otherwise, or has to pay for.
    by_policy: scores. report: of an LLM that judged."""

    rankings: list[Ranking]
    unstable: list[str]
    by_policy: dict[str, array]
    report: RulerReport | None


@dataclass(frozen=True)
class Judging:
    """How the groups of a window are judged. trajectories: the window's file. database: URL, empty for the
    environment's. among: how many parts are judged at a time."""

    chosen: Chosen
    trajectories: Place
    database: str = field(default="", repr=False)
    among: int = 1

    def __call__(self, part: Part) -> Judged:
        """Judge the groups twice. Raises as the judge does, and MalformedInput where the file cannot be read."""
        groups = part.groups
        from rl_assets.store.database import connect, database_url
        from rl_assets.store.window_files import read_rows

        episodes = read_rows(self.trajectories, part.rows)
        with connect(self.database or database_url(Settings.from_env())) as conn:
            judge = self.chosen.build(conn, self.among)
            rankings = judge.rank_all(groups, episodes)
            before = {ranking.group_id: ranking for ranking in rankings if ranking.verdicts}
            looked_at = [group for group in groups if group.group_id in before]
            again = self.chosen.build(conn, self.among, ablates=False).rank_all(looked_at, episodes)
        unstable = [ranking.group_id for ranking in again if ranking != before[ranking.group_id]]
        by_policy: dict[str, array] = {}
        for verdict in (verdict for ranking in rankings for verdict in ranking.verdicts):
            policy = str(episodes[verdict.trajectory_id].policy)
            by_policy.setdefault(policy, array("d")).append(verdict.score)
        return Judged(rankings, unstable, by_policy, getattr(judge, "report", None))
