"""An imported snapshot and its sealed truth, in the types that agents, runner and replay know, and in our own files.

Reading Babylon's file belongs in `importer`. Times count from the snapshot's creation, so that two files
that differ by the wall clock alone are one snapshot with one id.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_assets.episodes import digest
from rl_assets.errors import ConfigurationError, MalformedInput
from rl_assets.market.babylon.arithmetic import FEE
from rl_assets.market.babylon.format import FUNDING_MS, VERSION
from rl_assets.market.config import MARKET_NAMES, PERP_NAMES, WorldConfig
from rl_assets.market.snapshot import (
    FUNDING_UNIT,
    IMPORTED,
    LATENT_UNIT,
    PERP_UNIT,
    PRICE_UNIT,
    Post,
    Snapshot,
    Truth,
)
from rl_assets.places import Place, local_file
from rl_assets.tree import public_file, sealed_file

FORMAT = "rl-assets.babylon-snapshot/1"
TRUTH_FORMAT = "rl-assets.babylon-truth/1"
NO_DAY = -1
"""Market day of an imported snapshot: it shares one with no other."""
START_CASH = 10_000.0
"""Dollars that every agent of the old benchmark was told it has."""
LEVERAGE = 2
"""The game allows 1 to 100; at more than this, the impact of orders of the usual sizes eats their margin."""
_ID = re.compile(rf"{IMPORTED}-[0-9a-f]{{12}}")
_SENTIMENT = re.compile(r"^Market sentiment seems (bullish|bearish) on (.*)$", re.DOTALL)


@dataclass(frozen=True)
class BabylonConfig(WorldConfig):
    """The size of an imported world and the fees of the live game. What the generator alone reads has no meaning here.

    fee, taker_fee: see `arithmetic`; the liquidation rule there takes the place of maintenance.
    """

    start_cash: float = START_CASH
    fee: float = FEE
    leverage: int = LEVERAGE
    taker_fee: float = FEE

    def __post_init__(self) -> None:
        if self.ticks < 1 or self.markets + self.perps == 0:
            raise ConfigurationError("a world needs a tick and an instrument; import a snapshot that has both")

    @property
    def instruments(self) -> tuple[str, ...]:
        """The generator's names; from the thirteenth market and the ninth perpetual on they are numbered: A2, P2."""
        return tuple(
            letters[place % len(letters)] + (str(place // len(letters) + 1) if place >= len(letters) else "")
            for letters, count in ((MARKET_NAMES, self.markets), (PERP_NAMES, self.perps))
            for place in range(count)
        )


@dataclass(frozen=True, eq=False)
class BabylonSnapshot(Snapshot):
    """The public part of an imported file. `seed` is taken from the content and feeds agents' draws alone.

    record: what the file says without its ground truth, names and columns of numbers (see `columns`); crowd, perp and
    funding are the same numbers rounded to our units, for whoever plots them. fingerprint: SHA-256 of record.
    """

    record: dict[str, Any]
    fingerprint: str

    @property
    def id(self) -> str:
        return f"{IMPORTED}-{self.fingerprint[:12]}"

    @property
    def content_hash(self) -> str:
        return self.fingerprint

    def crowd_prices(self) -> np.ndarray:
        """float64 (ticks + 1, markets): the price of YES that the file states."""
        yes, no = self.column("yesShares"), self.column("noShares")
        return yes / (yes + no)

    def perp_prices(self) -> np.ndarray:
        return self.column("price")

    def column(self, name: str) -> np.ndarray:
        """float64 (ticks + 1, instruments or agents): a number of every state, by its name in the file."""
        return unfolded(self.record["columns"][name], self.n_ticks + 1)

    def to_json(self) -> dict[str, Any]:
        return self.record


@dataclass(frozen=True, eq=False)
class BabylonTruth(Truth):
    """The ground truth of an imported file. The file knows no probability: `latent` is the outcome itself, 0 or 1, so
    the expected profit of an episode is its realised one. fair is the file's price, exact in `prices`, float64."""

    record: dict[str, Any]
    prices: np.ndarray

    def fairs(self) -> np.ndarray:
        return self.prices

    def to_json(self) -> dict[str, Any]:
        return self.record


def snapshot_from(record: dict[str, Any]) -> BabylonSnapshot:
    """A snapshot from its public record."""
    rows, seconds = len(record["events"]) + 1, record["tickInterval"]
    columns = {name: unfolded(values, rows) for name, values in record["columns"].items()}
    config = BabylonConfig(
        ticks=rows - 1, tick_seconds=seconds, markets=len(record["markets"]), perps=len(record["perps"])
    )
    yes, no = columns["yesShares"], columns["noShares"]
    per_tick = columns["fundingRate"][:-1] * (seconds * 1000 / FUNDING_MS)
    fingerprint = digest(record)
    return BabylonSnapshot(
        split=IMPORTED,
        seed=int(fingerprint[:12], 16),
        day=NO_DAY,
        config=config,
        crowd=_units(yes / (yes + no), PRICE_UNIT),
        perp=_units(columns["price"], PERP_UNIT),
        funding=_units(per_tick, FUNDING_UNIT),
        posts=_posts(record),
        truth_digest=record["truth_digest"],
        record=record,
        fingerprint=fingerprint,
    )


def truth_from(record: dict[str, Any]) -> BabylonTruth:
    """A truth from its sealed record."""
    outcomes = np.array(record["outcomes"], dtype=bool).reshape(-1)
    rows = len(record["prices"])
    prices = np.asarray(record["prices"], float).reshape(rows, -1)
    return BabylonTruth(
        split=IMPORTED,
        seed=-1,
        latent=np.tile(_units(outcomes.astype(float), LATENT_UNIT), (rows, 1)),
        fair=_units(prices, PERP_UNIT),
        outcomes=outcomes,
        record=record,
        prices=prices,
    )


def load_imported(root: Place, snapshot_id: str) -> BabylonSnapshot:
    """Read the public file and check that its content is what its id says. Raises MalformedInput."""
    path = public_file(root, snapshot_id)
    snapshot = snapshot_from(_read(path, snapshot_id, FORMAT))
    if snapshot.id != snapshot_id:
        raise MalformedInput(f"{path} holds snapshot {snapshot.id}, not {snapshot_id}; import its file again")
    return snapshot


def load_imported_truth(root: Place, snapshot_id: str) -> BabylonTruth:
    """Read the sealed file and check that it is the truth of this snapshot. Raises MalformedInput."""
    path = sealed_file(root, snapshot_id)
    record = _read(path, snapshot_id, TRUTH_FORMAT)
    if digest(record) != load_imported(root, snapshot_id).truth_digest:
        raise MalformedInput(f"{path} is not the truth of {snapshot_id}; import its file again")
    return truth_from(record)


def unfolded(values: list[list[float]], rows: int) -> np.ndarray:
    """float64 (rows, width) from a stored column: one row stands for all where the numbers never change."""
    array = np.asarray(values, float).reshape(len(values), -1)
    return np.broadcast_to(array, (rows, array.shape[1])) if len(values) == 1 else array


def post_says(content: str, questions: list[str]) -> tuple[int, bool] | None:
    """The market (the first of its question) that a post speaks of and whether it is bullish; None for other posts."""
    match = _SENTIMENT.match(content)
    if match is None or match[2] not in questions:
        return None
    return questions.index(match[2]), match[1] == "bullish"


def _posts(record: dict[str, Any]) -> tuple[Post, ...]:
    """What agents may read, in the form of our own posts, one tick after it was said. Free text is not passed on."""
    questions = [market["question"] for market in record["markets"]]
    posts = []
    for number, events in enumerate(record["events"][:-1]):
        for event in events:
            said = post_says(event["data"]["content"], questions) if event["type"] == "post:created" else None
            if said is not None:
                posts.append(Post(number + 1, said[0], event["data"]["authorId"], said[1]))
    return tuple(sorted(posts, key=lambda post: (post.tick, post.instrument)))


def _units(values: np.ndarray, unit: float) -> np.ndarray:
    return np.clip(np.rint(values / unit), -(2**31), 2**31 - 1).astype(np.int32)


def _read(path: Place, snapshot_id: str, wanted: str) -> dict[str, Any]:
    if not _ID.fullmatch(snapshot_id):
        raise MalformedInput(f"{snapshot_id!r} is not the id of an imported snapshot such as {IMPORTED}-0123456789ab")
    try:
        with local_file(path) as file:
            record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MalformedInput(f"{path} is missing; run `rl-assets snapshots import` on Babylon's file again") from error
    except ValueError as error:
        raise MalformedInput(f"{path} is not JSON: {error}; import Babylon's file again") from error
    if not isinstance(record, dict) or record.get("format") != wanted or record.get("version", VERSION) != VERSION:
        raise MalformedInput(f"{path} is not in the format {wanted}; import Babylon's file again")
    return record
