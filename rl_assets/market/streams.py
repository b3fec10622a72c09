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
