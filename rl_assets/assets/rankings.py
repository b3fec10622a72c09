"""Judged rankings: what each member of a group is worth, in one append-only judgement set per window."""

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from rl_assets.assets.columns import RANKINGS
from rl_assets.assets.shown import OWNERS, TREE, counts, definition, picture, read_hours, table
from rl_assets.automation.partitions import HOURS
from rl_assets.automation.policies import JUDGE, JUDGED
from rl_assets.resources import Database, Judge, Lake
from rl_assets.spread import spread, width

if TYPE_CHECKING:
    import psycopg

    from rl_assets.judging import Judge as JudgeProtocol
    from rl_assets.judging import JudgementSet
    from rl_assets.judging.ruler import RulerJudge

GROUPS_AT_ONCE = 500
"""Groups whose episodes are in memory while they are judged."""


@dg.asset(
    partitions_def=HOURS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL),
    deps=["grpo_groups"],
    pool=JUDGE,
    freshness_policy=JUDGED,
    group_name="experience",
    kinds={"python", "parquet", "postgres"},
    owners=OWNERS,
    description="Scores in [0, 1] for the members of every group, appended to the ledger as one judgement set; its "
    "trainable episodes join the queue that the training sensor counts.",
    check_specs=[
        dg.AssetCheckSpec(
            "scores_are_whole",
            asset="judged_rankings",
            blocking=True,
            description="Each member of each group that is judged has exactly one finite score in [0, 1].",
        ),
        dg.AssetCheckSpec(
            "judge_repeats_itself",
            asset="judged_rankings",
            blocking=True,
            description="Judging the same groups again gives the same rankings.",
        ),
        dg.AssetCheckSpec(
            "praise_does_not_pay",
            asset="judged_rankings",
            description="Where an LLM judges: planted episodes of bad play that praise themselves lose, and ranks stay "
            "much the same without what agents write beside their actions.",
        ),
    ],
    metadata=definition(
        "docs/judging.md",
        table="rl_assets.judgement_sets",
        file=TREE.window("{hour}").rankings,
        schema=RANKINGS,
    ),
)
def judged_rankings(
    context: dg.AssetExecutionContext, database: Database, lake: Lake, judge: Judge
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from rl_assets.judging import JudgementSet
    from rl_assets.judging.parts import Judging, Part
    from rl_assets.reports.plots import distribution_by_policy
    from rl_assets.store.ledger import record_judgements
    from rl_assets.store.window_files import read_groups, read_versions, window_episodes, write_rankings

    incomplete, unstable, swayed, by_policy = [], [], [], {}
    for window in read_hours(context, lake, lambda files: files.groups, "grpo_groups"):
        files, rankings, unrepeated = lake.tree.window(window), [], []
        groups, versions = read_groups(files.groups), read_versions(files.versions)
        with window_episodes(files.trajectories) as episodes:
            ordered = episodes.by_place(groups)
            # So many groups at a time: an hour may hold more episodes than memory.
            some = [ordered[start : start + GROUPS_AT_ONCE] for start in range(0, len(ordered), GROUPS_AT_ONCE)]
            parts = [Part(each, episodes.rows(each)) for each in some]
        among = min(width(), max(len(parts), 1))
        judging = Judging(judge.chosen, files.trajectories, database.url, among)
        with database.connect() as conn:
            ranker = judge.build(conn)  # which ranks nothing itself: the parts have connections of their own
        for found in spread(judging, parts):
            rankings += found.rankings
            unrepeated += [{"window": window, "group": group_id} for group_id in found.unstable]
            for policy, scores in found.by_policy.items():
                by_policy.setdefault(policy, array("d")).extend(scores)
            if found.report is not None:
                cast("RulerJudge", ranker).report.add(found.report)
        judgement = JudgementSet.of(window, ranker, rankings, groups)
        told, words_decided = _of_the_judge(ranker, window)
        swayed += words_decided
        faults = _incomplete(judgement)
        incomplete += faults
        unstable += unrepeated
        if faults or unrepeated:
            continue
        # Each hour as soon as it is judged: a range may take longer than a run may.
        write_rankings(files.rankings, judgement)
        with database.connect() as conn:
            earlier = _earlier(conn, judgement)
            offered = record_judgements(conn, judgement, versions)
        context.add_asset_metadata(
            {
                "dagster/row_count": sum(len(ranking.verdicts) for ranking in rankings),
                "judgement_set": judgement.id,
                "judge": f"{judgement.judge} {judgement.judge_version}",
                "groups": len(rankings),
                "groups_trainable": sum(ranking.trainable for ranking in rankings),
                "not_trainable_by_reason": counts(
                    "reason", Counter(str(r.reason) for r in rankings if not r.trainable)
                ),
                "episodes_newly_offered": offered,
                "agreement_with_earlier_sets": table(earlier),
                **_agreement(earlier),
                "file": dg.MetadataValue.path(str(files.rankings)),
                **told,
            },
            partition_key=window,
        )
    yield dg.AssetCheckResult(
        check_name="scores_are_whole", passed=not incomplete, metadata={"faults": table(incomplete)}
    )
    yield dg.AssetCheckResult(
        check_name="judge_repeats_itself", passed=not unstable, metadata={"groups": table(unstable)}
    )
    yield dg.AssetCheckResult(
        check_name="praise_does_not_pay",
        passed=not swayed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"groups": table(swayed)},
    )
    if incomplete or unstable:
        hours = ", ".join(sorted({str(row["window"]) for row in (*incomplete, *unstable)}))
        raise dg.Failure(
            f"nothing was recorded of {hours}: the judge is not whole or not repeatable there; see the checks",
            allow_retries=False,
        )
    shown = {"scores_by_policy": picture(distribution_by_policy(by_policy, "Score (0 to 1)"))} if by_policy else {}
    yield dg.MaterializeResult(metadata={"windows_in_run": len(context.partition_keys), **shown})


