"""Responses read as orders: the first JSON object in a text, and what the market makes of it.

What the rules say of actions belongs in `rl_assets.agents.prompt`; a change here changes its `PROMPT_VERSION` too.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Orders

MOST_DOLLARS = 1e9
"""Beyond this a size is not an amount of money; JSON has numbers that no float can hold."""


def parse(response: str) -> dict[str, Any]:
    """The first JSON object in a response. Raises ValueError that says what is wrong with it."""
    start = response.find("{")
    if start < 0:
        raise ValueError("no JSON object in the response")
    try:
        action, _ = json.JSONDecoder().raw_decode(response, start)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("the JSON of the response is broken") from error
    return action


_DEEP = {do.name.lower(): do for do in (Do.JOIN, Do.POST_UP, Do.POST_DOWN)}
_DO = {do.name.lower(): do for do in Do if do != Do.INVALID and do.name.lower() not in _DEEP}


def to_orders(responses: list[str], config: WorldConfig) -> tuple[Orders, list[dict[str, Any]], list[str | None]]:
    """Orders, parsed actions and parse errors of one response per episode. An unreadable one becomes Do.INVALID."""
    n = len(responses)
    do, instrument, size = np.full(n, Do.INVALID, np.int8), np.zeros(n, np.int16), np.zeros(n)
    actions: list[dict[str, Any]] = []
    errors: list[str | None] = []
    deep = bool(config.channels or config.post_influence)
    for row, response in enumerate(responses):
        read = _read_deep(response, config) if deep else None
        (do[row], instrument[row], size[row]), action, error = read or _read_action(response, config.instruments)
        actions.append(dict(action))
        errors.append(error)
    return Orders(do, instrument, size), actions, errors


def _read_action(response: str, names: tuple[str, ...]) -> tuple[tuple[int, int, float], dict[str, Any], str | None]:
    invalid = (int(Do.INVALID), 0, 0.0)
    try:
        action = parse(response)
    except ValueError as error:
        return invalid, {}, str(error)
    kind = _DO.get(action["do"]) if isinstance(action.get("do"), str) else None
    if kind is None:
        return invalid, {}, "`do` is not one of the schema"
    if kind == Do.HOLD:
        return (int(kind), 0, 0.0), {"do": "hold"}, None
    market = action.get("market")
    if not isinstance(market, str) or market not in names:
        return invalid, {"do": kind.name.lower()}, "`market` is not one of this world"
    place = names.index(market)
    if kind == Do.CLOSE:
        return (int(kind), place, 0.0), {"market": market, "do": "close"}, None
    size = action.get("size")
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not abs(size) <= MOST_DOLLARS:
        return invalid, {"market": market, "do": kind.name.lower()}, "`size` is not an amount of dollars"
    return (int(kind), place, float(size)), {"market": market, "do": kind.name.lower(), "size": size}, None


def _read_deep(response: str, config: WorldConfig) -> tuple[tuple[int, int, float], dict[str, Any], str | None] | None:
    """An action that only some worlds have, or None where the response holds another or none."""
    try:
        action = parse(response)
    except ValueError:
        return None
    told = action.get("do")
    kind = _DEEP.get(told) if isinstance(told, str) else None
    if kind is None:
        return None
    field, names = ("chat", config.channels) if kind == Do.JOIN else ("market", config.instruments)
    name = action.get(field)
    if not isinstance(name, str) or name not in names:
        return (int(Do.INVALID), 0, 0.0), {"do": told}, f"`{field}` is not one of this world"
    return (int(kind), names.index(name), 0.0), {field: name, "do": told}, None
