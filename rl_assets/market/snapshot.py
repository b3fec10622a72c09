"""A snapshot (what everyone may see of a market day), its sealed truth, and their files.

How the numbers come about belongs in `generate`; what an agent's trades do to them belongs in `engine`.
"""

from __future__ import annotations

import json
import operator
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from rl_assets.episodes import digest
from rl_assets.errors import ConfigurationError, MalformedInput
from rl_assets.market.config import LATER, WorldConfig
from rl_assets.places import Place, local_file, whole_file
from rl_assets.tree import public_file, sealed_file

FORMAT = "rl-assets.snapshot/1"
TRUTH_FORMAT = "rl-assets.truth/1"

SPLITS: dict[str, range] = {
    "train": range(800_000),
    "gate": range(800_000, 900_000),
    "sealed": range(900_000, 1_000_000),
}
SNAPSHOTS_PER_DAY = 4
IMPORTED = "babylon"
"""Where imported snapshots stand, and how their ids begin. It is no split: nothing selects them by itself."""

PRICE_UNIT = 1e-4
"""Dollars per integer of a stored crowd price."""
LATENT_UNIT = 1e-6
"""Probability per integer of a stored latent."""
PERP_UNIT = 1e-2
"""Dollars per integer of a stored perpetual price."""
FUNDING_UNIT = 1e-6
"""Fraction of notional per tick per integer of a stored funding rate."""

_TICK = operator.attrgetter("tick")
_ID = re.compile(r"(train|gate|sealed)-(\d{6})-([0-9a-f]{12})", re.ASCII)


@dataclass(frozen=True)
class Post:
    """A source says at a tick that the latent value of an instrument (its index) is above (`up`) or below its price."""

    tick: int
    instrument: int
    source: str
    up: bool


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The public part of one market day.

    crowd: int32 (ticks + 1, markets), the crowd's belief in PRICE_UNIT. perp: int32 (ticks + 1, perps), index price in
    PERP_UNIT. funding: int32 (ticks, perps) in FUNDING_UNIT. posts: in order of tick, then instrument. whispers: what
    is said in the channels of the configuration, for those who have joined; in order of tick, instrument and channel.
    truth_digest binds the sealed truth without telling it.
    """

    split: str
    seed: int
    day: int
    config: WorldConfig
    crowd: np.ndarray
    perp: np.ndarray
    funding: np.ndarray
    posts: tuple[Post, ...]
    truth_digest: str
    whispers: tuple[Post, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        _freeze(self.crowd, self.perp, self.funding)

    @property
    def id(self) -> str:
        return f"{self.split}-{self.seed:06d}-{self.content_hash[:12]}"

    @property
    def n_ticks(self) -> int:
        return self.config.ticks

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over everything public and the digest of the truth."""
        return digest(self.to_json())

    def crowd_prices(self) -> np.ndarray:
        """float64 (ticks + 1, markets): the crowd's belief as a probability."""
        return self.crowd * PRICE_UNIT

    def perp_prices(self) -> np.ndarray:
        """float64 (ticks + 1, perps): index price in dollars."""
        return self.perp * PERP_UNIT

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "split": self.split,
            "seed": self.seed,
            "day": self.day,
            "config": self.config.to_json(),
            "crowd": self.crowd.tolist(),
            "perp": self.perp.tolist(),
            "funding": self.funding.tolist(),
            "posts": [[p.tick, p.instrument, p.source, p.up] for p in self.posts],
            "truth_digest": self.truth_digest,
        } | ({"whispers": [[p.tick, p.instrument, p.source, p.up] for p in self.whispers]} if self.whispers else {})


