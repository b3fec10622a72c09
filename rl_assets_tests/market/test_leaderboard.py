"""The leaderboard: order, shared ranks where nothing is sure, and p values that keep their word."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.agents.runner import ReferenceAgent
from rl_assets.errors import MalformedInput
from rl_assets.market.leaderboard import holm, leaderboard, sign_flip_p
from rl_assets_tests.market.wild import episodes_of


def played(names, seeds=range(64)):
    return {name: episodes_of([ReferenceAgent(name)], seeds) for name in names}


def test_policies_are_ranked_by_what_is_sure():
    board = leaderboard(played(("hold", "news_follower", "random", "oracle")))
    ranks = {standing.policy: standing.rank for standing in board.standings}
    assert ranks == {"oracle": 1, "news_follower": 2, "random": 3, "hold": 3}
    assert set(board.standings[0].better_than) == {"news_follower", "random", "hold"}
    assert (board.snapshots, board.days) == (64, 16)
    assert [pair.p for pair in board.pairs] == sorted(pair.p for pair in board.pairs)
    assert all(pair.difference.mean >= 0.0 for pair in board.pairs)
    assert board == leaderboard(played(("hold", "news_follower", "random", "oracle")))


def test_equal_policies_share_the_rank_whatever_their_order():
    one = episodes_of([ReferenceAgent("random")], range(32))
    for names in (("a", "b"), ("b", "a")):
        board = leaderboard(dict.fromkeys(names, one))
        assert [standing.rank for standing in board.standings] == [1, 1]
        assert board.pairs[0].p == 1.0


def test_one_market_day_decides_nothing():
    board = leaderboard(played(("hold", "oracle"), range(4)))
    assert [standing.rank for standing in board.standings] == [1, 1]
    assert board.pairs[0].p == board.least_p == 1.0


@pytest.mark.parametrize(("days", "least", "can_tell"), [(5, 2**-4, False), (6, 2**-5, True)])
def test_a_pair_that_every_day_decides_alike_is_as_sure_as_so_few_days_can_make_it(days, least, can_tell):
    board = leaderboard(played(("hold", "oracle"), range(4 * days)))
    assert board.pairs[0].p == board.least_p == least
    assert board.can_tell is can_tell
    assert board.standings[0].better_than == (("hold",) if can_tell else ())


def test_policies_that_played_different_snapshots_cannot_be_compared():
    played_apart = {"a": episodes_of([ReferenceAgent("random")], range(8))}
    with pytest.raises(MalformedInput, match="let both play the same ones"):
        leaderboard(played_apart | {"b": played_apart["a"][:-1]})
    with pytest.raises(MalformedInput, match="play the same ones"):
        leaderboard({"a": []})
    with pytest.raises(MalformedInput, match="expected_pnl"):
        leaderboard({"a": [replace(played_apart["a"][0], expected_pnl=None)]})
    with pytest.raises(ValueError, match="at least one policy"):
        leaderboard({})


def test_a_chance_difference_is_called_sure_about_as_often_as_alpha():
    rng = np.random.default_rng(5)
    days = (np.arange(80) // 4).tolist()
    found = []
    for trial in range(80):
        difference = rng.standard_normal(80) + rng.standard_normal(20).repeat(4)
        found.append(sign_flip_p(difference, days, seed=trial))
    assert np.mean(np.array(found) < 0.05) < 0.12
    assert 0.35 < np.mean(found) < 0.65


def test_few_days_are_tested_exactly():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), [1, 2, 3]) == 0.25
    assert sign_flip_p(np.array([1.0, -1.0]), [1, 2]) == 1.0
    assert sign_flip_p(np.zeros(5), [1, 2, 3, 4, 5]) == 1.0


@given(st.lists(st.floats(0.0, 1.0), max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_raises_every_p_keeps_their_order_and_never_passes_bonferroni(p):
    corrected = holm(p)
    assert all(before <= after <= min(1.0, before * len(p)) + 1e-12 for before, after in zip(p, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p, kind="stable")] == sorted(corrected)


def test_holm_gives_the_numbers_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
