"""What an imported snapshot can measure, said honestly: checks that most files of Babylon's own generator fail.

A failed check does not forbid to play the snapshot. It says that a score on it is not skill.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rl_assets.market.audit import Check, audit_snapshot
from rl_assets.market.babylon import arithmetic
from rl_assets.market.babylon.snapshot import BabylonSnapshot, BabylonTruth, post_says
from rl_assets.market.snapshot import Snapshot, Truth

SURE = 0.01
"""Probability of coincidence below which something is taken to be there."""
LEAST_MARKETS = 8
"""Markets under which prices and outcomes cannot be told from chance."""
STAKE = 100.0
"""Dollars of the bets that are tried on the live game's pool."""
_MODULUS = 2**32


@dataclass(frozen=True)
class Foretold:
    """What the generator's state, read from one public number, tells: how many numbers it gets right, of how many."""

    source: str
    outcomes: tuple[int, int]
    prices: tuple[int, int]

    @property
    def gives_away(self) -> bool:
        """Whether that is more than chance: prices agree to nine digits or not at all, outcomes as coins do."""
        (outcomes, markets), (prices, of) = self.outcomes, self.prices
        return 2 * prices > of if of else outcomes == markets >= LEAST_MARKETS

    def __str__(self) -> str:
        return (
            f"{self.source} at tick 0, taken for a state of the generator, foretells {self.outcomes[0]} of "
            f"{self.outcomes[1]} outcomes and {self.prices[0]} of {self.prices[1]} later prices"
        )


def audit_imported(snapshot: BabylonSnapshot, truth: BabylonTruth) -> list[Check]:
    """Everything that a score on this snapshot would rest on, one check each."""
    told = foretell(snapshot, truth)
    known = told is not None and told.gives_away
    return [
        _hidden(told, known),
        _prices_tell(snapshot, truth, known),
        *_words_tell(snapshot, truth, known),
        _prices_move(snapshot),
        _trades_count(snapshot),
        _without_drift(snapshot, known),
        _distinct(snapshot),
        _pays(snapshot),
        Check(
            "luck_is_apart",
            False,
            "the file states outcomes and no probabilities, so that expected profit is realised profit, luck included",
        ),
    ]


def audit_any(snapshot: Snapshot, truth: Truth) -> list[Check]:
    """The audit of a snapshot: of an imported one what it can measure, of one of ours all that must hold."""
    if isinstance(snapshot, BabylonSnapshot) and isinstance(truth, BabylonTruth):
        return audit_imported(snapshot, truth)
    return audit_snapshot(snapshot, truth)


def summary(checks: Sequence[Check]) -> str:
    """What the checks come to, in one sentence."""
    failed = [check.name for check in checks if not check.passed]
    if not failed:
        return (
            "verdict: nothing was found against measuring skill on this snapshot; the gate never uses it all the same"
        )
    return (
        f"verdict: {len(failed)} of {len(checks)} checks fail ({', '.join(failed)}); play it for comparison with "
        "Babylon, not to measure skill; the gate never uses it"
    )


def foretell(snapshot: BabylonSnapshot, truth: BabylonTruth) -> Foretold | None:
    """Take the state of Babylon's generator (a 32-bit linear congruence) from the last perpetual's funding rate, or the
    last agent's profit, and draw on as the generator does. None where the file has no such number, or it is no draw."""
    config, agents = snapshot.config, len(snapshot.record["agents"])
    if config.perps:
        source, u, skip = "the last fundingRate", snapshot.column("fundingRate")[0, -1] / 0.002 + 0.5, 2 * agents
    elif agents:
        source, u, skip = "the last agent's totalPnl", snapshot.column("totalPnl")[0, -1] / 1000.0 + 0.5, 0
    else:
        return None
    state = round(float(u) * _MODULUS)
    if not 0 <= state < _MODULUS or abs(u * _MODULUS - state) > 1e-3:
        return None
    draws = _draws(state)
    for _ in range(skip):
        next(draws)
    outcomes = np.array([next(draws) > 0.5 for _ in range(config.markets)], bool)
    paths: dict[str, list[float]] = {}
    prices = snapshot.perp_prices()
    for place, ticker in enumerate(snapshot.record["perps"]):
        price = float(prices[0, place])
        paths[ticker] = path = []
        for _ in range(config.ticks):
            price *= 1.0 + (next(draws) - 0.48) * 0.02
            path.append(price)
    foreseen = np.array([paths[ticker] for ticker in snapshot.record["perps"]]).reshape(config.perps, config.ticks).T
    right = np.isclose(foreseen, prices[1:], rtol=1e-9, atol=0.0)
    return Foretold(
        source, (int((outcomes == truth.outcomes).sum()), config.markets), (int(right.sum()), int(right.size))
    )


def _draws(state: int) -> Iterator[float]:
    while True:
        state = (1_664_525 * state + 1_013_904_223) % _MODULUS
        yield state / _MODULUS


def _hidden(told: Foretold | None, known: bool) -> Check:
    if told is None:
        return Check("future_is_hidden", True, "no public number is a raw draw of Babylon's generator")
    return Check("future_is_hidden", not known, f"{told}" if known else f"{told}, which is chance")


