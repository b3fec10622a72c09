"""Advantages per step: what is shared out is what the judge gave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rl_assets.episodes import Episode
from rl_assets.training.credit import redistribute, spoken_key, take_notes
from rl_assets_tests.training.made import by_id, judged, rewarded


def said(episode: Episode) -> bytes:
    tokens = [token for step in episode.steps for token in step.token_ids]
    return spoken_key(np.array(tokens), np.array([p for step in episode.steps for p in step.logprobs]))


@st.composite
def groups(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    members, steps = draw(st.integers(2, 9)), draw(st.integers(1, 12))
    rewards = draw(arrays(float, members, elements=st.integers(0, 10_000).map(lambda n: n / 10_000)))
    credits = draw(arrays(float, (members, steps), elements=st.integers(-10_000, 10_000).map(lambda n: n / 100)))
    return rewards, credits


@given(groups())
def test_the_steps_of_a_trajectory_share_out_exactly_its_advantage(group: tuple[np.ndarray, np.ndarray]) -> None:
    rewards, credits = group
    advantages = redistribute(rewards, credits)
    assert advantages.shape == credits.shape
    np.testing.assert_allclose(advantages.sum(axis=1), rewards - rewards.mean(), atol=1e-9)


@given(groups())
def test_no_trajectory_is_favoured_over_its_group(group: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(redistribute(*group).sum(), 0.0, atol=1e-9)


def test_where_reward_is_money_the_step_that_earned_it_gets_it() -> None:
    credits = np.array([[30.0, 0.0, 0.0], [0.0, 0.0, -30.0], [0.0, 0.0, 0.0]])
    advantages = redistribute(0.5 + credits.sum(axis=1) / 100, credits)
    assert advantages[0].argmax() == 0
    assert advantages[1].argmin() == 2
    assert advantages[0, 0] == pytest.approx(0.2)


def test_a_judge_who_does_not_care_for_money_gets_plain_grpo() -> None:
    credits = np.array([[10.0, 0.0], [0.0, -10.0]])
    advantages = redistribute(np.array([0.0, 1.0]), credits)
    np.testing.assert_allclose(advantages, [[-0.25, -0.25], [0.25, 0.25]])


def test_without_credits_every_step_gets_the_same_part(batch: list[Episode]) -> None:
    blind = [replace(e, steps=tuple(replace(s, credit=None) for s in e.steps)) for e in batch]
    for note in take_notes(judged(blind), by_id(blind), 0.0).values():
        assert np.unique(note.advantages).size == 1


def test_what_is_held_out_is_whole_snapshots_of_the_share_that_is_wanted(batch: list[Episode]) -> None:
    manifest, episodes = judged(batch), by_id(batch)
    notes = take_notes(manifest, episodes, 0.25)
    assert sum(note.held_out for note in notes.values()) == len(batch) // 4
    assert {k for k, n in notes.items() if n.held_out} == {
        k for k, n in take_notes(manifest, episodes, 0.25).items() if n.held_out
    }


def test_siblings_that_say_the_same_share_their_mean_advantage(batch: list[Episode]) -> None:
    manifest = judged(batch)
    group = manifest.groups[0]
    first, second, *_ = group.trajectory_ids
    twins = by_id([replace(e, steps=tuple(replace(s, credit=None) for s in e.steps)) for e in batch])
    twins[second] = replace(twins[first], trajectory_id=second)
    rewards = {identity: 0.1 * place for place, identity in enumerate(manifest.trajectory_ids)}
    manifest = rewarded(manifest, rewards)
    (note,) = [n for k, n in take_notes(manifest, twins, 0.0).items() if k == said(twins[first])]
    mean = np.mean([rewards[i] for i in group.trajectory_ids])
    expected = np.mean([rewards[first], rewards[second]]) - mean
    assert note.advantages.sum() == pytest.approx(expected)
    notes = take_notes(manifest, twins, 0.0)
    assert sum(notes[said(twins[i])].advantages.sum() for i in group.trajectory_ids) == pytest.approx(0)


def test_a_snapshot_is_as_hard_as_those_who_played_it_did_badly(batch: list[Episode]) -> None:
    manifest, episodes = judged(batch), by_id(batch)
    rewards: dict[str, list[float]] = {}
    for group in manifest.groups:
        rewards.setdefault(str(episodes[group.trajectory_ids[0]].snapshot_id), []).extend(group.rewards)
    notes = take_notes(manifest, episodes, 0.0)
    expected = sorted(1.0 - np.mean(rewards[str(episodes[i].snapshot_id)]) for i in manifest.trajectory_ids)
    np.testing.assert_allclose(sorted(note.difficulty for note in notes.values()), expected)
    assert len(set(expected)) == len(rewards) > 1
