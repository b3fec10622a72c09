"""What public data of many snapshots tells of their truths: no more than the sources' reliability allows.

Audits of a single snapshot belong in `audit`. Models are logistic regressions, fitted on the first half of the market
days and scored on the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from rl_assets.market.audit import Check
from rl_assets.market.config import WorldConfig
from rl_assets.market.generate import generate, sigmoid
from rl_assets.market.snapshot import Post, Snapshot, Truth, World
from rl_assets.market.sources import CHATS, PAID_SOURCES, RELIABILITY, SOURCES, WIRE

LEAST_WORLDS = 200
"""Snapshots under which a leak cannot be told from chance."""
FITTED = 400
"""Snapshots on which a kind of world is judged."""
SURE = 4.0
"""Standard errors beyond which a deviation is a fault; chance gives that once in 16,000 looks."""
RIDGE = 1.0
"""Penalty of a fit, which keeps weights finite where a source is always right."""
PRICE_TELLS = 0.02
"""Accuracy that the crowd's own noise may add to what the sources tell: a price above its belief tends to come back."""
_NAMES = [source.name for source in (*SOURCES, *CHATS, *PAID_SOURCES)]
"""Who tells where values go. The wire tells of jumps, which is another thing."""
_LATE = {source.name for source in SOURCES if source.late}


@lru_cache(maxsize=16)
def audit_kind(config: WorldConfig) -> tuple[Check, ...]:
    """What public data tells of the truths of a kind of world, found on its first `FITTED` train seeds."""
    return tuple(audit_leakage([generate("train", seed, config) for seed in range(FITTED)]))


def audit_leakage(worlds: Sequence[World]) -> list[Check]:
    """Checks over many worlds of what could leak.

    Sources are as reliable as stated; a model fitted on public data knows the way of prices no better than they do, and
    nothing of the coins; outcomes follow the final latents; adjacent seeds share nothing.

    Raises ValueError for fewer than LEAST_WORLDS worlds, since then nothing could be found.
    """
    if len(worlds) < LEAST_WORLDS:
        raise ValueError(f"{len(worlds)} snapshots are too few to find a leak; give at least {LEAST_WORLDS}")
    ordered = sorted(worlds, key=lambda world: world[0].seed)
    checks = [*_sources(ordered), _adjacent(ordered)]
    if any(snapshot.config.markets for snapshot, _ in ordered):
        checks += _outcomes(ordered)
    return checks


