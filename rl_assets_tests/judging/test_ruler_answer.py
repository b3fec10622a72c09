from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.judging.ruler_answer import JudgeFailure, Scored, as_answer, check_scores, read_answer

IDS = ("bcdfg", "hjkmn", "pqrst")
unit = st.floats(0.0, 1.0)
ids = st.lists(st.text("bcdfghjkmnp", min_size=5, max_size=5), min_size=1, max_size=8, unique=True)
numbers = (
    st.floats() | st.integers() | st.integers(-(10**400), 10**400) | st.booleans() | st.none() | st.text(max_size=3)
)
names = st.sampled_from(IDS) | st.text(max_size=5)
entries = st.fixed_dictionaries(
    {}, optional={"trajectory_id": names | st.none(), "score": numbers, "explanation": names}
)
prose = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]))


@given(ids, st.data(), prose, prose)
def test_a_whole_answer_is_read_exactly_whatever_stands_around_it(
    wanted: list[str], data: st.DataObject, a: str, b: str
):
    scores = {name: data.draw(unit) for name in wanted}
    shuffled = data.draw(st.permutations(wanted))
    body = {"scores": [{"trajectory_id": n, "explanation": "so", "score": scores[n]} for n in shuffled]}
    read = read_answer(a + json.dumps(body) + b, "stop", None, wanted)
    assert {name: one.score for name, one in read.items()} == scores
    assert check_scores(as_answer(read), wanted) == read


@given(st.lists(entries, max_size=5) | st.lists(numbers, max_size=3))
def test_an_answer_is_whole_or_a_failure_and_never_anything_else(scores: list[Any]):
    read = attempt(json.dumps({"scores": scores}))
    if isinstance(read, JudgeFailure):
        assert read.failure in ("parse", "ids", "scores")
    else:
        assert set(read) == set(IDS)
        assert all(math.isfinite(one.score) and 0.0 <= one.score <= 1.0 for one in read.values())
        said = {entry["trajectory_id"]: float(entry["score"]) for entry in scores}
        assert (len(scores), said) == (3, {name: one.score for name, one in read.items()})


def attempt(text: str) -> dict[str, Scored] | JudgeFailure:
    try:
        return read_answer(text, "stop", None, IDS)
    except JudgeFailure as failure:
        return failure


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")), st.none() | st.text(max_size=8))
def test_any_text_is_read_or_refused(text: str, finish_reason: str | None):
    with pytest.raises(JudgeFailure):
        read_answer(text, finish_reason, None, IDS)


@pytest.mark.parametrize("text", ['{"a":' * 50_000, "[" * 50_000 + "{", "{" * 50_000])
def test_deep_nesting_is_no_answer(text: str):
    with pytest.raises(JudgeFailure, match="no JSON object"):
        read_answer(text, "stop", None, IDS)


def test_two_lists_of_scores_are_none():
    one = json.dumps({"scores": []})
    with pytest.raises(JudgeFailure, match="2 lists of scores"):
        read_answer(f"first I thought {one}, then {one}", "stop", None, IDS)


def test_explanations_are_cleaned_and_clipped():
    said = "a\x00b\u200bc\ud800" + "d" * 1000
    body = json.dumps({"scores": [{"trajectory_id": "bcdfg", "explanation": said, "score": 1}]})
    (scored,) = read_answer(body, "stop", None, ["bcdfg"]).values()
    assert scored.explanation.startswith("abcd")
    assert len(scored.explanation) == 600
