from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets.errors import ConfigurationError
from rl_assets.registry.rollout import place_of
from rl_assets.registry.terms import Terms


@given(st.text(), st.text())
def test_every_agent_has_a_place(line: str, agent: str):
    assert 0.0 <= place_of(line, agent) < 100.0


def test_places_are_the_same_in_every_process():
    code = "from rl_assets.registry.rollout import place_of; print(place_of('babylon-agent', 'agent-7'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(said) == place_of("babylon-agent", "agent-7") == pytest.approx(PLACE_OF_AGENT_7)


PLACE_OF_AGENT_7 = 21.811996493451602


@pytest.mark.parametrize("percentage", [1, 5, 25, 50])
def test_a_percentage_of_the_agents_is_that_many(percentage: int):
    reached = sum(place_of("babylon-agent", f"agent-{n}") < percentage for n in range(20_000))
    # Three standard deviations of a draw of 20,000.
    assert abs(reached - 200 * percentage) <= 3 * (200 * percentage * (1 - percentage / 100)) ** 0.5


def test_lines_do_not_share_their_first_agents():
    first = {line: {n for n in range(2000) if place_of(line, str(n)) < 10} for line in ("one", "other")}
    assert len(first["one"] & first["other"]) < len(first["one"]) / 2


def test_terms_are_read_from_the_environment_and_survive_the_database():
    terms = Terms.from_env({"ROLLOUT_STAGES": "5, 25,100", "ROLLOUT_HARM_DOLLARS": "3.5", "ROLLOUT_LEAST_PAIRS": "9"})
    assert (terms.stages, terms.harm_dollars, terms.least_pairs) == ((5, 25, 100), 3.5, 9)
    assert Terms.from_json(terms.to_json()) == terms
    assert Terms.from_env({}) == Terms()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ROLLOUT_STAGES", "5,25", "does not rise to 100"),
        ("ROLLOUT_STAGES", "25,5,100", "does not rise to 100"),
        ("ROLLOUT_STAGES", "0,100", "does not rise to 100"),
        ("ROLLOUT_STAGES", "a few", "is not whole percentages like 5,25,100"),
        ("ROLLOUT_ALPHA", "1.5", "is not between 0 and 1"),
        ("ROLLOUT_ALPHA", "nan", "is not between 0 and 1"),
        ("ROLLOUT_HARM_DOLLARS", "300", "lower the one or raise the other"),
        ("ROLLOUT_HARM_DOLLARS", "much", "is not a number"),
        ("ROLLOUT_HARM_ERRORS", "0", "is not between 0 and 1"),
        ("ROLLOUT_DAYS", "0", "is below 1"),
        ("ROLLOUT_MOST_PAIRS", "1.5", "is not a whole number"),
    ],
)
def test_terms_that_cannot_be_are_refused_in_one_sentence(name: str, value: str, said: str):
    with pytest.raises(ConfigurationError, match=said) as raised:
        Terms.from_env({name: value})
    assert name in str(raised.value)
