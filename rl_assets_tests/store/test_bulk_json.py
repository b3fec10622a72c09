from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.store.bulk_json import decode, encode

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@given(VALUES)
def test_it_says_what_the_standard_library_says(value: Any):
    assert json.loads(encode(value)) == json.loads(json.dumps(value))


@given(VALUES)
def test_what_was_written_is_read(value: Any):
    assert decode(json.dumps(value)) == json.loads(json.dumps(value))
    assert decode(encode(value)) == decode(json.dumps(value))


@pytest.mark.parametrize("value", [10**400, -(2**70), "a lone \ud800", {"\udfff": [1, 2**64]}])
def test_what_orjson_refuses_to_write_is_written(value: object):
    assert json.loads(encode(value)) == value


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**25, -(10**30), 2**64 - 1, -(2**63), 1.5, -1e-7])
def test_what_orjson_reads_as_a_number_that_is_near_is_read_as_it_is(number: float):
    for value in (number, [number], {"a": [0, {"b": number}]}):
        assert repr(decode(json.dumps(value))) == repr(value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_without_an_end_is_written(number: float):
    for value in (number, [1.0, number], [1, number], {"a": {"b": (number,)}}, [[], [{"c": number}]]):
        with pytest.raises(ValueError, match="not JSON compliant"):
            encode(value)


@pytest.mark.parametrize("text", ["NaN", "[1, -Infinity]", '{"a": 1e999}', "[" + "9" * 400 + ".5]"])
def test_no_number_without_an_end_is_read(text: str):
    with pytest.raises(ValueError, match="is not finite"):
        decode(text)


def test_what_is_no_json_is_refused():
    with pytest.raises(ValueError, match="Expecting"):
        decode("{'a': 1}")
    with pytest.raises(RecursionError):
        decode("[" * 100_000)
