"""Audits of a snapshot: is it what its id says, and does it keep its truth.

Statistics of what public data tells over many snapshots belong in `leakage`; whether skill shows on them, in
`rl_assets.agents.skill`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_assets.errors import MalformedInput
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import LATENT_UNIT, PRICE_UNIT, Snapshot, Truth, parse_snapshot
from rl_assets.market.sources import SOURCES, WIRE

PUBLIC_KEYS = frozenset(
    ("format", "split", "seed", "day", "config", "crowd", "perp", "funding", "posts", "truth_digest", "whispers")
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing an audit looked at. detail is a sentence with what was found."""

    name: str
    passed: bool
    detail: str


def audit_snapshot(snapshot: Snapshot, truth: Truth) -> list[Check]:
    """Everything that must hold of one snapshot: reproduction, shapes, units, the binding of the truth, its absence."""
    public = snapshot.to_json()
    return [
        _regenerates(snapshot, truth),
        _bound(snapshot, truth),
        _shaped(snapshot, truth, public),
        _quantised(snapshot, public),
        _without_truth(snapshot, truth),
    ]


def _regenerates(snapshot: Snapshot, truth: Truth) -> Check:
    again, truth_again = generate(snapshot.split, snapshot.seed, snapshot.config)
    passed = again.content_hash == snapshot.content_hash and truth_again.digest == truth.digest
    found = "its own content" if passed else f"snapshot {again.id} and truth {truth_again.digest[:12]}"
    return Check("regenerates", passed, f"the generator makes of its split, seed and configuration {found}")


def _bound(snapshot: Snapshot, truth: Truth) -> Check:
    same = (snapshot.split, snapshot.seed) == (truth.split, truth.seed)
    passed = same and snapshot.truth_digest == truth.digest
    of = f"the truth of {truth.split} {truth.seed} has digest {truth.digest[:12]}"
    return Check("truth_bound", passed, f"{of}, the snapshot names {snapshot.truth_digest[:12]}")


def _shaped(snapshot: Snapshot, truth: Truth, public: dict[str, Any]) -> Check:
    config = snapshot.config
    try:
        parse_snapshot(public, snapshot.id)
    except MalformedInput as error:
        return Check("shapes", False, str(error))
    shapes = {
        "latent": (truth.latent.shape, (config.ticks + 1, config.markets)),
        "fair": (truth.fair.shape, (config.ticks + 1, config.perps)),
        "outcomes": (truth.outcomes.shape, (config.markets,)),
    }
    wrong = [f"{name} is {found}, not {due}" for name, (found, due) in shapes.items() if found != due]
    return Check("shapes", not wrong, "; ".join(wrong) or "all arrays have the shapes of the configuration")


def _quantised(snapshot: Snapshot, public: dict[str, Any]) -> Check:
    """Outside the configuration only small whole numbers, posts of known sources and the digest are public.

    A raw draw has 53 bits and the generator's state 128; neither fits into any of these.
    """
    speakers = {"posts": {source.name for source in (*SOURCES, WIRE)}, "whispers": set(snapshot.config.channels)}
    odd = sorted(set(public) - PUBLIC_KEYS)
    for name in ("crowd", "perp", "funding"):
        if any(type(value) is not int or abs(value) >= 2**31 for row in public[name] for value in row):
            odd.append(name)
    for name, known in speakers.items():
        posts = public.get(name, ())
        if any([type(part) for part in post] != [int, int, str, bool] or post[2] not in known for post in posts):
            odd.append(name)
    found = f"{', '.join(odd)} hold more than that" if odd else "nothing else is there"
    return Check(
        "quantised", not odd, f"public are whole numbers in units of the market and posts of known sources; {found}"
    )


def _without_truth(snapshot: Snapshot, truth: Truth) -> Check:
    """No path of the truth, in its own unit or the public one, is a public path, at the same tick or a later one."""
    coarse = np.rint(truth.latent * (LATENT_UNIT / PRICE_UNIT)).astype(np.int64)
    told = [
        f"{name} {place} at lead {lead}"
        for name, public, sealed in (
            ("crowd", snapshot.crowd, coarse),
            ("perp", snapshot.perp, truth.fair),
        )
        for place, lead in _copies(public, sealed, snapshot.config.horizon)
    ]
    return Check("no_truth", not told, f"public paths that repeat sealed ones: {', '.join(told) or 'none'}")


def _copies(public: np.ndarray, sealed: np.ndarray, furthest: int) -> Iterator[tuple[int, int]]:
    """Pairs (column, lead) where a public column equals a sealed one `lead` ticks on, over at least three changes."""
    rows = len(public)
    for column in range(public.shape[1]):
        for lead in range(min(furthest, rows - 1) + 1):
            shown, hidden = public[: rows - lead, column], sealed[lead:, column]
            if np.count_nonzero(np.diff(hidden)) >= 3 and np.array_equal(shown, hidden):
                yield column, lead
