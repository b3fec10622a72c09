from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rl_assets.a2a.babylon import missing, survey
from rl_assets.a2a.card import agent_card
from rl_assets.a2a.client import MOST_BYTES, RemoteError, RemoteRefusal, connect, read_url
from rl_assets.a2a.lobby import TOLD
from rl_assets.a2a.player import ModelDecider, Played, RuleDecider, play
from rl_assets.agents.replay import replay
from rl_assets.agents.runner import Assignment, ReferenceAgent
from rl_assets.agents.runner import play as play_here
from rl_assets.cli import FAILED, run
from rl_assets.errors import ConfigurationError
from rl_assets.market.config import DIFFICULTIES
from rl_assets.market.generate import generate
from rl_assets.turns import Job
from rl_assets_tests.a2a.sdk import WORLD, Served, Servers
from rl_assets_tests.agents.endpoint_server import loopback_model, says
from rl_assets_tests.agents.live import here


class Stranger:
    """A server of somebody else: answers GET with `card` and POST with what `answer` makes of the request."""

    def __init__(self) -> None:
        self.url = ""
        self.card: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.status = 200
        self.asked: list[Any] = []

    def answer(self, request: Any) -> Any:
        return {}


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    it = Stranger()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            it.asked.append(dict(self.headers))
            self._send(it.card)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            it.asked.append(request | {"headers": dict(self.headers)})
            self._send(it.answer(request))

        def _send(self, body: Any) -> None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(it.status)
            for name, value in it.headers.items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    it.url = f"http://127.0.0.1:{server.server_port}"
    it.card = agent_card(f"{it.url}/").model_dump(mode="json", by_alias=True, exclude_none=True)
    yield it
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def babylon(stranger: Stranger, babylon_data: Path) -> Stranger:
    """A server that answers as Babylon's did when it was asked."""
    log = json.loads((babylon_data / "a2a_server_probe.json").read_text())["log"]
    known = {}
    for entry in log:
        if entry["req"]["method"] == "message/send" and entry["res"]["result"]["status"]["state"] == "completed":
            part = entry["req"]["params"]["message"]["parts"][0]
            known[(part.get("data") or json.loads(part["text"]))["operation"]] = entry["res"]
    (refusal,) = [e["res"] for e in log if e["label"] == "trading operation"]
    stranger.card |= {"name": "Babylon", "url": f"{stranger.url}/api/a2a", "capabilities": {"streaming": False}}

    def answer(request: Any) -> Any:
        operation = request["params"]["message"]["parts"][0]["data"]["operation"]
        text = json.dumps(known.get(operation, refusal)).replace("markets.buy_shares", operation)
        return json.loads(text) | {"id": request["id"]}

    stranger.answer = answer
    return stranger


def completed(request: Any, result: Any) -> Any:
    """What is answered to a request that was carried out."""
    part = {"kind": "data", "data": {"result": result}}
    task = {
        "kind": "task",
        "id": "t",
        "contextId": "c",
        "status": {"state": "completed"},
        "artifacts": [{"artifactId": "a", "parts": [part]}],
    }
    return {"jsonrpc": "2.0", "id": request["id"], "result": task}


CONFIG = WORLD[0].config
CLOCK = {"tick": 1, "open": True, "acted": False, "finished": False, "observation": "what is seen"}
JOINED = {
    "token": "t",
    "rules": "r",
    "instruments": list(CONFIG.instruments),
    "market": {name: getattr(CONFIG, name) for name in TOLD},
    "clock": CLOCK,
}
ANSWERS = {
    "join": JOINED,
    "getPortfolio": {"balance": 1000.0, "equity": 1000.0, "pnl": 0.0, "positions": []},
    "getPredictions": {
        "predictions": [{"id": name, "yesPrice": 0.5, "earlierYesPrice": 0.5} for name in CONFIG.instruments]
    },
    "getPerpetuals": {
        "perpetuals": [{"ticker": name, "price": 100.0, "earlierPrice": 100.0} for name in CONFIG.instruments]
    },
    "getFeed": {"posts": []},
    "getBalance": {"balance": 1000.0},
}


def joined_at(**clock: Any) -> dict[str, Any]:
    """Answers of a market with such a clock at the start; None leaves a field of it out."""
    return {"join": JOINED | {"clock": {k: v for k, v in (CLOCK | clock).items() if v is not None}}}


