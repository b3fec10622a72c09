"""Grouping: who is compared with whom, whatever order the episodes come in."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.episodes import Episode, Policy, digest
from rl_assets.errors import ConfigurationError
from rl_assets.grouping import Alike, Group, build_groups, deal, group_id
from rl_assets_tests.store.made import SAMPLE, WINDOW

LIVE = replace(SAMPLE, snapshot_id=None, scenario_id="lobby", expected_pnl=None)


def numbered(episodes: list[Episode]) -> list[Episode]:
    return [replace(episode, trajectory_id=str(900 + number)) for number, episode in enumerate(episodes)]


def grouped(episodes: list[Episode], group_size: int = 8) -> list[Group]:
    return build_groups(episodes, window_id=WINDOW, group_size=group_size)


@st.composite
def some_episodes(draw: st.DrawFn) -> list[Episode]:
    kinds = [
        SAMPLE,
        LIVE,
        replace(SAMPLE, snapshot_id="other"),
        replace(SAMPLE, policy=Policy("babylon-agent", 1)),
        replace(SAMPLE, policy=Policy("random")),
        replace(SAMPLE, prompt_version="market-2"),
        replace(SAMPLE, steps=()),
        replace(SAMPLE, is_evaluation=True),
        replace(LIVE, scenario_id=None),
    ]
    return numbered(draw(st.lists(st.sampled_from(kinds), max_size=60)))


@given(some_episodes(), st.integers(2, 9), st.randoms())
def test_groups_do_not_depend_on_the_order_of_the_episodes(
    episodes: list[Episode], group_size: int, shuffle: random.Random
):
    expected = grouped(episodes, group_size)
    shuffled = episodes.copy()
    shuffle.shuffle(shuffled)
    assert grouped(shuffled, group_size) == expected


@given(some_episodes(), st.integers(2, 9))
def test_each_episode_is_in_one_group_of_its_like_and_alone_only_if_it_must(episodes: list[Episode], group_size: int):
    by_id = {episode.trajectory_id: episode for episode in episodes}
    groups = grouped(episodes, group_size)
    assert Counter(member for group in groups for member in group.trajectory_ids) == Counter(list(by_id))
    alike = Counter((group.key, group.reason or "") for group in groups)
    for group in groups:
        members = [by_id[member] for member in group.trajectory_ids]
        assert 1 <= len(members) <= group_size
        assert len({(m.snapshot_id, m.scenario_id, m.policy, m.prompt_version, m.not_trainable) for m in members}) == 1
        assert (group.policy, group.step) == (members[0].policy.name, members[0].policy.step)
        assert group.group_id == group_id(group.kind, group.key, reversed(group.trajectory_ids))
        assert group.trainable == (group.reason is None) == (len(members) > 1 and members[0].not_trainable is None)
        if group.reason == "group_of_one" and group_size > 2:
            assert alike[group.key, ""] == 0
    assert len({group.group_id for group in groups}) == len(groups)


@given(st.text(), st.none() | st.text(), st.none() | st.text(), st.none() | st.integers(0), st.lists(st.text()))
def test_a_key_is_json_and_a_name_its_hash_whatever_agents_call_themselves(
    name: str, snapshot: str | None, other: str | None, step: int | None, ids: list[str]
):
    policy = Policy(name, step)
    (group,) = deal([Alike(policy, snapshot, other, other, None, ("1",))], window_id=WINDOW, group_size=2)
    common: dict[str, object] = {"policy": name, "step": step}
    common |= (
        {"snapshot": snapshot, "prompt_version": other}
        if snapshot is not None
        else {"window": WINDOW, "scenario": other}
    )
    assert group.key == json.dumps(common, sort_keys=True)
    assert group_id(name, group.key, ids) == f"group-{digest([name, group.key, sorted(ids)])[:24]}"


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 9))
def test_complete_groups_stay_what_they_are_when_more_episodes_arrive(early: int, late: int, group_size: int):
    episodes = numbered([SAMPLE] * (early + late))
    complete = [g for g in grouped(episodes[:early], group_size) if len(g.trajectory_ids) == group_size]
    later = {group.group_id for group in grouped(episodes, group_size)}
    broken = [group for group in complete if group.group_id not in later]
    left_alone = group_size > 2 and (early + late) % group_size == 1
    assert len(broken) <= left_alone


@pytest.mark.parametrize(
    ("count", "sizes"), [(16, [8, 8]), (17, [8, 5, 4]), (9, [5, 4]), (10, [8, 2]), (1, [1]), (0, [])]
)
def test_members_beyond_the_group_size_are_dealt_into_further_groups(count: int, sizes: list[int]):
    assert [len(group.trajectory_ids) for group in grouped(numbered([SAMPLE] * count))] == sizes


def test_ids_are_dealt_by_age_and_not_by_their_letters():
    young, old = replace(SAMPLE, trajectory_id="1000"), replace(SAMPLE, trajectory_id="999")
    assert grouped([young, old])[0].trajectory_ids == ("999", "1000")


def test_live_episodes_are_compared_within_their_window_scenario_and_policy():
    episodes = numbered([LIVE, LIVE, replace(LIVE, policy=Policy("babylon-agent", 1)), replace(LIVE, scenario_id="x")])
    assert sorted(len(group.trajectory_ids) for group in grouped(episodes)) == [1, 1, 2]
    assert {group.kind for group in grouped(episodes)} == {"live"}
    elsewhere = build_groups(episodes, window_id="2026-11-23T09:00", group_size=8)
    assert not {group.group_id for group in elsewhere} & {group.group_id for group in grouped(episodes)}


def test_an_episode_that_cannot_be_trained_on_is_kept_and_spoils_no_other():
    broken = replace(SAMPLE, steps=(replace(SAMPLE.steps[0], token_ids=(), logprobs=()),))
    groups = grouped(numbered([SAMPLE, broken, SAMPLE, replace(SAMPLE, steps=())]))
    assert {group.reason: len(group.trajectory_ids) for group in groups} == {
        None: 2,
        "no_logprobs": 1,
        "empty_steps": 1,
    }


def test_groups_in_which_nothing_can_be_compared_are_refused():
    with pytest.raises(ConfigurationError, match="at least 2"):
        grouped([], group_size=1)
