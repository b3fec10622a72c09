"""Importing a file: what must be rejected is, and what comes in says what the file said."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl_assets.agents.runner import Assignment, ReferenceAgent, play
from rl_assets.errors import MalformedInput
from rl_assets.market.babylon.audit import audit_imported
from rl_assets.market.babylon.importer import import_babylon
from rl_assets.market.babylon.parse import parse_babylon
from rl_assets.market.babylon.snapshot import BabylonConfig, BabylonSnapshot, BabylonTruth, snapshot_from
from rl_assets.market.snapshot import load_snapshot, load_truth, save_snapshot
from rl_assets_tests.market.babylon.made import CREATED, generated, written

FILES = {
    "small-10m60s-5pm-3perp-8ag-seed12345.json": {
        "seed": 12345,
        "ticks": 10,
        "markets": 5,
        "perps": 3,
        "agents": 8,
        "interval": 60,
    },
    "wide-30m30s-12pm-7perp-4ag-seed7.json": {
        "seed": 7,
        "ticks": 60,
        "markets": 12,
        "perps": 7,
        "agents": 4,
        "interval": 30,
    },
}
SMALL = generated(ticks=5, markets=2, perps=2, agents=2)


def told(snapshot: BabylonSnapshot, truth: BabylonTruth, created: int) -> dict[str, Any]:
    """The file that a snapshot and its truth say, written down again. It has neither name nor times of prices past."""
    record, sealed = snapshot.record, truth.record
    ids, tickers = [m["id"] for m in record["markets"]], record["perps"]
    columns = {name: snapshot.column(name) for name in record["columns"]}

    def state(tick: int) -> dict[str, Any]:
        def row(place: int, *names: str) -> dict[str, float]:
            return {name: float(columns[name][tick, place]) for name in names}

        prediction = []
        for place, market in enumerate(record["markets"]):
            numbers = row(place, "yesShares", "noShares", "totalVolume")
            total = numbers["yesShares"] + numbers["noShares"]
            prediction.append(
                {
                    "id": market["id"],
                    "question": market["question"],
                    **numbers,
                    "yesPrice": numbers["yesShares"] / total,
                    "noPrice": numbers["noShares"] / total,
                    "liquidity": total,
                    "resolved": False,
                    "createdAt": market["createdAt"] + created,
                    "resolveAt": market["resolveAt"] + created,
                }
            )
        names = ("price", "priceChange24h", "volume24h", "openInterest", "fundingRate")
        return {
            "tick": tick,
            "timestamp": created + tick * record["tickInterval"] * 1000,
            "predictionMarkets": prediction,
            "perpetualMarkets": [
                {
                    "ticker": ticker,
                    **row(place, *names),
                    "nextFundingTime": int(columns["nextFundingTime"][tick, place]) + created,
                }
                for place, ticker in enumerate(tickers)
            ],
            "agents": [{**agent, **row(i, "reputation", "totalPnl")} for i, agent in enumerate(record["agents"])],
        }

    paths = dict(zip(tickers, np.asarray(sealed["prices"], float).T[:, 1:], strict=True))
    return {
        "version": record["version"],
        "createdAt": created,
        "duration": record["duration"],
        "tickInterval": record["tickInterval"],
        "initialState": state(0),
        "ticks": [
            {
                "number": number,
                "timestamp": created + (number + 1) * record["tickInterval"] * 1000,
                "events": [{**event, "timestamp": event["timestamp"] + created} for event in events],
                "state": state(number + 1),
            }
            for number, events in enumerate(record["events"])
        ],
        "groundTruth": {
            "marketOutcomes": dict(zip(ids, sealed["outcomes"], strict=True)),
            "priceHistory": {
                ticker: [{"tick": tick, "price": float(price)} for tick, price in enumerate(path)]
                for ticker, path in paths.items()
            },
            "optimalActions": sealed["optimalActions"],
            "socialOpportunities": sealed["socialOpportunities"],
        },
    }


def disagreement(left: Any, right: Any, path: str = "") -> str | None:
    """Where two JSON values differ by more than rounding."""
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return f"{path}: {left.keys() ^ right.keys()}"
        return next(filter(None, (disagreement(left[key], right[key], f"{path}.{key}") for key in left)), None)
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            return f"{path}: {len(left)} and {len(right)}"
        pairs = enumerate(zip(left, right, strict=True))
        return next(filter(None, (disagreement(a, b, f"{path}[{i}]") for i, (a, b) in pairs)), None)
    if isinstance(left, bool) or isinstance(right, bool) or isinstance(left, str) or left is None:
        return None if left is right or left == right else f"{path}: {left!r} and {right!r}"
    if isinstance(left, int | float) and isinstance(right, int | float) and math.isclose(left, right, rel_tol=2e-9):
        return None
    return f"{path}: {left!r} and {right!r}"


def without_names(file: dict[str, Any]) -> dict[str, Any]:
    left = copy.deepcopy(file)
    del left["id"]
    for path in left["groundTruth"]["priceHistory"].values():
        for entry in path:
            del entry["timestamp"]
    return left


def assert_says_the_same(file: dict[str, Any], snapshot: BabylonSnapshot, truth: BabylonTruth) -> None:
    assert disagreement(without_names(file), told(snapshot, truth, file["createdAt"])) is None


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_game_comes_in_whole(babylon_data: Path, name: str):
    file = json.loads((babylon_data / name).read_text())
    snapshot, truth = import_babylon(babylon_data / name)
    assert_says_the_same(file, snapshot, truth)
    size = FILES[name]
    assert (snapshot.n_ticks, snapshot.config.markets, snapshot.config.perps) == (
        size["ticks"],
        size["markets"],
        size["perps"],
    )
    assert snapshot.split == "babylon"
    assert truth.digest == snapshot.truth_digest


@pytest.mark.parametrize("name", FILES)
def test_what_these_tests_generate_is_what_the_game_generates(babylon_data: Path, name: str):
    file = json.loads((babylon_data / name).read_text())
    questions = [market["question"] for market in file["initialState"]["predictionMarkets"]][:10]
    assert generated(**FILES[name], created=file["createdAt"], questions=questions) == file


def test_what_the_old_engine_showed_is_what_was_imported(babylon_data: Path):
    run = json.loads((babylon_data / "engine_scripted_fakeclock.json").read_text())
    snapshot, _ = import_babylon(babylon_data / run["snapshot"])
    ids, tickers = [m["id"] for m in snapshot.record["markets"]], snapshot.record["perps"]
    seen = {call["method"]: call for call in reversed(run["calls"])}
    for place, shown in enumerate(seen["a2a.getPredictions"]["response"]["predictions"]):
        assert shown["question"] == snapshot.record["markets"][place]["question"]
        assert shown["yesPrice"] == pytest.approx(snapshot.crowd_prices()[0, place], rel=1e-12)
        assert shown["yesShares"] == snapshot.column("yesShares")[0, place]
    for place, shown in enumerate(seen["a2a.getPerpetuals"]["response"]["perpetuals"]):
        for field in ("price", "priceChange24h", "volume24h", "openInterest", "fundingRate"):
            assert shown[field] == snapshot.column(field)[0, place]
    for position in run["positions"]["perp"]:
        assert position["entryPrice"] == snapshot.perp_prices()[position["openedAt"], tickers.index(position["ticker"])]
    for position in run["positions"]["prediction"]:
        price = snapshot.crowd_prices()[position["openedAt"], ids.index(position["marketId"])]
        assert position["entryPrice"] == pytest.approx(price if position["outcome"] == "YES" else 1 - price, rel=1e-12)


def test_the_id_is_of_the_content_and_not_of_the_clock(tmp_path: Path):
    names = {import_babylon(written(tmp_path, generated(created=CREATED + late)))[0].id for late in (0, 1, 10**9)}
    assert names == {"babylon-f1a77578389a"}
    assert import_babylon(written(tmp_path, generated(seed=12346)))[0].id not in names


def test_the_public_part_holds_no_ground_truth(tmp_path: Path):
    file = generated()
    snapshot, truth = import_babylon(written(tmp_path, file))
    name = next(iter(file["groundTruth"]["marketOutcomes"]))
    file["groundTruth"]["marketOutcomes"][name] ^= True
    file["groundTruth"]["optimalActions"] = []
    file["groundTruth"]["socialOpportunities"] = []
    other, other_truth = import_babylon(written(tmp_path, file))
    assert truth.outcomes.tolist() != other_truth.outcomes.tolist()
    assert {**snapshot.to_json(), "truth_digest": other.truth_digest} == other.to_json()
    public = json.dumps(snapshot.to_json())
    assert not [key for key in (*file["groundTruth"], "outcomes", "Outcome") if key in public]


def test_what_was_imported_is_read_back(tmp_path: Path):
    snapshot, truth = import_babylon(written(tmp_path, SMALL))
    public = save_snapshot(tmp_path, snapshot, truth)
    again, truth_again = load_snapshot(tmp_path, snapshot.id), load_truth(tmp_path, snapshot.id)
    assert isinstance(again, BabylonSnapshot)
    assert isinstance(truth_again, BabylonTruth)
    assert_says_the_same(SMALL, again, truth_again)
    assert again.id == snapshot.id == public.parent.name
    np.testing.assert_array_equal(truth_again.fairs(), again.perp_prices())
    np.testing.assert_array_equal(truth_again.latents()[-1], truth_again.outcomes)


@pytest.mark.parametrize(
    ("part", "before", "after", "match"),
    [
        ("public", "Will it rain", "Will it snow", "import its file again"),
        ("public", "{", "[", "is not JSON"),
        ("public", "babylon-snapshot/1", "babylon-snapshot/2", "is not in the format"),
        ("sealed", "true", "false", "is not the truth of"),
        ("sealed", "babylon-truth/1", "babylon-truth/2", "is not in the format"),
    ],
)
def test_a_stored_file_that_was_touched_is_refused(tmp_path: Path, part: str, before: str, after: str, match: str):
    snapshot, truth = import_babylon(written(tmp_path, SMALL))
    public = save_snapshot(tmp_path, snapshot, truth)
    path = public if part == "public" else tmp_path / "sealed" / f"{snapshot.id}.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(MalformedInput, match=match):
        (load_snapshot if part == "public" else load_truth)(tmp_path, snapshot.id)


@pytest.mark.parametrize(
    "name, match",
    [
        ("babylon-0123456789ab", "is missing"),
        ("babylon-0123456789ab\n", "is not the id"),
        ("babylon-../../etc/passwd", "is not the id"),
        ("babylon", "is not the id"),
    ],
)
def test_an_id_of_nothing_imported_is_refused(tmp_path: Path, name: str, match: str):
    for load in (load_snapshot, load_truth):
        with pytest.raises(MalformedInput, match=match):
            load(tmp_path, name)


def _market(file: dict, tick: int = 0) -> dict:
    return file["ticks"][tick]["state"]["predictionMarkets"][0]


def _perp(file: dict, tick: int = 0) -> dict:
    return file["ticks"][tick]["state"]["perpetualMarkets"][0]


PROBES: dict[str, tuple[Callable[[dict], Any], str]] = {
    "null price": (lambda f: _market(f).update(yesPrice=None), r"ticks\[0\].state.predictionMarkets\[0\].yesPrice"),
    "null perpetual price": (lambda f: _perp(f).update(price=None), r"ticks\[0\].state.perpetualMarkets\[0\].price"),
    "negative price": (lambda f: _perp(f, 2).update(price=-1), r"ticks\[2\].state.perpetualMarkets\[0\].price"),
    "negative shares": (lambda f: _market(f).update(yesShares=-5), r"predictionMarkets\[0\].yesShares"),
    "yesPrice of 5": (lambda f: _market(f).update(yesPrice=5), r"predictionMarkets\[0\].yesPrice.*less than 1"),
    "prices of another pool": (lambda f: _market(f).update(yesPrice=0.5, noPrice=0.5), r"yesPrice is 0.5"),
    "liquidity": (lambda f: _market(f).update(liquidity=1.0), r"liquidity is 1.0"),
    "duplicate market ids": (
        lambda f: [
            state["predictionMarkets"][1].update(id="market-0")
            for state in (f["initialState"], *(tick["state"] for tick in f["ticks"]))
        ],
        r"initialState.predictionMarkets\[1\].id: market-0 is there twice",
    ),
    "duplicate agents": (
        lambda f: f["initialState"]["agents"][1].update(id="agent-0"),
        r"initialState.agents\[1\].id: agent-0 is there twice",
    ),
    "missing tick": (lambda f: f["ticks"].pop(2), r"ticks: there are 4, a duration of 300 s asks for 5"),
    "no ticks": (lambda f: f.update(ticks=[]), r"ticks: "),
    "ticks out of order": (lambda f: f["ticks"].reverse(), r"ticks\[0\].number is 4, not 0"),
    "backward timestamp": (lambda f: f["ticks"][3].update(timestamp=CREATED - 1), r"ticks\[3\].timestamp"),
    "backward state": (lambda f: f["ticks"][3]["state"].update(timestamp=CREATED), r"ticks\[3\].state.timestamp"),
    "event from the future": (
        lambda f: f["ticks"][0]["events"][0].update(timestamp=CREATED + 10**8),
        r"ticks\[0\].events\[0\].timestamp is outside",
    ),
    "history against ticks": (
        lambda f: f["groundTruth"]["priceHistory"]["BTC"][3].update(price=64_000.0),
        r"groundTruth.priceHistory.BTC\[3\].price is not the price in ticks\[3\]",
    ),
    "price against event": (lambda f: _perp(f, 1).update(price=64_000.0), r"events\[\d\].data.newPrice"),
    "history too short": (lambda f: f["groundTruth"]["priceHistory"]["BTC"].pop(), r"priceHistory.BTC: there are 4"),
    "history missing": (lambda f: f["groundTruth"]["priceHistory"].pop("ETH"), r"priceHistory: ETH is missing"),
    "outcome as a word": (
        lambda f: f["groundTruth"]["marketOutcomes"].update({"market-0": "YES"}),
        r"groundTruth.marketOutcomes.market-0: input should be a valid boolean",
    ),
    "outcome as a number": (lambda f: f["groundTruth"]["marketOutcomes"].update({"market-0": 1}), "valid boolean"),
    "missing outcome": (lambda f: f["groundTruth"]["marketOutcomes"].pop("market-1"), "market-1 is missing"),
    "outcome of nothing": (lambda f: f["groundTruth"]["marketOutcomes"].update({"x": True}), "there is no x"),
    "no ground truth": (lambda f: f.pop("groundTruth"), "groundTruth: field required"),
    "truth in a state": (
        lambda f: f["ticks"][1]["state"].update(groundTruth=f["groundTruth"]),
        r"ticks\[1\].state.groundTruth: extra",
    ),
    "outcome in a market": (lambda f: _market(f).update(outcome=True), r"predictionMarkets\[0\].outcome: extra"),
    "unknown version": (lambda f: f.update(version="1.1.0"), "version: input should be '1.0.0'"),
    "no version": (lambda f: f.pop("version"), "version: field required"),
    "unknown event": (
        lambda f: f["ticks"][0]["events"][0].update(type="market:resolved"),
        r"ticks\[0\].events\[0\].*market:resolved",
    ),
    "event of an unknown agent": (
        lambda f: f["ticks"][0]["events"].append(
            {
                "type": "market:trade",
                "timestamp": CREATED,
                "data": {"marketId": "market-0", "agentId": "agent-9", "outcome": "YES", "amount": 1},
            }
        ),
        "there is no agent agent-9",
    ),
    "post under another name": (
        lambda f: f["ticks"][0]["events"].append(
            {
                "type": "post:created",
                "timestamp": CREATED,
                "data": {"authorId": "agent-0", "authorName": "Agent 1", "content": "hello"},
            }
        ),
        "authorName is not the name of agent-0",
    ),
    "missing createdAt": (lambda f: f.pop("createdAt"), "createdAt: field required"),
    "createdAt as text": (lambda f: f.update(createdAt=str(CREATED)), "createdAt: input should be a valid integer"),
    "NaN": (lambda f: _perp(f).update(fundingRate=math.nan), "NaN is no number"),
    "infinity": (lambda f: _perp(f).update(volume24h=math.inf), "Infinity is no number"),
    "resolved early": (lambda f: _market(f).update(resolved=True), "resolved is true"),
    "funding in the past": (
        lambda f: f["initialState"]["perpetualMarkets"][0].update(nextFundingTime=CREATED),
        "the first funding is not after createdAt",
    ),
    "market that vanishes": (lambda f: f["ticks"][4]["state"]["predictionMarkets"].pop(), "there are 1, 2 in initial"),
    "question that changes": (lambda f: _market(f, 4).update(question="Else?"), r"\[0\].question is not what initial"),
    "nothing to trade": (
        lambda f: [
            state.update(predictionMarkets=[], perpetualMarkets=[])
            for state in (f["initialState"], *(tick["state"] for tick in f["ticks"]))
        ],
        "neither a prediction market nor a perpetual",
    ),
    "an escape in an id": (lambda f: f.update(id="\x1b[31m"), "id: string should match pattern"),
    "action on nothing": (
        lambda f: f["groundTruth"]["optimalActions"][0].update(target="market-7"),
        r"optimalActions\[0\].target: there is no market-7",
    ),
    "opportunity after the end": (
        lambda f: f["groundTruth"]["socialOpportunities"][0].update(tick=5),
        r"socialOpportunities\[0\].tick is 5, after the last",
    ),
}


@pytest.mark.parametrize("probe", PROBES)
def test_a_malformed_file_is_refused_with_a_sentence_that_names_the_place(tmp_path: Path, probe: str):
    spoil, match = PROBES[probe]
    file = copy.deepcopy(SMALL)
    spoil(file)
    path = written(tmp_path, file)
    with pytest.raises(MalformedInput, match=match) as refusal:
        import_babylon(path)
    sentence = str(refusal.value)
    assert str(path) in sentence
    assert sentence.isprintable()
    assert len(sentence) < 400 + len(str(path))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b"1" * 5_000,
        b'{"version":"1.0.0","version":"1.0.0"}',
        b'{"version":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"createdAt":' + b"9" * 400 + b"}",
        b'{"duration":1e400}',
        b'{"duration":-Infinity}',
    ],
)
def test_what_is_no_file_of_the_game_at_all_is_refused(text: bytes):
    with pytest.raises(MalformedInput, match=r"^there\.json is not"):
        parse_babylon(text, "there.json")


def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path):
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(MalformedInput, match="cannot be read"):
            import_babylon(path)


def paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*path, key))


PATHS = [path for path in paths(SMALL) if path]
ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 5, 0.5, -0.0, 1e-300, 1e300, 10**400, CREATED, "", "YES", "1.0.0", [], {}, [[]]]
) | st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid file with up to three values put wrong: replaced, nudged, removed, repeated or exchanged."""
    file = copy.deepcopy(SMALL)
    for _ in range(draw(st.integers(1, 3))):
        *way, key = draw(st.sampled_from(PATHS))
        holder: Any = file
        try:
            for step in way:
                holder = holder[step]
            value = holder[key]
        except (KeyError, IndexError, TypeError):
            continue
        kinds = ["replace", "remove"]
        if isinstance(value, int | float) and abs(value) < 1e18:
            kinds += ["nudge"] * 4
        if isinstance(holder, list):
            kinds += ["repeat", "exchange"]
        kind = draw(st.sampled_from(kinds))
        if kind == "replace":
            holder[key] = draw(ODD | st.text(max_size=5))
        elif kind == "remove":
            del holder[key]
        elif kind == "nudge" and isinstance(value, bool):
            holder[key] = not value
        elif kind == "nudge":
            holder[key] = draw(st.sampled_from([value + 1, value * 1.5, -value, value * (1 + 1e-12), value / 2]))
        elif kind == "repeat":
            holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(value))
        else:
            other = draw(st.integers(0, len(holder) - 1))
            holder[key], holder[other] = holder[other], holder[key]
    return file