def tells(stranger: Stranger, answers: dict[str, Any]) -> None:
    """Let it be a market that answers as one does, but for these operations."""

    def answer(request: Any) -> Any:
        operation = request["params"]["message"]["parts"][0]["data"]["operation"]
        return completed(request, (ANSWERS | answers)[operation])

    stranger.answer = answer


def play_remote(url: str, agent: str, seed: tuple[int, ...] = (0,)) -> Played:
    async def go() -> Played:
        async with connect(url) as remote:
            return await play(remote, RuleDecider(agent, seed), f"{agent}-a2a", None, lambda done, total: None)

    return asyncio.run(go())


@pytest.mark.parametrize("agent", ["news_follower", "random", "post_follower"])
def test_a_rule_plays_from_afar_as_it_does_here(serve: Servers, agent: str):
    (here,) = play_here([Assignment(ReferenceAgent(agent), "x")], [WORLD], seed=7, new_ids=lambda n: ["t"] * n)
    served = serve()
    played = play_remote(served.url, agent, (7, WORLD[0].seed, 0))
    (there,) = served.episodes
    assert [s.response for s in there.steps] == [s.response for s in here.steps]
    assert [s.equity for s in there.steps] == [s.equity for s in here.steps]
    assert played.result["expectedPnl"] == here.expected_pnl
    assert played.refused == {}
    assert replay(there, *WORLD) == []


def test_agents_of_one_clock_play_side_by_side(serve: Servers):
    served = serve(agents=2)

    async def go(agent: str) -> Played:
        async with connect(served.url) as remote:
            return await play(remote, RuleDecider(agent, (0,)), f"{agent}-a2a", None, lambda done, total: None)

    async def both() -> list[Played]:
        return list(await asyncio.gather(go("hold"), go("news_follower")))

    held, followed = asyncio.run(both())
    assert held.result["trades"] == 0
    assert followed.result["trades"] > 0
    assert len(served.episodes) == 2


def played_by_a_model(served: Served, stranger: Stranger, said: list[str]) -> Played:
    """How a model plays that says these answers, and then holds."""
    answers = iter(said)

    def answer(request: Any) -> Any:
        message = {"role": "assistant", "content": next(answers, '{"do":"hold"}')}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}

    stranger.answer = answer

    async def go() -> Played:
        async with connect(served.url) as remote:
            decider = ModelDecider(f"{stranger.url}/v1", "m", None, 0.5)
            return await play(remote, decider, "model-a2a", None, lambda done, total: None)

    return asyncio.run(go())


def test_a_model_behind_an_endpoint_plays_what_it_reads(serve: Servers, stranger: Stranger):
    served = serve()
    played = played_by_a_model(
        served,
        stranger,
        [
            'I buy. {"market":"A","do":"buy_yes","size":50}',
            '{"market":"A","do":"sell_yes","size":20}',
            "no idea",
            '{"market":"A","do":"close"}',
            '{"market":"P","do":"long","size":30}',
            '{"market":"P","do":"close"}',
            '{"market":"B","do":"sell_no","size":30}',
            '{"market":"B","do":"buy_no","size":99999}',
        ],
    )
    (episode,) = served.episodes
    first, last = stranger.asked[0]["messages"], stranger.asked[-1]["messages"]
    assert [m["role"] for m in first] == ["system", "user"]
    assert (first[0]["content"], first[1]["content"]) == (episode.system, episode.steps[0].observation)
    assert [m["content"] for m in last if m["role"] == "user"] == [s.observation for s in episode.steps]
    assert episode.steps[0].response == '{"market":"A","do":"buy_yes","size":50}'
    assert [s.action["do"] for s in episode.steps[:8]] == [
        *("buy_yes", "sell_yes", "hold", "sell_yes", "long", "close", "hold", "hold")
    ]
    assert sum(played.refused.values()) == 3
    assert any("not enough cash" in reason for reason in played.refused)


def test_a_models_connections_are_closed_when_it_has_played(serve: Servers, monkeypatch: pytest.MonkeyPatch):
    served = serve()
    connections = set()

    async def go(decider: ModelDecider) -> None:
        async with connect(served.url) as remote:
            await play(remote, decider, "model-a2a", None, lambda done, total: None)
        # The loop still runs, and the decider is still held: nothing but closing them ends the connections.
        async with asyncio.timeout(5):
            while any(connection.fileno() != -1 for connection in connections):
                await asyncio.sleep(0.02)

    with loopback_model() as model:
        respond = model.respond
        monkeypatch.setattr(model, "respond", lambda handler: (connections.add(handler.connection), respond(handler)))
        asyncio.run(go(ModelDecider(model.url, "m", None, 0.5)))
    assert connections