def _incomplete(judgement: "JudgementSet") -> list[dict]:
    """Groups whose verdicts are not one finite score in [0, 1] per member. A group that nobody judged has none."""
    members = {group.group_id: sorted(group.trajectory_ids) for group in judgement.groups}
    return [
        {"window": judgement.window_id, "group": ranking.group_id, "members": len(members[ranking.group_id])}
        for ranking in judgement.rankings
        if (ranking.verdicts or ranking.trainable)
        and (
            sorted(verdict.trajectory_id for verdict in ranking.verdicts) != members[ranking.group_id]
            or not all(math.isfinite(v.score) and 0.0 <= v.score <= 1.0 for v in ranking.verdicts)
        )
    ]


def _of_the_judge(judge: "JudgeProtocol", window: str) -> tuple[dict[str, Any], list[dict]]:
    """What there is to tell of an LLM that judged, and the groups in which words rather than actions moved it."""
    report = getattr(judge, "report", None)
    if report is None:
        return {}, []
    from rl_assets.judging.ruler_report import agreement_plot, figures, position_plot, quarantined, swayed

    told = figures(report)
    told |= {
        "quarantined_by_class": counts("class", told["quarantined_by_class"]),
        "passes_by_number": counts("passes", told["passes_by_number"]),
        "quarantined": table(quarantined(report)),
        "agreement": picture(agreement_plot(report)),
        "position_bias": picture(position_plot(report)),
    }
    return told, [{"window": window, **row} for row in swayed(report)]


def _agreement(earlier: list[dict]) -> dict[str, dg.MarkdownMetadataValue]:
    if not earlier:
        return {}
    from rl_assets.judging.ruler_report import sets_plot

    return {"agreement_between_sets": picture(sets_plot(earlier))}


def _earlier(conn: "psycopg.Connection", judgement: "JudgementSet") -> list[dict]:
    """How far this set agrees with those recorded of the window before."""
    from rl_assets.judging.ruler_stats import compare
    from rl_assets.store.judgements import recorded_sets

    mine = {r.group_id: {v.trajectory_id: v.score for v in r.verdicts} for r in judgement.rankings if r.verdicts}
    rows = []
    for other in recorded_sets(conn, judgement.window_id):
        if other.id != judgement.id:
            agreed = compare(mine, other.scores)
            rows.append(
                {
                    "set": other.id,
                    "judge": f"{other.judge} {other.judge_version}",
                    "recorded_at": other.recorded_at.isoformat(timespec="seconds"),
                    "groups": agreed.groups,
                    "tau": agreed.tau,
                    "pairs_flipped": agreed.flipped,
                    "note": "" if agreed.groups else "no group in common: other members, or another group size",
                }
            )
    return rows
