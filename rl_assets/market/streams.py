"""Random numbers: one stream for each purpose and instrument of a seed, so that none says anything of another."""

from __future__ import annotations

import numpy as np

GENERATOR_VERSION = 1
_PURPOSES = (
    "day",
    "latent",
    "crowd",
    "posts",
    "outcome",
    "fair",
    "index",
    "funding",
    "perp_posts",
    "common",
    "news",
    "whispers",
)


def stream(purpose: str, seed: int, index: int) -> np.random.Generator:
    entropy = (GENERATOR_VERSION, _PURPOSES.index(purpose), seed, index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def uniform_draws(seeds: list[tuple[int, ...]], count: int) -> np.ndarray:
    """float64 (rows, count) in [0, 1): each row from its own stream."""
    return np.stack([np.random.Generator(np.random.PCG64(np.random.SeedSequence(s))).random(count) for s in seeds])
