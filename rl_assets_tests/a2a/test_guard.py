from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from a2a.client.errors import A2AClientHTTPError

from rl_assets.a2a.guard import MOST_BYTES, MOST_LEVELS, RateLimit
from rl_assets_tests.a2a.sdk import Servers, agent_at, rpc, send


def test_a_wrong_token_is_turned_away(serve: Servers):
    served = serve()
    joined = send(served.url, {"operation": "join", "params": {"agent": "one"}})
    token = joined.json()["result"]["artifacts"][0]["parts"][0]["data"]["result"]["token"]
    identity = token.split(".")[0]
    right = send(served.url, {"action": "getBalance"}, Authorization=f"Bearer {token}")
    assert right.json()["result"]["status"]["state"] == "completed"
    for wrong in (f"Bearer {token}x", f"Bearer {identity}.", f"Bearer {identity}", "Bearer", f"Basic {token}", token):
        answer = send(served.url, {"action": "getBalance"}, Authorization=wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, -32000)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_too_many_requests_are_told_when_to_come_back(serve: Servers):
    served = serve(rate=RateLimit(per_second=0.001, burst=3))
    answers = [send(served.url, {"action": "getBalance"}) for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert answers[3].json()["error"]["code"] == -32006
    assert int(answers[3].headers["retry-after"]) > 900
    assert httpx.get(f"{served.url}.well-known/agent-card.json").status_code == 429


def test_one_sessions_rate_is_not_anothers(serve: Servers):
    async def play() -> None:
        async with agent_at(served.url) as one, agent_at(served.url) as two:
            await one.join("one")
            await two.join("two")
            for _ in range(5):
                await one.ask("getBalance")
            with pytest.raises(A2AClientHTTPError, match="429"):
                await one.ask("getBalance")
            await two.ask("getBalance")

    served = serve(rate=RateLimit(per_second=0.001, burst=5))
    asyncio.run(play())


def test_a_request_has_a_size_a_type_and_is_json(serve: Servers):
    url = serve().url
    kind = {"content-type": "application/json"}
    big = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"x": "y" * MOST_BYTES}}).encode()
    assert httpx.post(url, content=big, headers=kind).status_code == 413
    assert httpx.post(url, content=iter([big[:1000], big[1000:]]), headers=kind).status_code == 413
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    deep = b"[" * (MOST_LEVELS + 1) + b"]" * (MOST_LEVELS + 1)
    for broken in (b"{", b"", b"\xff", b"[" * 30_000, deep, b"[NaN]", b"[1e999]", b'["\\ud800"]', b"9" * 5000):
        assert httpx.post(url, content=broken, headers=kind).json()["error"]["code"] == -32700
    for method, params, code in (
        ("nope", {}, -32601),
        ("a2a.getPredictions", {}, -32601),
        ("message/send", {}, -32602),
        ("tasks/get", {"id": "x"}, -32001),
    ):
        assert rpc(url, method, params).json()["error"]["code"] == code
    assert httpx.post(url, json=[1, 2]).json()["error"]["code"] == -32600
    assert httpx.get(f"{url}.well-known/agent-card.json", headers={"host": "evil.example"}).status_code == 400
