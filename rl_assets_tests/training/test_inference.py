"""Asking a checkpoint over HTTP, as ART's clients do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rl_assets.agents import prompt
from rl_assets.agents.grammar import FILE
from rl_assets.market.engine import Engine
from rl_assets.market.generate import generate
from rl_assets.registry.checkpoints import base_path
from rl_assets.training.inference import InferenceServer
from rl_assets_tests.training.made import LINE

SNAPSHOT = generate("train", 5)[0]
MESSAGES: list[Any] = [
    {"role": "system", "content": prompt.system_message(SNAPSHOT.config)},
    {"role": "user", "content": prompt.observations(Engine([SNAPSHOT]))[0]},
]


@pytest.fixture(scope="module")
def server(weak: Path) -> Iterator[InferenceServer]:
    server = InferenceServer(LINE, base_path(weak, LINE).parent)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: InferenceServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(server: InferenceServer, **changes: Any) -> httpx.Response:
    body = {"model": LINE, "messages": MESSAGES, **changes}
    return httpx.post(f"http://{server.host}:{server.port}/v1/chat/completions", json=body)


def test_an_answer_is_a_legal_action_with_the_logprob_of_every_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=f"{LINE}@0", messages=MESSAGES, logprobs=True, n=8, seed=1)
    legal = prompt.legal_actions(SNAPSHOT.config)
    assert len(answer.choices) == 8
    for choice in answer.choices:
        assert choice.message.content in legal
        assert choice.finish_reason == "stop"
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert all(token.token.startswith("token_id:") and token.logprob <= 0 for token in choice.logprobs.content)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(len(c.logprobs.content or []) for c in answer.choices if c.logprobs)


def test_a_seed_decides_the_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(model=LINE, messages=MESSAGES, n=16, seed=seed)
        return [choice.message.content for choice in answer.choices]

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_an_answer_that_is_cut_off_says_so(data: Path) -> None:
    (base_path(data, LINE) / FILE).unlink()  # who may say anything seldom ends at once
    server = InferenceServer(LINE, base_path(data, LINE).parent)
    server.start()
    try:
        choices = post(server, max_tokens=1, seed=3, n=8).json()["choices"]
    finally:
        server.stop()
    assert "length" in {choice["finish_reason"] for choice in choices}


def test_kept_steps_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [f"{LINE}@0"]


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "other"}, 404, "model 'other' is not served here; ask for tiny@<step>"),
        ({"model": "tiny@../0000"}, 404, "is not served here"),
        ({"model": "tiny@7"}, 404, "tiny has no step 7; kept steps are [0]"),
        ({"messages": []}, 400, "messages cannot be used: List should have at least 1 item"),
        ({"messages": [{"role": "judge", "content": "x"}]}, 400, "messages.0.role cannot be used"),
        ({"temperature": -1}, 400, "temperature cannot be used"),
        ({"stream": True}, 400, "stream cannot be used"),
        ({"messages": [{"role": "user", "content": "\n" * 5000}]}, 400, "the prompt has 5"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(
    server: InferenceServer, changes: dict[str, Any], status: int, says: str
) -> None:
    answer = post(server, **changes)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_after_a_bad_request_the_next_one_is_answered(server: InferenceServer) -> None:
    assert post(server, model="other").status_code == 404
    assert post(server).status_code == 200