def test_a_model_joins_and_posts_in_a_world_where_that_can_be_done(serve: Servers, stranger: Stranger):
    served = serve(worlds=[generate("train", 0, DIFFICULTIES["hard"])])
    said = ['{"chat":"gem","do":"join"}', '{"market":"A","do":"post_up"}', '{"market":"B","do":"post_down"}']
    played = played_by_a_model(served, stranger, said)
    (episode,) = served.episodes
    assert [s.response for s in episode.steps[:3]] == said
    assert not played.refused
    assert "in gem" in episode.steps[1].observation


def test_a_models_key_is_not_repeated(
    serve: Servers, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    stranger.status = 401
    stranger.answer = lambda request: {"error": {"message": "no such key: sk-very-secret"}}
    served = serve()
    asking = ["--agent", "endpoint", "--base-url", f"{stranger.url}/v1", "--model", "m"]
    assert run(["play", served.url, *asking]) == 1
    said = capsys.readouterr()
    assert "m does not answer" in said.err
    assert "very-secret" not in said.out + said.err


def test_babylon_is_looked_at_and_what_it_lacks_is_said(babylon: Stranger):
    async def look() -> list[Any]:
        async with connect(babylon.url) as remote:
            assert not remote.is_market
            return await survey(remote)

    offers = asyncio.run(look())
    assert [(o.operation, o.found) for o in offers if o.supported] == [
        ("markets.list_prediction", "1 markets"),
        ("social.get_feed", "1 posts"),
    ]
    assert "markets.buy_shares" in missing(offers)


def test_play_says_that_babylon_cannot_be_traded_on(
    babylon: Stranger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BABYLON_API_KEY", "its key")
    assert run(["play", babylon.url, "--agent", "news_follower"]) == 1
    seen = capsys.readouterr()
    assert "does not support markets.buy_shares" in seen.err
    assert "news_follower cannot trade there" in seen.err
    assert "1 markets" in seen.out
    assert run(["play", babylon.url, "--agent", "hold"]) == 0
    assert "X-Babylon-Api-Key" not in babylon.asked[0]
    assert {r["headers"]["X-Babylon-Api-Key"] for r in babylon.asked if "method" in r} == {"its key"}


def test_a_card_that_points_elsewhere_is_not_followed(stranger: Stranger):
    for elsewhere in (
        "http://169.254.169.254/",
        "http://127.0.0.1:1/",
        "https://127.0.0.1/",
        "file:///etc/passwd",
        "\x1b",
    ):
        stranger.card["url"] = elsewhere
        with pytest.raises(RemoteError, match="sends requests to another host") as error:
            play_remote(stranger.url, "hold")
        assert "\x1b" not in str(error.value)


def test_redirects_are_not_followed(stranger: Stranger):
    stranger.status, stranger.headers = 302, {"location": "http://127.0.0.1:1/"}
    with pytest.raises(RemoteError, match="302"):
        play_remote(stranger.url, "hold")


def test_an_answer_without_end_is_cut_off(stranger: Stranger):
    stranger.answer = lambda request: b" " * (MOST_BYTES + 1)
    with pytest.raises(RemoteError, match="the answer has more than"):
        play_remote(stranger.url, "hold")


@pytest.mark.parametrize(
    "card, said",
    [
        ({"protocolVersion": "1.0"}, "speaks A2A 1.0"),
        ({"preferredTransport": "GRPC"}, "does not speak JSON-RPC"),
        ({"skills": 5}, "cannot be played"),
    ],
)
def test_a_server_of_another_kind_is_named_as_such(stranger: Stranger, card: dict[str, Any], said: str):
    stranger.card |= card
    with pytest.raises(RemoteError, match=said):
        play_remote(stranger.url, "hold")


@pytest.mark.parametrize(
    "result", [{}, [], {"token": "x", "rules": "", "instruments": [], "market": {"ticks": "many"}}]
)
def test_a_market_whose_answers_cannot_be_read_is_said_to_be_so(stranger: Stranger, result: Any):
    stranger.answer = lambda request: completed(request, result)
    with pytest.raises(RemoteError, match="answer to join cannot be read"):
        play_remote(stranger.url, "hold")


ODD = [
    {"join": {name: value for name, value in JOINED.items() if name != "clock"}},
    {"join": JOINED | {"clock": []}},
    {"join": JOINED | {"market": JOINED["market"] | {"ticks": float("nan")}}},
    *(joined_at(**{name: None}) for name in ("tick", "open", "acted", "finished", "observation")),
    joined_at(tick="first"),
    joined_at(tick=9999),
    joined_at(open=False) | {"getClock": {}},
    {"getPredictions": {}},
    {"getPredictions": []},
    {"getPerpetuals": {"perpetuals": 5}},
    {"getFeed": {"posts": [5]}},
    {"getBalance": {"balance": "much"}},
    {"getBalance": {"balance": float("nan")}},
    {"advance": {}},
    {"advance": {"clock": CLOCK | {"finished": True}}},
]


@pytest.mark.parametrize("answers", ODD)
def test_a_market_that_does_not_tell_what_it_must_is_said_to_be_so(
    stranger: Stranger, answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    tells(stranger, answers)
    assert run(["play", stranger.url, "--agent", "momentum"]) == FAILED
    assert "cannot be read" in (said := capsys.readouterr().err)
    assert said.endswith("is it of this version?\n")


@pytest.mark.parametrize("answers", [*ODD, {"getPortfolio": {}}, {"getPortfolio": {"balance": "much"}}])
def test_a_live_turn_at_such_a_market_fails_with_the_same_sentence(
    stranger: Stranger, answers: dict[str, Any], tmp_path: Path
):
    tells(stranger, answers)
    job = Job(
        agent_id="1",
        name="ann",
        kind="reference",
        policy={"name": "momentum"},
        market_url=stranger.url,
        day_file=str(tmp_path / "day"),
        seconds=60,
        memory_mb=2048,
    )
    assert "cannot be read" in (said := str(asyncio.run(here(job)).failed))
    assert said.endswith("is it of this version?")


@pytest.mark.parametrize(
    ("order", "answers"),
    [
        ({"market": "A", "do": "buy_yes", "size": 50}, {"buyShares": {}}),
        ({"market": "A", "do": "sell_yes", "size": 50}, {"getPositions": []}),
        ({"market": "A", "do": "sell_yes", "size": 50}, {"getPositions": {"predictionPositions": [{}]}}),
        (
            {"market": "A", "do": "sell_yes", "size": 50},
            {
                "getPositions": {
                    "predictionPositions": [
                        {"positionId": "1", "marketId": "A", "outcome": "YES", "value": 0, "shares": 1, "price": 0}
                    ]
                }
            },
        ),
    ],
)
def test_an_order_that_an_odd_market_takes_is_said_to_be_so(
    stranger: Stranger, order: dict[str, Any], answers: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    tells(stranger, answers)
    with loopback_model() as model:
        model.mode = says(json.dumps(order))
        asking = ["--agent", "endpoint", "--base-url", model.url, "--model", "m"]
        assert run(["play", stranger.url, *asking]) == FAILED
    assert "cannot be read" in (said := capsys.readouterr().err)
    assert said.endswith("is it of this version?\n")


def test_a_server_that_has_no_time_is_asked_again(stranger: Stranger):
    def answer(request: Any) -> Any:
        calls = [r for r in stranger.asked if "method" in r]
        stranger.status = 429 if len(calls) == 1 else 200
        status = {"state": "rejected"}
        return {
            "jsonrpc": "2.0",
            "id": request["id"],
            "result": {"kind": "task", "id": "t", "contextId": "c", "status": status},
        }

    stranger.answer = answer
    with pytest.raises(RemoteRefusal, match="join ended as rejected"):
        play_remote(stranger.url, "hold")


def test_what_a_server_says_is_printable_and_short(stranger: Stranger):
    def answer(request: Any) -> Any:
        said = {"kind": "text", "text": "Error: \x1b]0;owned\x07" + "x" * 5000}
        message = {"kind": "message", "messageId": "m", "role": "agent", "parts": [said]}
        status = {"state": "failed", "message": message}
        task = {"kind": "task", "id": "t", "contextId": "c", "status": status}
        return {"jsonrpc": "2.0", "id": request["id"], "result": task}

    stranger.answer = answer
    with pytest.raises(RemoteRefusal) as refusal:
        play_remote(stranger.url, "hold")
    assert len(str(refusal.value)) < 500
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "http://",
        "http://me:secret@host",
        "http://h/?q=1",
        "http://[",
        "http://h:99999",
    ],
)
def test_what_is_no_url_of_a_server_is_refused(url: str):
    with pytest.raises(ConfigurationError) as error:
        read_url(url)
    assert "secret" not in str(error.value)