def fit_logistic(x: np.ndarray, y: np.ndarray, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Weights (features,) of P(y) = sigmoid(x @ weights + offset), by Newton steps with a ridge penalty."""
    weights = np.zeros(x.shape[1])
    for _ in range(25):
        p = sigmoid(x @ weights + offset)
        curvature = (x * (p * (1.0 - p))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])
        move = np.linalg.solve(curvature, x.T @ (y - p) - RIDGE * weights)
        weights += move
        if np.abs(move).max() < 1e-9:
            break
    return weights


def _sources(worlds: Sequence[World]) -> list[Check]:
    features, came_true, who, day = [], [], [], []
    for snapshot, truth in worlds:
        markets, last = snapshot.config.markets, snapshot.config.ticks
        price = np.concatenate([_logit(snapshot.crowd_prices()), 20.0 * np.log(snapshot.perp_prices())], axis=1)
        value = np.concatenate([_logit(truth.latents()), 20.0 * np.log(truth.fairs())], axis=1)
        for post in _told(snapshot):
            path, t = price[:, post.instrument], post.tick
            up = value[min(t + snapshot.config.horizon, last), post.instrument] > path[t]
            told = np.zeros(len(_NAMES))
            told[_NAMES.index(post.source)] = 1.0 if post.up else -1.0
            level = path[t] if post.instrument < markets else 0.0
            features.append([1.0, *told, path[t] - path[max(t - 1, 0)], path[t] - path[0], level])
            came_true.append((up, up == post.up))
            who.append(post.source)
            day.append(snapshot.day)
    if not features:
        return [Check("sources_as_stated", True, "these worlds have no posts")]
    x, truth_of, source = np.array(features), np.array(came_true, float), np.array(who)
    return [_stated(source, truth_of[:, 1]), _direction(x, truth_of[:, 0], source, _later(day))]


def _stated(source: np.ndarray, right: np.ndarray) -> Check:
    off, told = [], []
    for name in sorted(set(source)):
        of = right[source == name]
        stated = RELIABILITY[name]
        allowed = SURE * np.sqrt(stated * (1.0 - stated) / len(of)) + (PRICE_TELLS if name in _LATE else 0.0)
        told.append(f"{name} {of.mean():.3f} of {stated:.2f}")
        if abs(of.mean() - stated) > allowed:
            off.append(name)
    detail = f"share of posts that came true against the stated reliability: {', '.join(told)}"
    return Check("sources_as_stated", not off, f"{detail}; off: {', '.join(off)}" if off else detail)


def _direction(x: np.ndarray, up: np.ndarray, source: np.ndarray, later: np.ndarray) -> Check:
    weights = fit_logistic(x[~later], up[~later])
    right = ((x[later] @ weights > 0) == up[later]).mean()
    stated = np.mean([max(RELIABILITY[name], 1.0 - RELIABILITY[name]) for name in source[later]])
    allowed = PRICE_TELLS + SURE * 0.5 / np.sqrt(later.sum())
    return Check(
        "direction_as_stated",
        bool(right - stated <= allowed),
        f"a model of posts and prices knows the way of {right:.1%} of values, the sources' reliability gives "
        f"{stated:.1%}, an edge of {100 * (right - stated):+.1f} points where {100 * allowed:.1f} are allowed",
    )


def _outcomes(worlds: Sequence[World]) -> list[Check]:
    features, outcome, latent, crowd, day = [], [], [], [], []
    for snapshot, truth in worlds:
        prices = snapshot.crowd_prices()
        path = _logit(prices)
        for market in range(snapshot.config.markets):
            told = np.zeros((2, len(_NAMES)))
            for post in _told(snapshot):
                if post.instrument == market:
                    told[int(2 * post.tick >= snapshot.n_ticks), _NAMES.index(post.source)] += 1.0 if post.up else -1.0
            c = path[:, market]
            features.append([1.0, c[-1], c[-1] - c[-3], c[-1] - c[len(c) // 2], c[0], *told.ravel()])
            outcome.append(truth.outcomes[market])
            latent.append(truth.latents()[-1, market])
            crowd.append(prices[-1, market])
            day.append(snapshot.day)
    x, y, p = np.array(features), np.array(outcome, float), np.array(latent)
    return [_coins(x, y, p, np.array(crowd), _later(day)), _calibrated(y, p)]


def _coins(x: np.ndarray, y: np.ndarray, latent: np.ndarray, crowd: np.ndarray, later: np.ndarray) -> Check:
    """Beyond the final latent nothing public may tell how its coin falls: a model on top of it must not gain."""
    model = sigmoid(x[later] @ fit_logistic(x[~later], y[~later]))
    offset = _logit(latent)
    above = sigmoid(x[later] @ fit_logistic(x[~later], y[~later], offset[~later]) + offset[later])
    coin = y[later]
    gain = _surprise(latent[later], coin) - _surprise(above, coin)
    error = float(gain.std() / np.sqrt(len(gain)))
    known = [f"{((q > 0.5) == coin).mean():.1%}" for q in (model, crowd[later], latent[later])]
    return Check(
        "coins_sealed",
        bool(gain.mean() <= SURE * error),
        f"a model of everything public calls {known[0]} of outcomes, the crowd's last price {known[1]} and the final "
        f"latent {known[2]}; told the latent, public data gains {gain.mean():+.4f} nats an outcome, standard "
        f"error {error:.4f}",
    )


def _calibrated(outcome: np.ndarray, latent: np.ndarray) -> Check:
    deviations = []
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (latent >= low) & (latent < low + 0.1)
        if inside.sum() >= 20:
            spread = np.sqrt((latent[inside] * (1.0 - latent[inside])).sum())
            deviations.append(float((outcome[inside] - latent[inside]).sum() / spread))
    worst = max(deviations, key=abs, default=0.0)
    return Check(
        "outcomes_calibrated",
        abs(worst) < SURE,
        f"{len(outcome)} outcomes in {len(deviations)} bins of the final latent are at most {abs(worst):.1f} standard "
        "errors from it",
    )


def _adjacent(worlds: Sequence[World]) -> Check:
    """Signed numbers of a world against those of the next seed. Their sizes may agree, since a day shares its tempo."""
    first, second = [], []
    for (snapshot, truth), (following, truth_after) in pairwise(worlds):
        if following.seed == snapshot.seed + 1 and following.config == snapshot.config:
            first.append(_signed(snapshot, truth))
            second.append(_signed(following, truth_after))
    if len(first) < LEAST_WORLDS // 2:
        return Check("seeds_uncorrelated", False, f"only {len(first)} pairs of adjacent seeds; give consecutive ones")
    widths = {len(row) for row in first}
    if len(widths) > 1:
        return Check("seeds_uncorrelated", False, "the worlds are of different sizes; audit each size by itself")
    a, b = np.array(first), np.array(second)
    moving = (a.std(0) > 0) & (b.std(0) > 0)
    a, b = a[:, moving], b[:, moving]
    a, b = (a - a.mean(0)) / a.std(0), (b - b.mean(0)) / b.std(0)
    correlation = a.T @ b / len(a)
    worst = float(np.abs(correlation).max())
    return Check(
        "seeds_uncorrelated",
        bool(worst < (SURE + 0.5) / np.sqrt(len(a))),
        f"of {correlation.size} correlations over {len(a)} pairs of adjacent seeds the largest is {worst:.3f}",
    )


def _told(snapshot: Snapshot) -> list[Post]:
    return [post for post in (*snapshot.posts, *snapshot.whispers) if post.source != WIRE.name]


def _signed(snapshot: Snapshot, truth: Truth) -> list[float]:
    odds, prices = _logit(snapshot.crowd_prices()), np.log(snapshot.perp_prices())
    up = [1.0 if post.up else -1.0 for post in snapshot.posts]
    return [
        *odds[0],
        *(odds[-1] - odds[0]),
        *(prices[-1] - prices[0]),
        *(truth.outcomes - truth.latents()[-1]),
        float(np.sum(up)),
    ]


def _later(day: Sequence[int]) -> np.ndarray:
    days = np.array(day)
    return days > np.median(days)


def _surprise(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-6, 1.0 - 1e-6)
    return -(y * np.log(p) + (1.0 - y) * np.log(1.0 - p))


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-4, 1.0 - 1e-4)
    return np.log(p / (1.0 - p))
