"""A checkpoint at play: what it says follows from its seed, whoever else sits in the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_assets.agents import neural, prompt
from rl_assets.agents.neural import NeuralAgent, NeuralPolicy, NeuralTable, most_at_once
from rl_assets.agents.replay import replay
from rl_assets.agents.runner import Assignment, play
from rl_assets.episodes import Episode, Policy
from rl_assets.errors import MissingCheckpoint
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Engine
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import World

WORLDS: list[World] = [generate("train", seed) for seed in range(3)]


@pytest.fixture
def checkpoint(weak_policy: Path) -> Path:
    return weak_policy


def played(
    checkpoint: Path, worlds: list[World], siblings: int = 4, seed: int = 1, temperature: float = 1.0
) -> list[Episode]:
    agent = NeuralAgent(checkpoint, Policy("line", 0), temperature=temperature)
    return play([Assignment(agent, "a", siblings)], worlds, seed=seed, new_ids=lambda n: list(map(str, range(n))))


def said(episode: Episode) -> list[tuple[int, ...]]:
    return [step.token_ids for step in episode.steps]


def test_an_episode_depends_on_its_seed_and_not_on_who_plays_beside_it(checkpoint: Path) -> None:
    together = played(checkpoint, WORLDS)
    for place, world in enumerate(WORLDS):
        alone = played(checkpoint, [world], siblings=2)
        for sibling, episode in enumerate(alone):
            other = together[4 * place + sibling]
            assert said(episode) == said(other)
            ours = [p for step in episode.steps for p in step.logprobs]
            theirs = [p for step in other.steps for p in step.logprobs]
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert said(played(checkpoint, WORLDS, seed=2)[0]) != said(together[0])


def test_siblings_differ_and_what_they_say_is_legal_and_replays(checkpoint: Path) -> None:
    episodes = played(checkpoint, WORLDS[:1], siblings=8)
    assert len({tuple(said(episode)) for episode in episodes}) == 8
    legal = set(prompt.legal_actions(WORLDS[0][0].config))
    for episode in episodes:
        assert {step.response for step in episode.steps} <= legal
        assert all(len(step.token_ids) == len(step.logprobs) > 0 for step in episode.steps)
        assert replay(episode, *WORLDS[0]) == []
        assert episode.not_trainable is None


def test_a_policy_with_little_left_asks_for_nothing_that_it_cannot_pay_or_close(checkpoint: Path) -> None:
    poor = [generate("train", seed, WorldConfig(start_cash=130.0, breach_fee=1.0)) for seed in range(8)]
    steps = [step for episode in played(checkpoint, poor, siblings=8) for step in episode.steps]
    assert {step.action.get("size") for step in steps} == {None, *prompt.SIZES}
    assert {step.action["do"] for step in steps} > {"close", "hold"}
    refused = [step for step in steps if not step.valid]
    assert {step.error for step in refused} <= {
        "not enough cash for margin and fee"
    }  # the fee comes on top of the size
    assert len(refused) < len(steps) / 100


def test_a_record_that_was_touched_does_not_replay(checkpoint: Path) -> None:
    episode = played(checkpoint, WORLDS[:1], siblings=1)[0]
    touched = replace(episode, expected_pnl=(episode.expected_pnl or 0.0) + 1.0)
    assert any("expected_pnl" in difference for difference in replay(touched, *WORLDS[0]))


def test_what_was_heard_and_said_is_the_conversation_that_a_template_renders(checkpoint: Path) -> None:
    episode = played(checkpoint, WORLDS[:1], siblings=1)[0]
    policy = NeuralPolicy(checkpoint)
    messages = [{"role": "system", "content": episode.system}]
    for step in episode.steps:
        messages.append({"role": "user", "content": step.observation})
        text = policy.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert step.prompt_tokens == len(policy.encode(str(text)))
        messages.append({"role": "assistant", "content": step.response})


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpoint, match="holds no checkpoint"):
        NeuralPolicy(tmp_path / "0007")


def test_as_many_play_side_by_side_as_memory_holds(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_at_once(checkpoint) >= 512
    usual = played(checkpoint, WORLDS)
    sat: list[int] = []
    sit = NeuralAgent.sit

    def watched(agent: NeuralAgent, engine: Engine, rows: np.ndarray, *rest: Any) -> NeuralTable:
        sat.append(len(rows))
        return sit(agent, engine, rows, *rest)

    monkeypatch.setattr(neural, "CACHE_BYTES", 5 * neural.CACHE_BYTES // most_at_once(checkpoint))
    monkeypatch.setattr(NeuralAgent, "sit", watched)
    assert [said(e) for e in played(checkpoint, WORLDS)] == [said(e) for e in usual]
    assert sat == [5, 5, 2]


def test_many_texts_are_encoded_and_decoded_as_one_is(checkpoint: Path) -> None:
    policy = NeuralPolicy(checkpoint)
    texts = [*prompt.legal_actions(WORLDS[0][0].config), "", "a b  c\n😀"]
    tokens = policy.encode_all(texts)
    assert tokens == [policy.encode(text) for text in texts]
    assert [policy.text_of(tuple(t)) for t in tokens] == [policy.text_of(tuple(t)) for t in tokens] == texts
