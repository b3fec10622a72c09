from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.judging.ruler_prompt import RUBRIC, canary, fixed_size, orders, question_seed, questions, sampled
from rl_assets.judging.ruler_view import View
from rl_assets_tests.judging.ruler_made import ladder


@given(st.integers(1, 16), st.integers(1, 7), st.integers(0, 4), st.text(max_size=8))
def test_over_the_passes_no_member_has_better_places_than_another(members: int, passes: int, more: int, seed: str):
    found = orders(members, passes, passes + more, seed)
    assert len(found) == passes + more
    assert all(sorted(order) == list(range(members)) for order in found)
    assert found[:passes] == orders(members, passes, passes, seed)
    if passes > 1:
        places = [sum(order.index(member) for order in found[:passes]) for member in range(members)]
        assert max(places) - min(places) <= 1


@given(st.integers(1, 8), st.integers(0, 2000))
def test_a_prompt_is_no_longer_than_its_view_and_what_is_counted_beside_it(members: int, size: int):
    names = [f"member-{number}" for number in range(members)]
    view = View("s" * size, tuple("o" * size for _ in names), 0)
    (asked,) = questions(question_seed("g", names, view), names, view, 1, 1, RUBRIC)
    length = sum(len(message["content"].encode()) for message in asked.messages)
    assert length <= view.size + fixed_size(RUBRIC, members)


def test_the_same_group_is_asked_about_in_the_same_words():
    view = View("shared", ("one", "two", "three"), 0)
    names = ["a", "b", "c"]
    seed = question_seed("g", names, view)
    assert questions(seed, names, view, 3, 5, RUBRIC) == questions(seed, names, view, 3, 5, RUBRIC)
    assert question_seed("g", names, View("shared", ("one", "two", "other"), 0)) != seed


def test_ids_and_order_do_not_name_the_member():
    names = [f"trajectory-{number}" for number in range(6)]
    view = View("", tuple(f"text {number}" for number in range(6)), 0)
    asked = questions(question_seed("g", names, view), names, view, 3, 5, RUBRIC)
    assert len({name for question in asked for name in question.ids}) == 30
    assert len({question.members for question in asked}) == 5
    assert not any("trajectory-" in message["content"] for question in asked for message in question.messages)
    for question in asked:
        for member, name in zip(question.members, question.ids, strict=True):
            assert f'id="{name}">\ntext {member[-1]}\n' in question.messages[1]["content"]


def test_a_planted_episode_does_nothing_right_and_praises_itself():
    members = ladder(4)
    planted = canary(members, "g")
    assert planted == canary(members, "g")
    assert not any(step.valid or step.action for step in planted.steps)
    assert len({canary(members, f"g{n}").steps[0].response for n in range(40)}) == 4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_sample_is_of_its_share(share: float):
    names = [f"g{number}" for number in range(1000)]
    chosen = [name for name in names if sampled(name, "canary", share)]
    assert len(chosen) == pytest.approx(1000 * share, abs=50)
    assert chosen != [name for name in names if sampled(name, "ablation", share)] or share in (0.0, 1.0)
