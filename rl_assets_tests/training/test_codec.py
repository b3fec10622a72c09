"""From an episode to what ART trains on: no token id and no logprob changes on the way."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from art.preprocessing.tokenize import tokenize_trajectory
from art.trajectories import History
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_assets.agents import prompt
from rl_assets.episodes import Episode, Policy, Step
from rl_assets.errors import MalformedInput
from rl_assets.market.config import WorldConfig
from rl_assets.training.base import LAST_PIECE, build_tokenizer
from rl_assets.training.codec import to_trajectory

TOKENIZER = build_tokenizer()
END = int(TOKENIZER.eos_token_id)  # pyright: ignore[reportArgumentType]
LEGAL = prompt.legal_actions(WorldConfig())
MOMENT = datetime(2026, 11, 23, 8, tzinfo=UTC)
observations = st.text(st.characters(exclude_characters=LAST_PIECE + "<", exclude_categories=["Cs"]), min_size=1)
logprobs = st.floats(-50, 0, width=32)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@st.composite
def steps(draw: st.DrawFn, tick: int) -> Step:
    said = draw(st.sampled_from(LEGAL))
    tokens = (*encode(said), END)
    return Step(
        tick=tick,
        observation=draw(observations),
        response=said,
        action={},
        valid=True,
        reward=0.0,
        equity=0.0,
        token_ids=tokens,
        logprobs=tuple(draw(st.lists(logprobs, min_size=len(tokens), max_size=len(tokens)))),
    )


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    return Episode(
        trajectory_id="1",
        agent_id="agent",
        policy=Policy("tiny", 0),
        scenario_id=None,
        window_id=None,
        started_at=MOMENT,
        ended_at=MOMENT,
        system=draw(observations),
        steps=tuple(draw(steps(tick)) for tick in range(draw(st.integers(1, 4)))),
        prompt_version="market-1",
        sampling=None,
    )


@settings(max_examples=60, deadline=None)
@given(episodes())
def test_what_art_trains_on_is_what_was_played_token_by_token(episode: Episode) -> None:
    trajectory = to_trajectory(episode, 0.5)
    history = History(messages_and_choices=trajectory.messages_and_choices)
    result = tokenize_trajectory(TOKENIZER, None, history, 1.0, False, trajectory)
    assert result is not None
    mask = np.array(result.assistant_mask, bool)
    assert np.array(result.token_ids)[mask].tolist() == [t for s in episode.steps for t in s.token_ids]
    assert np.array(result.logprobs)[mask].tolist() == [p for s in episode.steps for p in s.logprobs]
    assert all(math.isnan(p) for p in np.array(result.logprobs)[~mask])
    heard = encode(f"<|system|>{episode.system}<|end|>")
    for step in episode.steps:
        heard += [*encode(f"<|user|>{step.observation}<|end|><|assistant|>"), *step.token_ids]
    assert result.token_ids == heard


@given(st.text())
def test_the_tokenizer_loses_nothing(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


def test_an_episode_of_an_evaluation_is_never_trained_on() -> None:
    episode = Episode("7", "agent", Policy("tiny", 0), None, None, MOMENT, MOMENT, "Trade.", (), None, None)
    with pytest.raises(MalformedInput, match=r"trajectory 7 cannot be trained on \(is_evaluation\)"):
        to_trajectory(replace(episode, is_evaluation=True), 0.5)
    with pytest.raises(MalformedInput, match="empty_steps"):
        to_trajectory(episode, 0.5)