@given(file=mutated())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_file_that_was_tampered_with_is_refused_or_means_what_it_says(file: dict[str, Any], tmp_path_factory):
    directory = tmp_path_factory.getbasetemp()
    try:
        snapshot, truth = import_babylon(written(directory, file))
    except MalformedInput:
        return
    assert_says_the_same(file, snapshot, truth)
    assert all(check.detail for check in audit_imported(snapshot, truth))
    assert snapshot_from(json.loads(json.dumps(snapshot.to_json()))).id == snapshot.id


@given(field=st.sampled_from(["reputation", "totalPnl", "fundingRate", "volume24h"]), number=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_what_may_be_otherwise_comes_in_as_it_is(field: str, number: float, tmp_path_factory):
    file = copy.deepcopy(SMALL)
    state = file["ticks"][3]["state"]
    (state["agents"] if field in ("reputation", "totalPnl") else state["perpetualMarkets"])[1][field] = number
    snapshot, truth = import_babylon(written(tmp_path_factory.getbasetemp(), file))
    assert snapshot.column(field)[4, 1] == number
    assert_says_the_same(file, snapshot, truth)


@given(seed=st.integers(1, 2**32 - 1), ticks=st.integers(5, 8), markets=st.integers(0, 14), perps=st.integers(0, 10))
@settings(max_examples=15, deadline=None)
def test_every_file_that_the_game_can_write_is_imported_and_played(seed, ticks, markets, perps, tmp_path_factory):
    file = generated(seed, ticks, markets or 1, perps, agents=3)
    snapshot, truth = import_babylon(written(tmp_path_factory.getbasetemp(), file))
    assert_says_the_same(file, snapshot, truth)
    assert len(set(snapshot.config.instruments)) == snapshot.config.markets + perps
    episode = play(
        [Assignment(ReferenceAgent("random"), "a")], [(snapshot, truth)], seed=0, new_ids=lambda n: ["t"] * n
    )
    assert len(episode[0].steps) == ticks


def test_instruments_beyond_the_alphabet_have_names_of_their_own():
    names = BabylonConfig(markets=26, perps=9).instruments
    assert names[11:14] == ("L", "A2", "B2")
    assert names[25:28] == ("B3", "P", "Q")
    assert names[-1] == "P2"
