"""Reference agents: fixed rules that bound what a score can mean, from never trading to knowing the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rl_assets.agents.prompt import SIZES
from rl_assets.errors import ConfigurationError
from rl_assets.market.config import WorldConfig
from rl_assets.market.engine import Do, Orders
from rl_assets.market.snapshot import Post, Truth, at_tick
from rl_assets.market.sources import RELIABILITY
from rl_assets.names import REFERENCE_AGENTS

DRAWS = 5
"""Uniform numbers that a rule gets per tick."""


class Posts(Protocol):
    @property
    def posts(self) -> Sequence[Post]: ...


class Market(Protocol):
    """What rules read of an engine, in its shapes. Whoever plays a market from afar gives them the same."""

    @property
    def config(self) -> WorldConfig: ...
    @property
    def tick(self) -> int: ...
    @property
    def unique(self) -> Sequence[Posts]: ...
    @property
    def world(self) -> np.ndarray: ...
    @property
    def cash(self) -> np.ndarray: ...
    @property
    def prices(self) -> np.ndarray: ...
    @property
    def earlier_prices(self) -> np.ndarray: ...
    @property
    def perp_prices(self) -> np.ndarray: ...
    @property
    def earlier_perp_prices(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Seat:
    """What a rule may look at: the engine, the rows that are its own, uniform draws (rows, DRAWS), and, for the oracle
    alone, the truth of each row."""

    engine: Market
    rows: np.ndarray
    draws: np.ndarray
    truths: list[Truth] | None

    @property
    def said(self) -> tuple[np.ndarray, np.ndarray]:
        """Posts of this tick: weight float64 (rows, instruments), the log odds of "up" if each source is believed for
        what it is worth, and heard bool (rows, instruments), up int8 (rows, instruments) folded as +1/-1/0. A source
        that nobody knows, as in an imported snapshot, is worth a coin."""
        engine = self.engine
        width = engine.config.markets + engine.config.perps
        weight, told = np.zeros((len(engine.unique), width)), np.zeros((len(engine.unique), width))
        for place, snapshot in enumerate(engine.unique):
            for post in at_tick(snapshot.posts, engine.tick):
                sign = 1.0 if post.up else -1.0
                r = RELIABILITY.get(post.source, 0.5)
                weight[place, post.instrument] = sign * np.log(r / (1.0 - r))
                told[place, post.instrument] = sign
        return weight[engine.world[self.rows]], told[engine.world[self.rows]]


Rule = Callable[[Seat], Orders]


def rule(name: str) -> Rule:
    """The rule of a reference agent. Raises ConfigurationError for an unknown name."""
    try:
        return _RULES[name]
    except KeyError:
        known = ", ".join(REFERENCE_AGENTS)
        raise ConfigurationError(f"{name!r} is not a reference agent; choose from {known}") from None


def _hold(seat: Seat) -> Orders:
    return Orders.hold(len(seat.rows))


def _random(seat: Seat) -> Orders:
    config = seat.engine.config
    width = config.markets + config.perps
    instrument = np.minimum((seat.draws[:, 1] * width).astype(int), width - 1)
    score = np.where(seat.draws[:, 2] < 0.5, -1.0, 1.0)
    return _directed(seat, instrument, score, seat.draws[:, 0] < 0.6)


def _momentum(seat: Seat) -> Orders:
    return _on_moves(seat, 1.0)


def _contrarian(seat: Seat) -> Orders:
    return _on_moves(seat, -1.0)


def _on_moves(seat: Seat, sign: float) -> Orders:
    engine, rows = seat.engine, seat.rows
    moved = (engine.prices - engine.earlier_prices)[rows]
    drift = (engine.perp_prices / engine.earlier_perp_prices - 1.0)[rows] * 2.0
    change = np.concatenate([moved, drift], axis=1)
    instrument = np.abs(change).argmax(axis=1)
    change = np.take_along_axis(change, instrument[:, None], axis=1)[:, 0]
    return _directed(seat, instrument, sign * change, np.abs(change) > 0.01)


def _post_follower(seat: Seat) -> Orders:
    _, told = seat.said
    return _on_scores(seat, told, 0.5)


def _news_follower(seat: Seat) -> Orders:
    weight, _ = seat.said
    return _on_scores(seat, weight, 0.6)


def _oracle(seat: Seat) -> Orders:
    if seat.truths is None:
        raise ValueError("the oracle needs the truths of its snapshots")
    engine, rows = seat.engine, seat.rows
    latent = np.stack([t.latents()[-1] for t in seat.truths]) - engine.prices[rows]
    fair = (np.stack([t.fairs()[-1] for t in seat.truths]) / engine.perp_prices[rows] - 1.0) * 5.0
    edge = np.concatenate([latent, fair], axis=1)
    return _on_scores(seat, edge, 0.06)


def _on_scores(seat: Seat, scores: np.ndarray, threshold: float) -> Orders:
    """Trade the instrument of the largest score (ties broken by a draw) if it is above the threshold."""
    shuffled = np.modf(seat.draws[:, 3:4] * (7.13 * (1 + np.arange(scores.shape[1]))))[0]
    instrument = (np.abs(scores) + 1e-6 * shuffled).argmax(axis=1)
    score = np.take_along_axis(scores, instrument[:, None], axis=1)[:, 0]
    return _directed(seat, instrument, score, np.abs(score) > threshold)


def _directed(seat: Seat, instrument: np.ndarray, score: np.ndarray, act: np.ndarray) -> Orders:
    """Buy what is thought too cheap and sell short what is thought too dear, with a size that the account can bear."""
    config = seat.engine.config
    up = score > 0
    prediction = instrument < config.markets
    do = np.where(prediction, np.where(up, Do.BUY_YES, Do.BUY_NO), np.where(up, Do.LONG, Do.SHORT))
    size = np.asarray(SIZES, float)[np.minimum((seat.draws[:, 4] * len(SIZES)).astype(int), len(SIZES) - 1)]
    act = act & (seat.engine.cash[seat.rows] > size + 5.0)
    return Orders(np.where(act, do, Do.HOLD).astype(np.int8), instrument.astype(np.int16), size)


_RULES: dict[str, Rule] = {
    "hold": _hold,
    "random": _random,
    "momentum": _momentum,
    "contrarian": _contrarian,
    "post_follower": _post_follower,
    "news_follower": _news_follower,
    "oracle": _oracle,
}
