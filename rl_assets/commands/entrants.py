"""Agents as the command line names them: reference agents, checkpoints, models behind an API, A2A agents."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rl_assets.commands.opened import opened
from rl_assets.errors import ConfigurationError
from rl_assets.names import MODEL, REFERENCE_AGENTS

if TYPE_CHECKING:
    from rl_assets.agents.comparison import Entrant
    from rl_assets.episodes import Policy
    from rl_assets.registry.checkpoints import RemoteCheckpoint
    from rl_assets.registry.models import PlayableModel

KEY = "OPENAI_API_KEY"
OPENAI, A2A = "openai:", "a2a:"
ENDPOINT = "endpoint"


@dataclass(frozen=True)
class Asking:
    """How agents elsewhere are asked. keys: variable with the key of each host, "" standing for the only one."""

    temperature: float
    max_tokens: int
    concurrency: int
    timeout: float
    retries: int
    keys: Mapping[str, str]


def entrants_of(names: Sequence[str], siblings: int, asking: Asking) -> list[Entrant]:
    """The agents that were named, in order. Raises ConfigurationError, MissingCheckpoint or LedgerConflict."""
    line = [name for name in names if name.partition("@")[0] == MODEL]
    models = _models(line) if line else {}
    return [_entrant(name, siblings, asking, models) for name in names]


def _entrant(name: str, siblings: int, asking: Asking, models: Mapping[str, PlayableModel]) -> Entrant:
    from rl_assets.agents.comparison import Entrant
    from rl_assets.agents.runner import ReferenceAgent
    from rl_assets.episodes import Policy

    if name in REFERENCE_AGENTS:
        return Entrant(ReferenceAgent(name), {"kind": "reference"}, siblings)
    if name.startswith(A2A):
        from rl_assets.a2a.respondent import A2AAgent

        agent = A2AAgent(name.removeprefix(A2A), concurrency=asking.concurrency)
        return Entrant(agent, {"kind": "a2a", "url": name.removeprefix(A2A)}, siblings)
    if name.startswith(OPENAI):
        return _endpoint(name, siblings, asking)
    if name in models:
        found = models[name]
        return _checkpoint(found.checkpoint_path, Policy(found.model_line, found.step), found.digest, siblings, asking)
    if Path(name).is_dir():
        from rl_assets.registry.checkpoints import checkpoint_digest

        return _checkpoint(Path(name), Policy(name), checkpoint_digest(Path(name)), siblings, asking)
    raise ConfigurationError(
        f"{name!r} is no agent: name one of {', '.join(REFERENCE_AGENTS)}, model, model@STEP, a directory with a "
        "checkpoint, openai:NAME@URL or a2a:URL"
    )


def _checkpoint(path: Path | RemoteCheckpoint, policy: Policy, digest: str, siblings: int, asking: Asking) -> Entrant:
    """A checkpoint, wherever it is played: here, by vLLM, or at W&B behind its endpoint."""
    from rl_assets.agents.comparison import Entrant
    from rl_assets.agents.line_player import remote_of

    agent = remote_of(path, policy, asking.temperature)
    if agent is None:
        from rl_assets.agents.neural import NeuralAgent

        assert isinstance(path, Path)
        agent = NeuralAgent(path, policy, temperature=asking.temperature)
    return Entrant(agent, {"kind": "checkpoint", "digest": digest, "temperature": asking.temperature}, siblings)


def _endpoint(name: str, siblings: int, asking: Asking) -> Entrant:
    from rl_assets.a2a.client import read_url
    from rl_assets.agents.comparison import Entrant
    from rl_assets.agents.endpoint import EndpointAgent

    model, base_url = _endpoint_of(name)
    read_url(base_url)
    host = urlsplit(base_url).netloc
    variable = asking.keys.get(host, asking.keys.get(""))
    agent = EndpointAgent(
        base_url,
        model,
        api_key=os.environ.get(variable) if variable else None,
        temperature=asking.temperature,
        max_tokens=asking.max_tokens,
        concurrency=asking.concurrency,
        timeout=asking.timeout,
        retries=asking.retries,
    )
    identity = {
        "kind": "openai",
        "base_url": base_url,
        "model": model,
        "temperature": asking.temperature,
        "max_tokens": asking.max_tokens,
    }
    return Entrant(agent, identity, siblings)


def _endpoint_of(name: str) -> tuple[str, str]:
    """Model and URL of `openai:NAME@URL`. A name may hold an @, a URL here may not."""
    model, _, base_url = name.removeprefix(OPENAI).rpartition("@")
    if not model:
        raise ConfigurationError("an endpoint is written like openai:NAME@http://127.0.0.1:8000/v1")
    return model, base_url


def endpoint_asked(agent: str, base_url: str | None, model: str | None, key_env: str | None) -> tuple[str, str] | None:
    """URL and model where an endpoint is to play, None where another agent is. Raises ConfigurationError where the
    options do not fit the agent."""
    from rl_assets.a2a.client import read_url

    if agent != ENDPOINT:
        if base_url or model or key_env:
            raise ConfigurationError("--base-url, --model and --key-env are for --agent endpoint; leave them out")
        return None
    if not base_url or not model:
        raise ConfigurationError("--agent endpoint asks an API: say which with --base-url and --model")
    read_url(base_url)
    return base_url, model


def key_in(variable: str) -> str:
    """The key that a variable holds which --key-env names. Raises ConfigurationError where it is not set."""
    key = os.environ.get(variable)
    if not key:
        raise ConfigurationError(f"--key-env names {variable}, which is not set; set it to the key")
    return key


def keys_of(key_env: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The variable that holds the key of each host. A key goes to one host alone, whoever else takes part.

    Raises ConfigurationError where it is not clear which one.
    """
    hosts = {urlsplit(_endpoint_of(name)[1]).netloc for name in names if name.startswith(OPENAI)}
    keys: dict[str, str] = {}
    for entry in key_env:
        host, _, variable = entry.rpartition("=")
        key_in(variable)
        if host not in hosts and not (host == "" and len(hosts) == 1):
            raise ConfigurationError(
                f"--key-env {entry} does not say which API gets the key; write HOST=VARIABLE, with HOST one of "
                f"{', '.join(sorted(hosts)) or 'those of the agents openai:NAME@URL, of which there is none'}"
            )
        keys[host] = variable
    if not keys and os.environ.get(KEY):
        if len(hosts) > 1:
            raise ConfigurationError(
                f"{KEY} is set, and there are {len(hosts)} APIs: say which one gets it with --key-env HOST={KEY}, with "
                f"HOST one of {', '.join(sorted(hosts))}, or unset it"
            )
        keys[""] = KEY
    return keys


def _models(names: Sequence[str]) -> dict[str, PlayableModel]:
    from rl_assets.registry.models import get_latest_rl_model, get_model, playable

    found = {}
    with opened() as (conn, settings):
        for name in names:
            step = name.removeprefix(MODEL).removeprefix("@")
            if name == MODEL:
                found[name] = get_latest_rl_model(conn, settings.model_line)
            elif step.isascii() and step.isdigit() and len(step) < 10:
                found[name] = playable(get_model(conn, settings.model_line, int(step)))
            else:
                raise ConfigurationError(f"{name!r} is no model; write model, or model@3 for step 3 of the line")
    return found