def _prices_tell(snapshot: BabylonSnapshot, truth: BabylonTruth, known: bool) -> Check:
    name, markets = "prices_tell_outcomes", snapshot.config.markets
    if not markets:
        return Check(name, True, "there is no prediction market")
    price, outcome = snapshot.crowd_prices()[0], truth.outcomes.astype(float)
    gain = 0.25 - (price - outcome) ** 2
    error = gain.std(ddof=1) / math.sqrt(markets) if markets > 1 else math.inf
    better = markets >= LEAST_MARKETS and bool(gain.mean() > 2.326 * error)
    words = (
        f"the squared error of the first prices against {markets} outcomes is {0.25 - gain.mean():.3f}, that of a coin "
        "0.250"
    )
    if known:
        words += "; outcomes are draws of the generator, whatever the price"
    elif markets < LEAST_MARKETS:
        words += f", and under {LEAST_MARKETS} markets tell nothing"
    return Check(name, better and not known, words)


def _words_tell(snapshot: BabylonSnapshot, truth: BabylonTruth, known: bool) -> Iterator[Check]:
    """Whether posts, and trades of other agents, agree with outcomes more often than a coin does."""
    record = snapshot.record
    events = [event for tick in record["events"] for event in tick]
    questions, ids = [m["question"] for m in record["markets"]], [m["id"] for m in record["markets"]]
    posts = [post_says(e["data"]["content"], questions) for e in events if e["type"] == "post:created"]
    trades = [
        (ids.index(e["data"]["marketId"]), e["data"]["outcome"] == "YES") for e in events if e["type"] == "market:trade"
    ]
    for what, said in (("posts", [post for post in posts if post is not None]), ("trades", trades)):
        agree = sum(bool(truth.outcomes[market]) == up for market, up in said)
        chance = sum(math.comb(len(said), k) for k in range(agree, len(said) + 1)) / 2 ** len(said)
        words = f"{agree} of {len(said)} {what} agree with the outcome, a coin does so with probability {chance:.2f}"
        if known:
            words += "; their side is a draw of its own"
        yield Check(f"{what}_tell_outcomes", chance < SURE and not known, words)


def _prices_move(snapshot: BabylonSnapshot) -> Check:
    moving = int((np.ptp(snapshot.crowd_prices(), axis=0) > 0).sum())
    words = f"{moving} of {snapshot.config.markets} prediction prices ever move in {snapshot.n_ticks} ticks"
    return Check("prices_move", moving == snapshot.config.markets, words)


def _trades_count(snapshot: BabylonSnapshot) -> Check:
    trades = sum(event["type"] == "market:trade" for tick in snapshot.record["events"] for event in tick)
    moved = any(len(snapshot.record["columns"][name]) > 1 for name in ("yesShares", "noShares", "totalVolume"))
    words = f"{trades} trades of other agents {'move' if moved else 'leave no trace in'} reserves and volumes"
    return Check("trades_reach_the_market", moved or not trades, words)


def _without_drift(snapshot: BabylonSnapshot, known: bool) -> Check:
    tickers = snapshot.record["perps"]
    prices = snapshot.perp_prices()[:, [tickers.index(ticker) for ticker in dict.fromkeys(tickers)]]
    steps = (prices[1:] / prices[:-1] - 1.0).ravel()
    if steps.size < 2:
        return Check("no_drift", not known, "there are too few prices of perpetuals to measure a drift")
    error = float(steps.std(ddof=1)) / math.sqrt(steps.size)
    words = f"perpetuals move by {steps.mean():+.4%} ± {error:.4%} per tick"
    if known:
        words += "; the generator's own mean is +0.0400% per tick however short a tick is, so that a long held on wins"
    return Check("no_drift", abs(float(steps.mean())) <= 3.0 * error and not known, words)


def _distinct(snapshot: BabylonSnapshot) -> Check:
    names = [market["question"] for market in snapshot.record["markets"]] + snapshot.record["perps"]
    twice = [name for name, count in Counter(names).items() if count > 1]
    words = f"{len(twice)} questions and tickers are there more than once" if twice else "no question or ticker repeats"
    return Check("instruments_are_distinct", not twice, words)


def _pays(snapshot: BabylonSnapshot) -> Check:
    """The live game's pool at the stated prices: what a bet that comes true earns, on either side of each market."""
    yes, no = snapshot.column("noShares")[0], snapshot.column("yesShares")[0]
    earned = np.concatenate([_won(yes, no, True), _won(yes, no, False)])
    losing = int((earned <= 0).sum())
    words = f"{losing} of {earned.size} bets of ${STAKE:.0f} lose money on the live game's pool though they come true"
    return Check("a_won_bet_pays", not losing, words)


def _won(yes: np.ndarray, no: np.ndarray, on_yes: bool) -> np.ndarray:
    trade = arithmetic.buy(yes, no, np.full(yes.shape, STAKE), on_yes, arithmetic.FEE)
    return trade.shares - STAKE