@dataclass(frozen=True, eq=False)
class Truth:
    """What neither agent nor judge may see.

    latent: int32 (ticks + 1, markets) in LATENT_UNIT. fair: int32 (ticks + 1, perps) in PERP_UNIT. outcomes: bool
    (markets,), drawn from the final latent alone.
    """

    split: str
    seed: int
    latent: np.ndarray
    fair: np.ndarray
    outcomes: np.ndarray

    def __post_init__(self) -> None:
        _freeze(self.latent, self.fair, self.outcomes)

    @cached_property
    def digest(self) -> str:
        return digest(self.to_json())

    def latents(self) -> np.ndarray:
        """float64 (ticks + 1, markets): the latent probability."""
        return self.latent * LATENT_UNIT

    def fairs(self) -> np.ndarray:
        """float64 (ticks + 1, perps): the fair price in dollars."""
        return self.fair * PERP_UNIT

    def to_json(self) -> dict[str, Any]:
        return {
            "format": TRUTH_FORMAT,
            "split": self.split,
            "seed": self.seed,
            "latent": self.latent.tolist(),
            "fair": self.fair.tolist(),
            "outcomes": self.outcomes.tolist(),
        }


World = tuple[Snapshot, Truth]
Worlds = Mapping[str, World]
"""By snapshot id."""


def at_tick(posts: Sequence[Post], tick: int) -> Sequence[Post]:
    """Those of some posts in order of tick that were said at this one."""
    return posts[bisect_left(posts, tick, key=_TICK) : bisect_right(posts, tick, key=_TICK)]


def save_snapshot(root: Place, snapshot: Snapshot, truth: Truth) -> Place:
    """Write the public file and the sealed one, in their places below `root`. Atomic; writing again changes nothing.

    Returns the public file's place. Raises RlAssetsError where the disk or the store refuses.
    """
    _write(sealed_file(root, snapshot.id), truth.to_json())
    return _write(public_file(root, snapshot.id), snapshot.to_json())


def load_world(root: Place, snapshot_id: str) -> World:
    """Read and check both files of a snapshot, and that they belong together. Raises MalformedInput."""
    snapshot, truth = load_snapshot(root, snapshot_id), load_truth(root, snapshot_id)
    if truth.digest != snapshot.truth_digest:
        raise MalformedInput(
            f"the sealed truth of {snapshot_id} is not the one it was made with; run `rl-assets snapshots generate` "
            "with its seed to write both again"
        )
    return snapshot, truth


def load_snapshot(root: Place, snapshot_id: str) -> Snapshot:
    """Read and check a public file: shapes, ranges, and that its content is what its id says. Raises MalformedInput."""
    if snapshot_id.startswith(IMPORTED):
        from rl_assets.market.babylon.snapshot import load_imported

        return load_imported(root, snapshot_id)
    path = public_file(root, snapshot_id)
    snapshot = parse_snapshot(_read(path, snapshot_id), str(path))
    if snapshot.id != snapshot_id:
        raise MalformedInput(f"{path} holds snapshot {snapshot.id}, not {snapshot_id}; regenerate it")
    return snapshot


