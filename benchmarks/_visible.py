"""A judge on loopback that ranks episodes by what it can see of them: what each order has become worth by the last
prices that are shown. It reads the prompt alone, as a language model would; no result of an episode stands there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from rl_assets.market.config import WorldConfig
from rl_assets_tests.judging.judge_server import Asked, Reply, answer

_SHARED = re.compile(r"<shared \w+>(.*?)</shared", re.S)
_EPISODE = re.compile(r'<episode \w+ id="(\w+)">(.*?)</episode', re.S)
_STEP = re.compile(r"step (\d+)")
_LINE = re.compile(r"saw\| ([A-Z]) ([-+]?\d+\.\d+)(%?) ")
HALF_WAY = 100.0
"""Dollars that are worth half of what any gain can be worth."""


def by_moves(asked: Asked) -> Reply:
    """Rate every episode by the dollars that its orders have won by the last prices shown."""
    prompt = asked.body["messages"][-1]["content"]
    shared = _SHARED.search(prompt)
    common = dict(_prices(shared[1])) if shared else {}
    won = {name: _won(own, {**common, **dict(_prices(own))}) for name, own in _EPISODE.findall(prompt)}
    return Reply(answer({name: round(0.5 + gain / (2 * (abs(gain) + HALF_WAY)), 4) for name, gain in won.items()}))


def _steps(text: str) -> Iterator[tuple[int, str]]:
    """The number of the step that each line stands under, from 1, and the line."""
    number = 0
    for line in text.split("\n"):
        if found := _STEP.match(line):
            number = int(found[1])
        yield number, line


def _prices(text: str) -> Iterator[tuple[tuple[str, int], float]]:
    """By instrument and step: the price of YES in dollars, or of a perpetual as a multiple of its first."""
    for number, line in _steps(text):
        if found := _LINE.match(line):
            yield (found[1], number), 1.0 + float(found[2]) / 100 if found[3] else float(found[2])


def _won(text: str, prices: dict[tuple[str, int], float]) -> float:
    """Dollars that an episode's orders have won by the last prices, or by those at which they were closed."""
    last = max(number for _, number in prices)
    won, held = 0.0, {}
    for number, line in _steps(text):
        if not line.startswith("did| {"):
            continue
        action = json.loads(line.removeprefix("did| "))
        market, do = action.get("market"), action.get("do")
        if do == "close":
            won += sum(_worth(price, prices[market, number]) for price in held.pop(market, []))
        elif do is not None and market is not None:  # an answer that says nothing is shown as {}
            held.setdefault(market, []).append((do, float(action["size"]), prices[market, number]))
    return won + sum(_worth(order, prices[name, last]) for name, orders in held.items() for order in orders)


def _worth(order: tuple[str, float, float], price: float) -> float:
    """Dollars that an order (what, size in dollars, price) has won at another price."""
    do, size, paid = order
    if do in ("long", "short"):
        return size * WorldConfig().leverage * (price / paid - 1.0) * (1 if do == "long" else -1)
    ours, now = (paid, price) if do == "buy_yes" else (1.0 - paid, 1.0 - price)
    return size * (now / max(ours, 0.01) - 1.0)
