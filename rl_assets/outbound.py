"""HTTP to addresses that people name: the judge, models behind an API, A2A servers, the alerts' webhook.

Which hosts may be called is decided here, once for all of them. A name is looked up and its answers are judged in the
moment of connecting, and the connection goes to that very answer, so no later answer of its server can lead elsewhere.
Redirects are not followed. Addresses of the link itself, where clouds keep the machine's credentials, are never called;
private ones only where `RL_ASSETS_PRIVATE_HOSTS` names them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx

from rl_assets.errors import ConfigurationError

VARIABLE = "RL_ASSETS_PRIVATE_HOSTS"
DEFAULT = "localhost,127.0.0.0/8,::1"
"""This machine: a judge or model that runs here is the usual one."""

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER = [ipaddress.ip_network(n) for n in ("100.100.100.200/32", "fd00:ec2::254/128", "fd20:ce::254/128")]
"""Where clouds answer with credentials, outside the link's own addresses."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.ASCII)


class Forbidden(httpx.ConnectError):
    """A name leads to an address that must not be called; the message says what to do."""


@dataclass(frozen=True)
class PrivateHosts:
    """names: hosts whose address may be private. networks: addresses that may be named as such."""

    names: frozenset[str]
    networks: tuple[Network, ...]

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> PrivateHosts:
        """Read `RL_ASSETS_PRIVATE_HOSTS`: names, addresses and networks, with commas between, or `none`.

        Raises ConfigurationError.
        """
        text = ((os.environ if env is None else env).get(VARIABLE) or "").strip() or DEFAULT
        names, networks = set(), []
        for part in [] if text == "none" else [part.strip().lower() for part in text.split(",")]:
            try:
                networks.append(ipaddress.ip_network(part))
            except ValueError:
                if not _NAME.fullmatch(part) or part.replace(".", "").isdigit():
                    raise ConfigurationError(
                        f"{VARIABLE} holds {part!r}, which is no host and no network; write it like "
                        "localhost,10.1.0.0/16, or none"
                    ) from None
                names.add(part)
        return cls(frozenset(names), tuple(networks))

    def __str__(self) -> str:
        return ", ".join([*sorted(self.names), *map(str, self.networks)]) or "none"

    def allow(self, host: str, address: Address) -> bool:
        """Whether `host` may be called at an address that it stands for, or is."""
        inner = _embedded(address)
        if inner.is_link_local or inner.is_multicast or inner.is_unspecified or any(inner in net for net in _NEVER):
            return False
        if inner.is_global and not getattr(inner, "is_site_local", False):
            return True
        if _literal(host) is None:
            return host.lower().rstrip(".") in self.names
        return any(inner in network for network in self.networks)


def check_url(url: str, name: str) -> None:
    """Raise ConfigurationError unless a URL may be called, as far as that can be told without looking its host up.

    name: of the setting, for the message, which repeats neither password nor query.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{name} is not the URL of a server; write it like https://example.org/v1")
    address = _literal(host)
    if address is not None and not PrivateHosts.from_env().allow(host, address):
        raise ConfigurationError(f"{name}: {_refusal(host, address)}")


def client(**options: Any) -> httpx.Client:
    """An HTTP client that calls only what may be called. options: of httpx.Client."""
    return httpx.Client(transport=Transport(), follow_redirects=False, **options)


def async_client(**options: Any) -> httpx.AsyncClient:
    """The same for asyncio."""
    return httpx.AsyncClient(transport=AsyncTransport(), follow_redirects=False, **options)


class Transport(httpx.HTTPTransport):
    """Connects to the addresses that a host has now, if they may be called. Raises Forbidden."""

    def __init__(self) -> None:
        super().__init__(verify=certificates())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host, port = request.url.host, request.url.port
        refused = None
        for address in _permitted(host, _found(host, port, request)):
            try:
                return super().handle_request(_directed(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                refused = error
        raise refused or _unknown(host, request)


class AsyncTransport(httpx.AsyncHTTPTransport):
    """The same for asyncio."""

    def __init__(self) -> None:
        super().__init__(verify=certificates())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, port = request.url.host, request.url.port
        literal = _literal(host)
        found = [literal] if literal else await asyncio.to_thread(_found, host, port, request)
        refused = None
        for address in _permitted(host, found):
            try:
                return await super().handle_async_request(_directed(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                refused = error
        raise refused or _unknown(host, request)


@cache
def certificates() -> ssl.SSLContext:
    """Which servers are believed to be who they say. Read once: it takes 40 ms."""
    return httpx.create_ssl_context()


def _found(host: str, port: int | None, request: httpx.Request) -> list[Address]:
    """The addresses of a host, in the order of the system's resolver."""
    if (address := _literal(host)) is not None:
        return [address]
    try:
        answers = socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _unknown(host, request) from None
    return list(dict.fromkeys(ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers))


def _permitted(host: str, addresses: Sequence[Address]) -> Iterator[Address]:
    """The addresses, if all of them may be called: a name that mixes them is not trusted with any."""
    allowed = PrivateHosts.from_env()
    for address in addresses:
        if not allowed.allow(host, address):
            raise Forbidden(_refusal(host, address))
    yield from addresses


def _directed(request: httpx.Request, address: Address) -> httpx.Request:
    """The request, to an address; its Host header and the name in its certificate stay those of the URL."""
    host = request.url.host
    named = {} if _literal(host) is not None else {"sni_hostname": host}
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, **named},
    )


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address is only another way to write, or leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _refusal(host: str, address: Address) -> str:
    inner = _embedded(address)
    where = host if _literal(host) is not None else f"{host} ({address})"
    if inner.is_link_local or any(inner in network for network in _NEVER):
        return f"{where} is an address where clouds keep credentials, which is never called; name another host"
    if inner.is_multicast or inner.is_unspecified:
        return f"{where} is not the address of a server; name another host"
    return f"{where} is a private address; if it is meant, add {host} to {VARIABLE}"


def _unknown(host: str, request: httpx.Request) -> httpx.ConnectError:
    return httpx.ConnectError(f"the host {host} is not known", request=request)
