from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.a2a.command import Command, read_command
from rl_assets.a2a.session import Refused

BUY = {"marketId": "A", "outcome": "YES", "amount": 5}


@pytest.mark.parametrize(
    "value",
    [
        {"operation": "buyShares", "params": BUY},
        {"operation": "buy_shares", "params": BUY},
        {"operation": "a2a.buyShares", "params": BUY},
        {"action": "buyShares", "params": BUY},
        {"action": "buy_shares", "params": BUY},
        {"action": "buyShares", **BUY},
        {"action": "buyShares", "params": {}, **BUY},
    ],
)
def test_both_forms_and_all_spellings_mean_the_same(value: dict[str, Any]):
    assert read_command(value) == Command("buyShares", BUY)


@pytest.mark.parametrize(
    "value", [{"operation": "getBalance"}, {"action": "get_balance"}, {"action": "getBalance", "params": None}]
)
def test_parameters_may_be_left_out(value: dict[str, Any]):
    assert read_command(value) == Command("getBalance", {})


@pytest.mark.parametrize(
    "value, reason",
    [
        ("List all active prediction markets", "Structured command required"),
        (None, "Structured command required"),
        ([], "Structured command required"),
        ({}, "Structured command required"),
        ({"operation": 5}, "Structured command required"),
        ({"operation": "a", "action": "b"}, "Structured command required"),
        ({"operation": "a", "params": [1]}, "as one object"),
        ({"operation": "a", "marketId": "A"}, "as one object"),
        ({"action": "a", "params": {"x": 1}, "y": 2}, "as one object"),
    ],
)
def test_what_is_no_command_is_refused(value: Any, reason: str):
    with pytest.raises(Refused, match=reason):
        read_command(value)


values = st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.text(), max_size=2)
objects = st.dictionaries(st.sampled_from(["operation", "action", "params", "x"]), values, max_size=4)


@given(values | objects | st.dictionaries(st.sampled_from(["operation", "params", "x"]), values | objects, max_size=3))
def test_any_json_is_a_command_or_refused(value: Any):
    try:
        command = read_command(value)
    except Refused:
        return
    assert isinstance(command.operation, str)
    assert isinstance(command.params, dict)
