"""Reading a command out of what a client sent, in any of the spellings that Babylon's clients use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rl_assets.a2a.session import Refused


@dataclass(frozen=True)
class Command:
    """An operation's name, in the spelling of `OPERATIONS` where it is one of them, and its parameters."""

    operation: str
    params: dict[str, Any]


def read_command(value: Any) -> Command:
    """A command from the JSON that a client sent. Raises Refused if it is not one.

    Forms: {"operation": …, "params": {…}} and {"action": …} with "params" or with the parameters beside it. Names may
    be in camel or snake case, with or without the old prefix `a2a.`.
    """
    given = [key for key in ("operation", "action") if isinstance(value, dict) and isinstance(value.get(key), str)]
    if len(given) != 1:
        raise Refused(
            'Structured command required. Provide a data part, or a text part of JSON, with { "operation": "...", '
            '"params": {...} } or { "action": "...", "params": {...} }'
        )
    (key,) = given
    rest = {name: item for name, item in value.items() if name != key}
    params = rest.pop("params", {} if rest else None)
    if params is None:
        params = {}
    if not isinstance(params, dict) or (rest and (params or key == "operation")):
        raise Refused("give the parameters as one object under `params`, or, with `action`, beside it")
    return Command(_camel(value[key]), rest or params)


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda m: m[1].upper(), name.removeprefix("a2a."))