def load_truth(root: Place, snapshot_id: str) -> Truth:
    """Read and check a sealed file. Raises MalformedInput."""
    if snapshot_id.startswith(IMPORTED):
        from rl_assets.market.babylon.snapshot import load_imported_truth

        return load_imported_truth(root, snapshot_id)
    path = sealed_file(root, snapshot_id)
    raw = _read(path, snapshot_id)
    if not isinstance(raw, dict) or raw.get("format") != TRUTH_FORMAT:
        raise MalformedInput(f"{path} is not in the format {TRUTH_FORMAT}; regenerate the snapshot")
    try:
        return Truth(
            split=raw["split"],
            seed=raw["seed"],
            latent=_array(raw["latent"], 2, 0, 1_000_000, "latent"),
            fair=_array(raw["fair"], 2, 1, 2**31 - 1, "fair"),
            outcomes=np.array(raw["outcomes"], dtype=bool).reshape(-1),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedInput(f"{path} is not a truth file: {error}; regenerate the snapshot") from error


def parse_snapshot(raw: Any, where: str) -> Snapshot:
    """A snapshot from decoded JSON. Raises MalformedInput that names the file and the fault."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise MalformedInput(
            f"{where} is not in the format {FORMAT}; run `rl-assets snapshots generate` to write it again"
        )
    try:
        split, seed, day = raw["split"], raw["seed"], raw["day"]
        if split not in SPLITS or not isinstance(seed, int) or seed not in SPLITS[split]:
            raise ValueError(f"seed {seed!r} is not one of split {split!r}")
        if day != seed // SNAPSHOTS_PER_DAY:
            raise ValueError(f"day {day!r} does not belong to seed {seed}")
        known = {f.name for f in fields(WorldConfig)}
        if not known - set(LATER) <= set(raw["config"]) <= known:
            raise ValueError(f"config keys differ from {sorted(known)}")
        config = WorldConfig(**raw["config"])
        crowd = _array(raw["crowd"], 2, 100, 9_900, "crowd", (config.ticks + 1, config.markets))
        perp = _array(raw["perp"], 2, 1, 2**31 - 1, "perp", (config.ticks + 1, config.perps))
        funding = _array(raw["funding"], 2, -100_000, 100_000, "funding", (config.ticks, config.perps))
        posts = tuple(_post(entry, config) for entry in raw["posts"])
        if any((a.tick, a.instrument) >= (b.tick, b.instrument) for a, b in pairwise(posts)):
            raise ValueError("posts are not in order of tick and instrument")
        whispers = tuple(_post(entry, config) for entry in raw.get("whispers", ()))
        if any((a.tick, a.instrument, a.source) >= (b.tick, b.instrument, b.source) for a, b in pairwise(whispers)):
            raise ValueError("whispers are not in order of tick, instrument and channel")
        if any(post.source not in config.channels for post in whispers):
            raise ValueError(f"whispers of others than the channels {config.channels}")
        if not isinstance(raw["truth_digest"], str) or not re.fullmatch(r"[0-9a-f]{64}", raw["truth_digest"]):
            raise ValueError("truth_digest is not a SHA-256")
    except (KeyError, TypeError, ValueError, ConfigurationError) as error:
        raise MalformedInput(f"{where} is not a valid snapshot: {error}; regenerate it") from error
    return Snapshot(split, seed, day, config, crowd, perp, funding, posts, raw["truth_digest"], whispers=whispers)


def parse_id(snapshot_id: str) -> tuple[str, int]:
    """Split and seed of a snapshot id. Raises MalformedInput."""
    match = _ID.fullmatch(snapshot_id)
    if match is None:
        raise MalformedInput(f"{snapshot_id!r} is not a snapshot id such as train-000042-0123456789ab")
    return match[1], int(match[2])


def _post(entry: Any, config: WorldConfig) -> Post:
    tick, instrument, source, up = entry
    if not (isinstance(tick, int) and 0 <= tick < config.ticks):
        raise ValueError(f"post at tick {tick!r}")
    if not (isinstance(instrument, int) and 0 <= instrument < len(config.instruments)):
        raise ValueError(f"post on instrument {instrument!r}")
    if not (isinstance(source, str) and re.fullmatch(r"[a-z]{1,20}", source) and isinstance(up, bool)):
        raise ValueError(f"post {entry!r}")
    return Post(tick, instrument, source, up)


def _array(values: Any, ndim: int, low: int, high: int, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    array = np.array(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != ndim or array.dtype.kind != "i" or (shape is not None and array.shape != shape):
        raise ValueError(f"{name} must be whole numbers of shape {shape or f'{ndim} axes'}, got {array.shape}")
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"{name} leaves {low}..{high}")
    return array.astype(np.int32)


def _freeze(*arrays: np.ndarray) -> None:
    """Close arrays to writing, since the hash of what holds them is computed once."""
    for array in arrays:
        array.flags.writeable = False


def _read(path: Place, snapshot_id: str) -> Any:
    parse_id(snapshot_id)
    try:
        with local_file(path) as file:
            return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MalformedInput(f"{path} is missing; run `rl-assets snapshots generate` to write it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedInput(f"{path} is not JSON: {error}; regenerate it") from error


def _write(path: Place, content: dict[str, Any]) -> Place:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path
