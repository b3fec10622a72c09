"""The outcome judge, and what every judge's rankings must be."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.episodes import Episode, digest
from rl_assets.errors import MalformedInput
from rl_assets.grouping import Group
from rl_assets.judging import JudgementSet, Opinion, OutcomeJudge, Ranking, Verdict, rank_members, unjudged
from rl_assets_tests.store.made import SAMPLE, WINDOW

JUDGE = OutcomeJudge()
CLEAN = replace(SAMPLE, breaches=0)
dollars = st.floats(-3000, 3000)
outcomes = st.lists(
    st.builds(
        replace,
        st.just(SAMPLE),
        expected_pnl=dollars,
        realised_pnl=dollars,
        max_drawdown=st.floats(0, 2000),
        breaches=st.sampled_from([0, 0, 1, 2, 40]),
    ),
    min_size=1,
    max_size=8,
)


def group(size: int, **changes: object) -> Group:
    members = tuple(str(number) for number in range(size))
    whole = Group("g", "benchmark", "{}", WINDOW, members, True, None, "babylon-agent", 0)
    return replace(whole, **changes)


def ranked(episodes: Sequence[Episode], **changes: object) -> Ranking:
    return JUDGE.rank(group(len(episodes), **changes), {str(n): e for n, e in enumerate(known(episodes))})


def known(episodes: Sequence[Episode]) -> list[Episode]:
    return [replace(episode, trajectory_id=str(number)) for number, episode in enumerate(episodes)]


def scores(ranking: Ranking) -> list[float]:
    """In order of the members."""
    return [verdict.score for verdict in sorted(ranking.verdicts, key=lambda verdict: int(verdict.trajectory_id))]


@given(outcomes)
def test_each_member_has_one_quantised_score_and_the_best_is_first(episodes: list[Episode]):
    ranking = ranked(episodes)
    assert {verdict.trajectory_id for verdict in ranking.verdicts} == set(map(str, range(len(episodes))))
    for verdict in ranking.verdicts:
        assert 0.0 <= verdict.score <= 1.0
        assert verdict.score == round(verdict.score, 4)
        assert verdict.rank == 1 + sum(other.score > verdict.score for other in ranking.verdicts)
        assert "PnL" in verdict.explanation
    assert [v.score for v in ranking.verdicts] == sorted(scores(ranking), reverse=True)


@given(outcomes, st.randoms())
def test_scores_do_not_depend_on_the_order_of_the_members(episodes: list[Episode], shuffle: random.Random):
    by_id = {episode.trajectory_id: episode for episode in known(episodes)}
    members = list(by_id)
    shuffle.shuffle(members)
    whole = group(len(episodes))
    assert JUDGE.rank(replace(whole, trajectory_ids=tuple(members)), by_id) == JUDGE.rank(whole, by_id)


@given(outcomes, st.data())
def test_more_expected_pnl_never_scores_less(episodes: list[Episode], data: st.DataObject):
    which = data.draw(st.integers(0, len(episodes) - 1))
    pnl = episodes[which].expected_pnl
    assert pnl is not None
    richer = episodes.copy()
    richer[which] = replace(episodes[which], expected_pnl=pnl + data.draw(st.floats(0, 5000)))
    assert scores(ranked(richer))[which] >= scores(ranked(episodes))[which]


@given(st.floats(-100, 100), st.floats(0.5, 500))
def test_of_two_that_differ_in_expected_pnl_alone_the_richer_ranks_first(pnl: float, more: float):
    first, second = scores(ranked([replace(CLEAN, expected_pnl=pnl), replace(CLEAN, expected_pnl=pnl + more)]))
    assert second > first


@given(outcomes)
def test_a_member_with_a_breach_is_below_every_member_without(episodes: list[Episode]):
    of_each = list(zip(scores(ranked(episodes)), [episode.breaches for episode in episodes], strict=True))
    clean = [score for score, breaches in of_each if not breaches]
    broken = [score for score, breaches in of_each if breaches]
    assert not clean or not broken or max(broken) < min(clean)


def test_less_drawdown_and_fewer_breaches_are_better():
    deep, shallow = scores(ranked([replace(CLEAN, max_drawdown=300.0), replace(CLEAN, max_drawdown=30.0)]))
    assert deep < shallow
    many, one = scores(ranked([replace(CLEAN, breaches=3), replace(CLEAN, breaches=1)]))
    assert many < one


def test_luck_does_not_count_where_skill_is_known():
    lucky, skilled = scores(
        ranked(
            [
                replace(CLEAN, expected_pnl=0.0, realised_pnl=900.0),
                replace(CLEAN, expected_pnl=50.0, realised_pnl=-900.0),
            ]
        )
    )
    assert skilled > lucky


def test_without_expected_pnl_all_members_are_judged_by_what_they_realised():
    live = replace(CLEAN, expected_pnl=None, max_drawdown=None)
    ranking = ranked([replace(live, realised_pnl=40.0), replace(CLEAN, expected_pnl=900.0, realised_pnl=10.0)])
    first, second = scores(ranking)
    assert first > second
    assert all("realised PnL" in verdict.explanation for verdict in ranking.verdicts)


def test_a_drawdown_that_was_not_recorded_is_read_off_the_equity():
    recorded, read = ranked([CLEAN, replace(CLEAN, max_drawdown=None)]).verdicts
    assert recorded.score == read.score


@pytest.mark.parametrize("nothing", [replace(CLEAN, expected_pnl=None, realised_pnl=None), replace(CLEAN, steps=())])
def test_a_group_without_outcomes_is_not_judged(nothing: Episode):
    assert ranked([CLEAN, nothing]) == Ranking("g", (), False, "no_outcome")


@pytest.mark.parametrize("more", [0.0, 0.1])
def test_members_that_do_equally_well_are_nothing_to_learn_from(more: float):
    ranking = ranked([replace(CLEAN, expected_pnl=7.0), replace(CLEAN, expected_pnl=7.0 + more)])
    assert (ranking.trainable, ranking.reason) == (False, "no_spread")
    assert len(ranking.verdicts) == 2


def test_a_group_that_is_not_trainable_is_judged_and_keeps_its_reason():
    ranking = ranked([CLEAN, replace(CLEAN, expected_pnl=90.0)], trainable=False, reason="window_open")
    assert (ranking.trainable, ranking.reason, len(ranking.verdicts)) == (False, "window_open", 2)


@pytest.mark.parametrize(
    ("opinions", "said"),
    [
        ({"0": Opinion(0.5, "")}, "differ on member 1"),
        ({"0": Opinion(0.5, ""), "1": Opinion(0.5, ""), "2": Opinion(0.5, "")}, "differ on member 2"),
        ({"0": Opinion(0.5, ""), "1": Opinion(float("nan"), "")}, "score of 1 is nan"),
        ({"0": Opinion(0.5, ""), "1": Opinion(1.5, "")}, "score of 1 is 1.5"),
    ],
)
def test_a_ranking_that_is_not_whole_is_refused(opinions: Mapping[str, Opinion], said: str):
    with pytest.raises(MalformedInput, match=said):
        rank_members(group(2), opinions, noise=0.0)


def test_what_no_column_can_hold_is_taken_out_of_an_explanation():
    ranking = rank_members(group(2), {"0": Opinion(0.5, "a\x00b\ud800"), "1": Opinion(0.6, "")}, noise=0.0)
    assert ranking.verdicts[1].explanation == "a\ufffdb\ufffd"


def test_a_judgement_set_is_named_by_what_it_holds():
    groups = [group(2), group(2, group_id="h")]
    rankings = [Ranking(g.group_id, (Verdict("0", 0.5, 1, ""), Verdict("1", 0.4, 2, "")), True, None) for g in groups]
    first = JudgementSet.of(WINDOW, JUDGE, rankings, groups)
    assert JudgementSet.of(WINDOW, JUDGE, rankings[::-1], groups[::-1]).id == first.id
    assert JudgementSet.of("2026-11-23T09:00", JUDGE, rankings, groups).id != first.id
    better = [replace(rankings[0], verdicts=(Verdict("0", 0.6, 1, ""), Verdict("1", 0.4, 2, ""))), rankings[1]]
    assert JudgementSet.of(WINDOW, JUDGE, better, groups).id != first.id
    newer = OutcomeJudge()
    newer.version = "2"
    assert JudgementSet.of(WINDOW, newer, rankings, groups).id != first.id


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_name_of_a_judgement_set_is_the_hash_of_its_canonical_json(count: int):
    groups = [group(2, group_id=name) for name in "gh"[:count]]
    rankings = [ranked([CLEAN, replace(CLEAN, expected_pnl=50.0)], group_id=one.group_id) for one in groups]
    body = {"window": WINDOW, "judge": JUDGE.name, "judge_version": JUDGE.version}
    expected = digest(body | {"rankings": [asdict(ranking) for ranking in rankings]})
    assert JudgementSet.of(WINDOW, JUDGE, rankings, groups).id == f"judgements-{expected[:24]}"


def test_a_judgement_set_has_one_ranking_per_group_and_knows_which_groups_wait():
    groups = [group(2), group(2, group_id="h"), group(1, group_id="i", trainable=False, reason="group_of_one")]
    with pytest.raises(MalformedInput, match="one per group"):
        JudgementSet.of(WINDOW, JUDGE, [], groups)
    rankings = [ranked([CLEAN, CLEAN]), unjudged(groups[1], "judge_failed"), unjudged(groups[2], "judge_failed")]
    judged = JudgementSet.of(WINDOW, JUDGE, rankings, groups)
    assert judged.waiting == {"h"}
    assert [ranking.reason for ranking in judged.rankings] == ["no_spread", "judge_failed", "group_of_one"]
