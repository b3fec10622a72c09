"""`rl-assets play`: an agent of ours at a market elsewhere, over A2A."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import click

from rl_assets.commands.entrants import ENDPOINT, KEY, endpoint_asked, key_in
from rl_assets.errors import RlAssetsError
from rl_assets.names import RULES
from rl_assets.text import printable

if TYPE_CHECKING:
    from rl_assets.a2a.client import Remote
    from rl_assets.a2a.player import Decider


@click.command()
@click.argument("url")
@click.option("--agent", type=click.Choice((ENDPOINT, *RULES)), required=True, help="Who decides.")
@click.option("--name", default=None, help="Name to be recorded under; <agent>-a2a if left out.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of a reference agent's draws.")
@click.option("--base-url", default=None, help="With --agent endpoint: an OpenAI-compatible API.")
@click.option("--model", default=None, help="With --agent endpoint: the model's name there.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="Of an endpoint.")
@click.option("--key-env", default=None, help=f"With --agent endpoint: variable with its key.  [default: {KEY}]")
def play(
    url: str,
    agent: str,
    name: str | None,
    seed: int,
    base_url: str | None,
    model: str | None,
    temperature: float,
    key_env: str | None,
) -> int:
    """Play the A2A server at URL: one of ours (`rl-assets serve`) to the end, or see what a live Babylon server offers.

    \b
    OPENAI_API_KEY      an endpoint's key, where it wants one
    RL_ASSETS_A2A_KEY   the key to join with, where the server wants one
    BABYLON_API_KEY     sent to a Babylon server as X-Babylon-Api-Key

    Exit code 1: the server cannot be reached, or cannot be played.
    """
    import asyncio

    from rl_assets.a2a.client import read_url
    from rl_assets.a2a.player import ModelDecider, RuleDecider

    read_url(url)
    asked = endpoint_asked(agent, base_url, model, key_env)
    if asked is None:
        decider = RuleDecider(agent, (seed,))
    else:
        decider = ModelDecider(*asked, key_in(key_env) if key_env else os.environ.get(KEY), temperature)
    # asyncio ends what is under way in good order, where the handler is Python's own.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return asyncio.run(_play(url, agent, decider, name or f"{agent}-a2a"))


async def _play(url: str, agent: str, decider: Decider, name: str) -> int:
    from rl_assets.a2a.client import connect
    from rl_assets.a2a.player import play as play_remote
    from rl_assets.commands.shown import console, progress, show_table
    from rl_assets.turns import JOIN_KEY

    async with connect(url) as remote:
        if not remote.is_market:
            return await _look(remote, url, agent)
        with progress() as report:
            join_key = os.environ.get(JOIN_KEY)
            played = await play_remote(remote, decider, name, join_key, lambda d, n: report("playing", d, n))
    rows = [(printable(str(what)), printable(str(value))) for what, value in played.result.items()]
    show_table(f"{name} at {url}, {played.ticks} ticks", ("what", "value"), rows)
    for reason, count in played.refused.items():
        console().print(f"held instead, {count} times: {reason}")
    return 0


async def _look(remote: Remote, url: str, agent: str) -> int:
    from rl_assets.a2a.babylon import missing, survey
    from rl_assets.commands.shown import console, show_table

    if key := os.environ.get("BABYLON_API_KEY"):
        remote.send_header("X-Babylon-Api-Key", key)
    offers = await survey(remote)
    rows = [(offer.operation, "yes" if offer.supported else "no", offer.found) for offer in offers]
    show_table(f"{printable(remote.card.name)} at {url}", ("operation", "supported", "answer"), rows)
    lacking = missing(offers)
    if agent == "hold":
        console().print("hold trades nothing, so there is nothing else to do here")
        return 0
    if lacking:
        raise RlAssetsError(
            f"this server does not support {', '.join(lacking)}, so {agent} cannot trade there; play it with "
            "--agent hold to look on, or play a market that `rl-assets serve` runs"
        )
    raise RlAssetsError(
        f"this server has operations to trade but no session and clock that {agent} could play by; play it with "
        "--agent hold to look on, or play a market that `rl-assets serve` runs"
    )
