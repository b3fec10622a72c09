"""The conversation format: rules, observations and actions as text. Every policy reads and writes this.

A change of wording is a change of `PROMPT_VERSION`: episodes of different versions are never compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rl_assets.market.actions import parse
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Engine, Orders
from rl_assets.market.snapshot import at_tick
from rl_assets.market.sources import SOURCES, WIRE

PROMPT_VERSION = "market-1"
SIZES = (25, 50, 100)
"""Dollars that the rules suggest; any size of at least one dollar is accepted."""
MONEY_STEP = 25
"""Dollars to which money is rounded in observations."""
PERP_STEP = 0.5
"""Percent to which moves of perpetuals are rounded in observations."""

HOLD_TEXT = '{"do":"hold"}'
_HEAD = re.compile(r"t \d+ cash (\d+)", re.ASCII)


@dataclass(frozen=True)
class Means:
    """What an observation says an agent has. cash: dollars, at most the largest of SIZES. held: instruments in which it
    has a position."""

    cash: int
    held: frozenset[str]


def system_message(config: WorldConfig) -> str:
    """The rules of a world and the schema of an action."""
    lines = [
        f"You trade for {config.ticks} ticks with ${config.start_cash:.0f}. Earn as much as you can.",
    ]
    if config.markets:
        lines.append(
            "Prediction markets pay $1 per share of the side that comes true. The first number is the price of YES."
        )
    if config.perps:
        lines.append(
            f"Perpetuals are long or short with {config.leverage}x leverage. "
            "The first number is the move since the start."
        )
    lines += _rules_of_depth(config)
    lines += [
        "Sources post whether something is worth more or less than its price. Some know, some guess, some mislead.",
        'Answer each tick with one JSON action: {"do":"hold"} or {"market":"A","do":"buy_yes","size":50}.',
        "do: buy_yes, buy_no, sell_yes, sell_no on a prediction market; long, short on a perpetual; close on both.",
        f"size: dollars, on a perpetual of margin. An invalid action costs ${config.breach_fee:.0f}.",
    ]
    return "\n".join(lines)


def _rules_of_depth(config: WorldConfig) -> list[str]:
    """What is true of this world and not of the plain one."""
    lines = []
    if config.common:
        lines.append("What moves one market moves the others in part.")
    if config.news_rate:
        lines.append(f"@{WIRE.name} tells of a jump of a perpetual before it comes, and is mostly right.")
    if config.channels:
        prices = zip(config.channels, config.channel_prices, strict=True)
        offers = ", ".join(f"{name} ${price:.0f}" if price else f"{name} free" for name, price in prices)
        lines.append(f"Join to read what is said there ({offers}): {render(Do.JOIN, config.channels[0], 0)}.")
    if config.post_influence:
        lines.append(f"A post of yours sways the crowd for a while: {render(Do.POST_UP, 'A', 0)} or post_down.")
    return lines


def observations(engine: Engine) -> list[str]:
    """What each episode sees now: tick, cash, a line per instrument (price, change, what is held), then the posts."""
    config, tick, world = engine.config, engine.tick, engine.world
    prices = np.rint(engine.prices * 100).astype(int)
    perps = engine.perp_prices
    value_yes = _money(engine.yes * engine.prices)
    value_no = _money(engine.no * (1.0 - engine.prices))
    value_perp = _money(engine.margin)
    cash = (np.floor(engine.cash / MONEY_STEP) * MONEY_STEP).astype(int)
    earlier = engine.earlier_prices
    moved = np.rint(engine.prices * 100).astype(int) - np.rint(earlier * 100).astype(int)
    since_start = _percent(perps / engine.first_perp_prices - 1.0)
    since_last = _percent(perps / engine.earlier_perp_prices - 1.0)
    posts: dict[int, str] = {}
    names = config.instruments
    for place, snapshot in enumerate(engine.unique):
        said = at_tick(snapshot.posts, tick)
        posts[place] = "".join(f"\n@{p.source} {'up' if p.up else 'down'} {names[p.instrument]}" for p in said)
    texts = []
    for row in range(engine.n):
        parts = [f"t {tick + 1} cash {cash[row]}"]
        for m in range(config.markets):
            held = f" yes {value_yes[row, m]}" if engine.yes[row, m] > 0 else ""
            held += f" no {value_no[row, m]}" if engine.no[row, m] > 0 else ""
            parts.append(f"\n{names[m]} {prices[row, m] / 100:.2f} {moved[row, m] / 100:+.2f}{held or ' flat'}")
        for p in range(config.perps):
            units = engine.units[row, p]
            held = f" {'long' if units > 0 else 'short'} {value_perp[row, p]}" if units else " flat"
            parts.append(f"\n{names[config.markets + p]} {since_start[row, p]:+.1f}% {since_last[row, p]:+.1f}%{held}")
        texts.append("".join(parts) + posts[world[row]])
    return [text + _whispers(engine, row) for row, text in enumerate(texts)] if config.channels else texts


def _whispers(engine: Engine, row: int) -> str:
    """Where an episode has joined, and what is said there now."""
    inside = {name for name, joined in zip(engine.config.channels, engine.joined[row], strict=True) if joined}
    names = engine.config.instruments
    said = [
        f"\n#{p.source} {'up' if p.up else 'down'} {names[p.instrument]}"
        for p in at_tick(engine.unique[engine.world[row]].whispers, engine.tick)
        if p.source in inside
    ]
    joined = [name for name in engine.config.channels if name in inside]
    return (f"\nin {' '.join(joined)}" if joined else "") + "".join(said)


def render(do: Do, instrument: str, size: float) -> str:
    """The canonical text of an action."""
    if do == Do.HOLD:
        return HOLD_TEXT
    if do == Do.CLOSE:
        return f'{{"market":"{instrument}","do":"close"}}'
    if do == Do.JOIN:
        return f'{{"chat":"{instrument}","do":"join"}}'
    if do in (Do.POST_UP, Do.POST_DOWN):
        return f'{{"market":"{instrument}","do":"{do.name.lower()}"}}'
    return f'{{"market":"{instrument}","do":"{do.name.lower()}","size":{size}}}'


def render_orders(orders: Orders, config: WorldConfig) -> list[str]:
    names, channels = config.instruments, config.channels
    return [
        render(Do(int(do)), (channels if do == Do.JOIN else names)[int(i)] if do else "", int(size))
        for do, i, size in zip(orders.do, orders.instrument, orders.size, strict=True)
    ]


def legal_actions(config: WorldConfig) -> list[str]:
    """Every canonical action of a world, in a fixed order: what a grammar may let a policy say."""
    texts = [HOLD_TEXT]
    for place, name in enumerate(config.instruments):
        kinds = (Do.BUY_YES, Do.BUY_NO) if place < config.markets else (Do.LONG, Do.SHORT)
        texts += [render(do, name, size) for do in kinds for size in SIZES]
        texts.append(render(Do.CLOSE, name, 0))
        if config.post_influence and place < config.markets:
            texts += [render(Do.POST_UP, name, 0), render(Do.POST_DOWN, name, 0)]
    return texts + [render(Do.JOIN, name, 0) for name in config.channels]


def means_of(observation: str) -> Means | None:
    """What an agent who sees this has to act with; None where the text is not an observation of this format."""
    first, *lines = observation.split("\n")
    head = _HEAD.fullmatch(first)
    if head is None:
        return None
    held = (line.split(" ", 1)[0] for line in lines if line[:1] not in ("@", "#") and not line.endswith(" flat"))
    return Means(min(int(head[1]), SIZES[-1]), frozenset(held))


def suffices(means: Means, action: str) -> bool:
    """Whether the exchange would take a canonical action from who has these means: nobody spends more than there is, or
    closes what is not open. A perpetual's fee comes on top, so that very rarely one is refused all the same."""
    market, do, size = _asked(action)
    return market in means.held if do == Do.CLOSE else size <= means.cash


