"""`rl-assets live`: agents that play a live market tick by tick, the points they do it for, and a tick by hand."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from rl_assets.commands.entrants import ENDPOINT, endpoint_asked
from rl_assets.commands.opened import opened
from rl_assets.errors import ConfigurationError, RlAssetsError
from rl_assets.names import MODEL, RULES, fault_of

if TYPE_CHECKING:
    from rl_assets.turns import Kind

DEFAULT_SECONDS, DEFAULT_MEMORY_MB = 60, 2048


@click.group()
def live() -> None:
    """Live agents: register, list, points, stop, and play one tick."""


@live.command()
@click.argument("name")
@click.option("--agent", type=click.Choice((MODEL, ENDPOINT, *RULES)), required=True, help="Who decides.")
@click.option("--scenario", default="live", show_default=True, help="What its episodes are grouped by, with the hour.")
@click.option("--points", type=click.IntRange(0), default=0, show_default=True, help="Given now, on top of its own.")
@click.option("--cost", type=click.IntRange(0), default=1, show_default=True, help="Points per tick.")
@click.option("--seconds", type=click.IntRange(1, 240), default=DEFAULT_SECONDS, show_default=True, help="Of a tick.")
@click.option("--memory", type=click.IntRange(64), default=DEFAULT_MEMORY_MB, show_default=True, help="MiB of a tick.")
@click.option("--base-url", default=None, help="With --agent endpoint: an OpenAI-compatible API.")
@click.option("--model", default=None, help="With --agent endpoint: the model's name there.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=1.0, show_default=True, help="Of an endpoint.")
@click.option("--key-env", default=None, help="With --agent endpoint: the variable <NAME>_API_KEY with its key.")
def register(
    name: str,
    agent: str,
    scenario: str,
    points: int,
    cost: int,
    seconds: int,
    memory: int,
    base_url: str | None,
    model: str | None,
    temperature: float,
    key_env: str | None,
) -> None:
    """Register an agent under NAME, or change how it plays. An agent of Babylon is named by its user name.

    `model` is the champion of the model line, or the candidate where a rollout has reached the agent; `endpoint` a
    model behind an API; the others are reference agents.
    """
    from rl_assets.settings import Settings
    from rl_assets.store.live import give_points
    from rl_assets.store.live import register as enter

    if (fault := fault_of(name, {Settings.from_env().model_line})) is not None:
        raise ConfigurationError(fault)
    if not 1 <= len(scenario) <= 100:
        raise ConfigurationError("a scenario has 1 to 100 characters; shorten it")
    kind, policy = _policy(agent, base_url, model, temperature, key_env)
    with opened() as (conn, _), conn.transaction():
        enter(conn, name, kind, policy, scenario=scenario, cost=cost, seconds=seconds, memory_mb=memory)
        balance = give_points(conn, name, points, "registered")
    click.echo(f"{name} plays as {agent} in scenario {scenario}; it has {balance} points and a tick costs {cost}")


@live.command(name="list")
def list_() -> None:
    """Every registered agent, its points and its last tick."""
    from rl_assets.commands.shown import show_table
    from rl_assets.store.live import live_agents

    with opened() as (conn, _):
        agents = live_agents(conn)
    rows = []
    for a in agents:
        who = a.policy.get("name") or a.policy.get("model") or a.kind
        state = "stopped" if not a.active else "rests" if a.rests else "plays"
        last = f"{a.last_tick:%Y-%m-%d %H:%M} {a.last_state}" if a.last_tick else "none"
        rows.append((a.name, who, a.scenario, state, a.points, a.cost, last, a.rests or a.last_reason or ""))
    show_table("live agents", ("name", "agent", "scenario", "state", "points", "cost", "last tick", "reason"), rows)


@live.command()
@click.argument("name")
@click.argument("points", type=int)
@click.option("--reason", default="by hand", show_default=True, help="Kept in the ledger.")
def points(name: str, points: int, reason: str) -> None:
    """Give an agent POINTS; write `-- -10` to take some."""
    from rl_assets.store.live import give_points

    with opened() as (conn, _):
        balance = give_points(conn, name, points, reason)
    click.echo(f"{name} has {balance} points")


@live.command()
@click.argument("name")
def stop(name: str) -> None:
    """Let an agent play no more ticks; registering it again starts it."""
    from rl_assets.store import live as agents

    with opened() as (conn, _):
        agents.stop(conn, name)
    click.echo(f"{name} is stopped")


@live.command()
@click.option("--market", default="", help="A2A URL of the market; LIVE_MARKET_URL if left out.")
@click.option("--at", default="", help="The tick, as 2026-11-25T10:05 in UTC; this minute if left out.")
def tick(market: str, at: str) -> int:
    """Play one tick with every active agent. A tick that was played is not played again.

    Exit code 1: nobody is registered, or agents failed and none played.
    """
    from rl_assets.a2a.client import read_url
    from rl_assets.agents.coordinator import FAILED, PLAYED, market_url, read_moment, run_tick, why_nothing_to_do
    from rl_assets.commands.shown import show_table
    from rl_assets.store.live import live_agents

    url = market_url(market)
    read_url(url)
    moment = read_moment(at)
    with opened() as (conn, settings):
        reports = run_tick(conn, moment, market_url=url, data_dir=settings.data_dir, model_line=settings.model_line)
        nothing = why_nothing_to_do(live_agents(conn))
    if not reports:
        raise RlAssetsError(str(nothing))
    rows = [(r.name, r.outcome + (" before" if r.again else ""), r.points, r.balance, r.reason or "") for r in reports]
    show_table(f"tick {moment:%Y-%m-%dT%H:%M} UTC at {url}", ("agent", "outcome", "points", "left", "reason"), rows)
    outcomes = {report.outcome for report in reports}
    return 1 if FAILED in outcomes and PLAYED not in outcomes else 0


def _policy(
    agent: str, base_url: str | None, model: str | None, temperature: float, key_env: str | None
) -> tuple[Kind, dict[str, Any]]:
    """What is kept of who decides. Raises ConfigurationError."""
    from rl_assets.agents.deciders import KEY_NAME

    asked = endpoint_asked(agent, base_url, model, key_env)
    if asked is None:
        return ("model", {}) if agent == MODEL else ("reference", {"name": agent})
    if key_env is not None and KEY_NAME.fullmatch(key_env) is None:
        raise ConfigurationError(
            "--key-env names a variable like OPENAI_API_KEY, which holds the key; do not give the key"
        )
    if key_env is not None and not os.environ.get(key_env):
        click.echo(f"{key_env} is not set here; set it where the ticks are played", err=True)
    policy = {"base_url": asked[0], "model": asked[1], "temperature": temperature}
    return "endpoint", policy | ({"key": key_env} if key_env else {})
