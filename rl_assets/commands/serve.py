"""`rl-assets serve`: a snapshot as an A2A server, and the record of what agents play there."""

from __future__ import annotations

import ipaddress
import os
import time
from typing import TYPE_CHECKING

import click

from rl_assets.errors import ConfigurationError

if TYPE_CHECKING:
    from rl_assets.a2a.session import Room

SHORTEST_KEY = 16


@click.command()
@click.argument("snapshot_ids", metavar="SNAPSHOT_ID...", nargs=-1, required=True)
@click.option("--port", type=click.IntRange(1, 65535), default=41241, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--url", default=None, help="Where agents reach it, if not at the address it listens on.")
@click.option("--agents", type=click.IntRange(1, 64), default=1, show_default=True, help="Agents that share a clock.")
@click.option("--sessions", type=click.IntRange(1, 4096), default=64, show_default=True, help="Sessions at once.")
def serve(snapshot_ids: tuple[str, ...], port: int, host: str, url: str | None, agents: int, sessions: int) -> None:
    """Let agents play snapshots over A2A 0.3, until Ctrl-C. Every episode is recorded when its market closes.

    Each time that an agent joins it plays the next of them, and after the last the first.

    \b
    RL_ASSETS_A2A_KEY   what agents must send to join; needed to listen beyond this machine
    """
    import logging

    from rl_assets.a2a.lobby import Limits, Lobby
    from rl_assets.a2a.record import recorder
    from rl_assets.a2a.server import MarketServer, build_app
    from rl_assets.market.snapshot import load_world
    from rl_assets.services import check_port, databases
    from rl_assets.settings import Settings
    from rl_assets.store.database import migrate
    from rl_assets.turns import JOIN_KEY

    settings = Settings.from_env()
    key = os.environ.get(JOIN_KEY) or None
    _check_exposure(host, url, key)
    worlds = [load_world(settings.tree.snapshots, snapshot_id) for snapshot_id in snapshot_ids]
    check_port(host, port)
    logging.getLogger("a2a").setLevel(logging.CRITICAL)  # it logs what callers send
    lines = frozenset({settings.model_line})
    lobby = Lobby(worlds, agents=agents, limits=Limits(sessions=sessions), lines=lines, key=key)
    hosts = None if url is not None or not _is_loopback(host) else ["localhost", "127.0.0.1", "[::1]", host]
    with databases(settings) as urls:
        migrate(urls.babylon)
        write = recorder(urls.babylon)

        def record(room: Room) -> None:
            write(room)
            for session in room.sessions:
                click.echo(f"{session.agent}: {'left' if session.gone else session.trajectory_id}")

        server = MarketServer(lambda listening: build_app(lobby, record, url=url or listening, hosts=hosts), host)
        try:
            server.start(port)
            sharing = "each agent has its own clock" if agents == 1 else f"{agents} agents share a clock"
            click.echo(f"{url or server.url}  {', '.join(snapshot_ids)}; {sharing} (Ctrl-C ends it)")
            while server.running:
                time.sleep(0.5)
        except KeyboardInterrupt:
            click.echo("stopping")
        finally:
            server.stop()


def _check_exposure(host: str, url: str | None, key: str | None) -> None:
    """Raise ConfigurationError if strangers could play, or nobody could find the way."""
    from rl_assets.turns import JOIN_KEY

    if key is not None and len(key) < SHORTEST_KEY:
        raise ConfigurationError(
            f"{JOIN_KEY} has fewer than {SHORTEST_KEY} characters; set a longer secret, or unset it"
        )
    if not _is_loopback(host) and key is None:
        raise ConfigurationError(
            f"--host {host} lets other machines in: set {JOIN_KEY} to a secret that agents send to join, or leave "
            "--host out"
        )
    if host in ("0.0.0.0", "::") and url is None:
        raise ConfigurationError(f"--host {host} is every address of this machine: say with --url what agents call")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