@lru_cache(maxsize=1024)
def _asked(action: str) -> tuple[str, Do, float]:
    read = parse(action)
    return read.get("market", ""), Do[read["do"].upper()], read.get("size", 0.0)


def vocabulary() -> list[str]:
    """Pieces of text that the format is made of, for a tokenizer of the domain. Order is fixed.

    In the plain world each action and each post is one piece: what a post means for an action is then a sum over the
    posts in sight, which a small policy learns far sooner than to put it together from words.
    """
    from rl_assets.market.config import MARKET_NAMES, PERP_NAMES

    names = MARKET_NAMES + PERP_NAMES
    pieces = [f"t {tick}" for tick in range(1, 25)] + [" cash", " flat", " yes", " no", " long", " short"]
    pieces += [f"\n{name}" for name in names] + [f" {name}" for name in names]
    pieces += [f"\n@{source.name} {way}" for source in SOURCES for way in ("up", "down")]
    pieces += [f" {amount}" for amount in range(0, 3001, MONEY_STEP)]
    pieces += [f" {cents / 100:.2f}" for cents in range(1, 100)]
    pieces += [f" {cents / 100:+.2f}" for cents in range(-30, 31)]
    pieces += [f" {step * PERP_STEP:+.1f}%" for step in range(-30, 31)]
    pieces += [HOLD_TEXT] + [f'{{"market":"{name}"' for name in names]
    pieces += [
        f',"do":"{do.name.lower()}"' for do in (Do.BUY_YES, Do.BUY_NO, Do.SELL_YES, Do.SELL_NO, Do.LONG, Do.SHORT)
    ]
    pieces += [',"do":"close"}'] + [f',"size":{size}}}' for size in SIZES]
    plain = WorldConfig()
    pieces += [f"\n@{s.name} {way} {name}" for s in SOURCES for way in ("up", "down") for name in plain.instruments]
    return list(dict.fromkeys(pieces + legal_actions(plain)))


def _money(value: np.ndarray) -> np.ndarray:
    return np.maximum(np.rint(value / MONEY_STEP), 1).astype(int) * MONEY_STEP


def _percent(fraction: np.ndarray) -> np.ndarray:
    return np.rint(fraction * 100 / PERP_STEP) * PERP_STEP + 0.0
