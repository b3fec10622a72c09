"""Which addresses may be called, and that it is judged at the moment of connecting. Nothing leaves this machine."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_assets import outbound
from rl_assets.agents.endpoint import EndpointAgent
from rl_assets.errors import ConfigurationError
from rl_assets.judging.ruler import RulerJudge
from rl_assets.settings import RulerSettings
from rl_assets_tests.judging.ruler_made import grouped, ladder
from rl_assets_tests.loopback import serving

FORBIDDEN = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/v1",
    "http://[fd00:ec2::254]/v1",
    "http://100.100.100.200/v1",
    "http://0.0.0.0:8000/v1",
    "http://[::ffff:169.254.169.254]/v1",
    "http://[64:ff9b::a9fe:a9fe]/v1",
    "http://10.1.2.3/v1",
    "http://192.168.0.7:8000/v1",
    "http://[fd12::1]/v1",
    "http://[fec0::1]/v1",
]
ALLOWED = ["http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "http://localhost/v1", "https://1.1.1.1/v1"]


@pytest.fixture
def server() -> Iterator[str]:
    """An API that answers each POST with who was asked for."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        body = (handler.headers["Host"] or "").encode()
        handler.send_response(302 if handler.path.endswith("/away") else 200)
        handler.send_header("Location", "http://169.254.169.254/")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with serving(respond) as url:
        yield url


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the system's resolver answer for a name: with one list of addresses after the other, the last for good."""

    def give(name: str, *answers: list[str]) -> None:
        left, real = list(answers), socket.getaddrinfo

        def resolve(host: str, port: int, *given: Any, **named: Any) -> list[tuple]:
            if host != name:
                return real(host, port, *given, **named)
            found = left.pop(0) if len(left) > 1 else left[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

        monkeypatch.setattr(outbound.socket, "getaddrinfo", resolve)

    return give


def post(url: str) -> httpx.Response:
    with outbound.client() as client:
        return client.post(url)


@pytest.mark.parametrize("url", FORBIDDEN)
def test_an_address_that_must_not_be_called_is_refused_before_and_while_connecting(url: str):
    with pytest.raises(ConfigurationError, match="RULER_JUDGE_BASE_URL"):
        outbound.check_url(url, "RULER_JUDGE_BASE_URL")
    with pytest.raises(outbound.Forbidden):
        post(url)


@pytest.mark.parametrize("url", ALLOWED)
def test_this_machine_and_the_public_may_be_called(url: str):
    outbound.check_url(url, "it")


@pytest.mark.parametrize("url", ["ftp://example.org", "file:///etc/passwd", "http://", "http://[::1", "gopher://x", ""])
def test_only_http_is_spoken(url: str):
    with pytest.raises(ConfigurationError, match="not the URL of a server"):
        outbound.check_url(url, "it")


def test_a_private_network_and_a_private_name_are_called_once_they_are_named(
    monkeypatch: pytest.MonkeyPatch, named: Callable[..., None], server: str
):
    named("vllm.internal", ["127.0.0.1"])
    url = server.replace("127.0.0.1", "vllm.internal")
    with pytest.raises(outbound.Forbidden, match=r"add vllm.internal to RL_ASSETS_PRIVATE_HOSTS"):
        post(url)
    monkeypatch.setenv(outbound.VARIABLE, "vllm.internal,10.0.0.0/8")
    assert post(url).text == urlsplit(url).netloc  # the name is still what the server is asked for
    outbound.check_url("http://10.1.2.3/v1", "it")
    with pytest.raises(ConfigurationError, match="private address"):
        outbound.check_url("http://127.0.0.1/v1", "it")


def test_even_a_named_host_is_not_called_at_the_address_of_credentials(
    monkeypatch: pytest.MonkeyPatch, named: Callable[..., None]
):
    monkeypatch.setenv(outbound.VARIABLE, "vllm.internal,169.254.0.0/16")
    named("vllm.internal", ["169.254.169.254"])
    with pytest.raises(outbound.Forbidden, match="never called"):
        post("http://vllm.internal/v1")
    with pytest.raises(ConfigurationError, match="never called"):
        outbound.check_url("http://169.254.169.254/", "it")


def test_the_answer_that_was_judged_is_the_one_that_is_connected_to(named: Callable[..., None], server: str):
    named("rebound.example", ["93.184.215.14", "127.0.0.1"])
    with pytest.raises(outbound.Forbidden, match="private address"):
        post(server.replace("127.0.0.1", "rebound.example"))
    # Public when it is judged, private when it is asked again: it is not asked again.
    port = urlsplit(server).port
    named("localhost", ["127.0.0.1"], ["169.254.169.254"])
    assert post(f"http://localhost:{port}/v1").status_code == 200


def test_an_address_that_refuses_leaves_the_next_one_to_be_tried(named: Callable[..., None], server: str):
    named("localhost", ["127.255.255.254", "127.0.0.1"])
    assert post(server.replace("127.0.0.1", "localhost")).status_code == 200


def test_numbers_that_only_a_resolver_reads_are_no_way_around(named: Callable[..., None]):
    for written in ("2130706433", "127.1", "0x7f.1"):
        outbound.check_url(f"http://{written}/", "it")
        named(written, ["127.0.0.1"])
        with pytest.raises(outbound.Forbidden):
            post(f"http://{written}/")


def test_a_redirect_is_an_answer_and_is_not_followed(server: str):
    assert post(f"{server}/away").status_code == 302


def test_asyncio_is_watched_too(named: Callable[..., None], server: str):
    async def ask(url: str) -> str:
        async with outbound.async_client() as client:
            return (await client.post(url)).text

    assert asyncio.run(ask(server)) == urlsplit(server).netloc
    named("evil.example", ["10.0.0.1"])
    with pytest.raises(outbound.Forbidden):
        asyncio.run(ask("http://evil.example/"))


@pytest.mark.parametrize("wrong", ["localhost,,x", "10.0.0.0/99", "a b", "1.2.3", "http://x"])
def test_a_list_that_cannot_be_read_is_named(wrong: str):
    with pytest.raises(ConfigurationError, match=outbound.VARIABLE):
        outbound.PrivateHosts.from_env({outbound.VARIABLE: wrong})


def test_none_closes_this_machine_too():
    closed = outbound.PrivateHosts.from_env({outbound.VARIABLE: "none"})
    assert not closed.allow("127.0.0.1", ipaddress.ip_address("127.0.0.1"))


@given(st.ip_addresses())
def test_what_is_allowed_by_default_is_public_or_this_machine(address: outbound.Address):
    if outbound.PrivateHosts.from_env({}).allow(str(address), address):
        assert address.is_global or address.is_loopback
        assert not address.is_link_local


def test_an_agent_behind_a_forbidden_address_is_refused_when_it_is_made():
    with pytest.raises(ConfigurationError, match="never called"):
        EndpointAgent("http://169.254.169.254/v1", "m")


def test_a_judge_at_a_name_that_leads_inside_ends_the_run(conn: psycopg.Connection, named: Callable[..., None]):
    named("judge.example", ["10.0.0.7"])
    members = ladder(3)
    judge = RulerJudge(RulerSettings(model="judge", base_url="http://judge.example/v1", api_key="k-123"), conn)
    with pytest.raises(ConfigurationError, match=r"judge.example \(10.0.0.7\) is a private address") as caught:
        judge.rank(grouped(members), {member.trajectory_id: member for member in members})
    assert "RULER_JUDGE_BASE_URL" in str(caught.value)
