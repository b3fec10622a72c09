"""What the trainer reads of packed tensors, and that it sees what the sampler saw."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import art
import pytest
import torch
from art.preprocessing.pack import PackedTensors

from rl_assets.agents.neural import NeuralPolicy
from rl_assets.agents.prompt import Means
from rl_assets.episodes import Episode
from rl_assets.registry.checkpoints import base_path
from rl_assets.training.codec import to_groups
from rl_assets.training.cpu import CpuBackend
from rl_assets.training.credit import lay_over, spoken_key, take_notes
from rl_assets.training.forward import masked_logprobs
from rl_assets.training.packed import answer_starts, grammar_nodes, trajectories, tree_mask
from rl_assets_tests.training.made import LINE, by_id, judged

Known = Mapping[tuple[int, int], Means | None]


def packed(data: Path, episodes: list[Episode], length: int) -> PackedTensors:
    """A batch in packed sequences of a length, by ART."""

    async def pack() -> PackedTensors:
        base = str(base_path(data, LINE))
        model = art.TrainableModel(name=LINE, project="rl-assets", base_model=base, base_path=str(data / "art"))
        backend = CpuBackend(path=str(data / "art"))
        manifest = judged(episodes)
        try:
            await model.register(backend)
            backend.service(model).notes = take_notes(manifest, by_id(episodes), 0.0)
            groups = to_groups(manifest, by_id(episodes))
            tensors = backend._get_packed_tensors(model, groups, 0.0, False, False, False, length, 1024)
        finally:
            await backend.close()
        assert tensors is not None
        return tensors

    return asyncio.run(pack())


def longest(episodes: list[Episode]) -> int:
    return max(e.steps[-1].prompt_tokens + len(e.steps[-1].token_ids) for e in episodes) + 1


def said(tensors: PackedTensors) -> set[bytes]:
    tokens, logprobs = tensors["tokens"].numpy(), tensors["logprobs"].numpy()
    return {spoken_key(tokens[row, places], logprobs[row, places]) for row, places in trajectories(tensors)}


def trained(data: Path, tensors: PackedTensors, means: Known) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs of spoken tokens, as the trainer and as the sampler gave them."""
    policy = NeuralPolicy(base_path(data, LINE))
    assert policy.grammar is not None
    inputs: Any = tensors
    with torch.no_grad():
        new, _ = masked_logprobs(
            policy.model,
            inputs["tokens"],
            grammar_nodes(tensors, policy.grammar, means),
            torch.from_numpy(policy.grammar.allowed),
            tree_mask(inputs["group_ids"], inputs["parent_ids"]),
            inputs["input_pos"],
        )
    spoken = tensors["assistant_mask"][:, 1:]
    return new[spoken], tensors["logprobs"][:, 1:][spoken]


@pytest.mark.parametrize("sequences", [1, 3])
def test_sampler_and_trainer_agree_on_every_token_whether_prompts_are_shared_or_not(
    data: Path, batch: list[Episode], sequences: int
) -> None:
    some = batch[:8]
    tensors = packed(data, some, sequences * longest(some))
    means = lay_over(tensors, take_notes(judged(some), by_id(some), 0.0)).means
    assert len(set(means.values())) > 2
    new, old = trained(data, tensors, means)
    assert len(new) == sum(len(step.token_ids) for e in some for step in e.steps)
    torch.testing.assert_close(new, old, atol=1e-4, rtol=0)


def test_packing_keeps_every_trajectory_and_shares_the_prompt_of_a_group(data: Path, batch: list[Episode]) -> None:
    some = batch[:16]
    alone, together = packed(data, some, longest(some)), packed(data, some, 4 * longest(some))
    assert said(alone) == said(together)
    assert len(together["tokens"]) < len(alone["tokens"]) / 3
    assert tree_mask(alone["group_ids"], alone["parent_ids"]) is None
    mask = tree_mask(together["group_ids"], together["parent_ids"])
    assert mask is not None
    groups, parents = together["group_ids"][0], together["parent_ids"][0]
    for query in range(0, len(groups), 97):
        for key in range(0, len(groups), 31):
            may = key <= query and (groups[key] == groups[query] or groups[key] == parents[query])
            assert bool(mask[0, 0, query, key]) == bool(may)


def test_answers_begin_where_an_episode_s_steps_begin(data: Path, batch: list[Episode]) -> None:
    some = batch[:8]
    tensors = packed(data, some, 3 * longest(some))
    assert int(answer_starts(tensors).sum()) == sum(len(episode.steps) for episode in some)


def test_a_token_that_the_grammar_does_not_allow_is_refused(data: Path, batch: list[Episode]) -> None:
    some = batch[:8]
    tensors = packed(data, some, longest(some))
    row, places = next(trajectories(tensors))
    means = lay_over(tensors, take_notes(judged(some), by_id(some), 0.0)).means
    tensors["tokens"][row, places[0]] = 0
    with pytest.raises(ValueError, match="does not allow"):
        grammar_nodes(tensors, NeuralPolicy(base_path(data, LINE)).grammar, means)


def test_no_step_counts_for_many_and_a_refused_one_counts_as_the_worst(data: Path, batch: list[Episode]) -> None:
    some = [replace(e, steps=tuple(replace(s, valid=s.tick != 5) for s in e.steps)) for e in batch[:16]]
    tensors = packed(data, some, longest(some))
    marks = lay_over(tensors, take_notes(judged(some), by_id(some), 0.5))
    learnt = tensors["assistant_mask"] & ~marks.held_out[:, None]
    advantages = tensors["advantages"]
    assert 0 < int(marks.held_out.sum()) < len(marks.held_out)
    assert float((advantages * tensors["weights"])[learnt].abs().mean()) == pytest.approx(1.0, abs=1e-5)
    assert bool(marks.invalid.any())
    worst = advantages.min().expand_as(advantages[marks.invalid])
    torch.testing.assert_close(advantages[marks.invalid], worst)
    assert float(advantages.max()) <= -float(advantages.min())
    assert bool((advantages[~tensors["assistant_mask"]] == 0).all())
