"""The verdict on imported snapshots: what is wrong with Babylon's own is found, and what is right is not denied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from rl_assets.errors import MalformedInput
from rl_assets.market.audit import Check, audit_snapshot
from rl_assets.market.babylon.audit import audit_any, audit_imported, foretell, summary
from rl_assets.market.babylon.importer import import_babylon
from rl_assets.market.generate import generate
from rl_assets.market.snapshot import SPLITS, parse_id, parse_snapshot, save_snapshot
from rl_assets.store.snapshots import list_snapshots, register_snapshots
from rl_assets_tests.market.babylon.made import CREATED, generated, with_prices, with_shares, written


def verdict(directory: Path, file: dict[str, Any]) -> dict[str, Check]:
    checks = audit_imported(*import_babylon(written(directory, file)))
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def honest(markets: int = 10, ticks: int = 12) -> dict[str, Any]:
    """A file in which prices and posts know the outcomes, prices move and no number is a draw of the generator."""
    file = generated(ticks=ticks, markets=markets, perps=1, agents=2)
    wobble = [65_000.0 * (1 + 0.01 * (-1) ** tick) for tick in range(ticks)]
    file = with_prices(file, "BTC", wobble)
    outcomes = list(file["groundTruth"]["marketOutcomes"].values())
    for place, outcome in enumerate(outcomes):
        path = [(400.0 + step, 100.0) if outcome else (100.0, 400.0 + step) for step in range(ticks + 1)]
        file = with_shares(file, place, path)
    for state in (file["initialState"], *(tick["state"] for tick in file["ticks"])):
        state["perpetualMarkets"][0]["fundingRate"] = 0.0001
        state["agents"][-1]["totalPnl"] = 0.1
    for number, tick in enumerate(file["ticks"]):
        market = file["initialState"]["predictionMarkets"][number % markets]
        outcome = outcomes[number % markets]
        mood = "bullish" if outcome else "bearish"
        content = f"Market sentiment seems {mood} on {market['question']}"
        post = {"authorId": "agent-0", "authorName": "Agent 0", "content": content}
        side = "YES" if outcome else "NO"
        trade = {"marketId": market["id"], "agentId": "agent-0", "outcome": side, "amount": 5.0}
        prices = [event for event in tick["events"] if event["type"] == "price:updated"]
        said = [("post:created", post), ("market:trade", trade)]
        tick["events"] = prices + [{"type": kind, "timestamp": CREATED, "data": data} for kind, data in said]
    return file


@pytest.mark.parametrize(
    ("name", "repeats"),
    [("small-10m60s-5pm-3perp-8ag-seed12345.json", False), ("wide-30m30s-12pm-7perp-4ag-seed7.json", True)],
)
def test_the_games_own_files_are_told_for_what_they_are(babylon_data: Path, name: str, repeats: bool):
    snapshot, truth = import_babylon(babylon_data / name)
    found = foretell(snapshot, truth)
    assert found is not None
    assert found.outcomes == (snapshot.config.markets,) * 2
    assert found.prices == (snapshot.n_ticks * snapshot.config.perps,) * 2
    checks = audit_imported(snapshot, truth)
    assert [check.name for check in checks if check.passed] == ([] if repeats else ["instruments_are_distinct"])
    assert "not to measure skill" in summary(checks)


@pytest.mark.parametrize("seed", [1, 7, 4_000_000_000])
@pytest.mark.parametrize("size", [{}, {"perps": 0, "markets": 9}, {"agents": 1, "perps": 6}])
def test_one_public_number_foretells_a_generated_file(tmp_path: Path, seed: int, size: dict[str, Any]):
    checks = verdict(tmp_path, generated(seed, **size))
    assert not checks["future_is_hidden"].passed
    assert not checks["no_drift"].passed
    assert not checks["prices_tell_outcomes"].passed


def test_a_file_that_was_doctored_in_one_outcome_is_still_seen_through(tmp_path: Path):
    file = generated()
    file["groundTruth"]["marketOutcomes"]["market-0"] ^= True
    assert not verdict(tmp_path, file)["future_is_hidden"].passed


def test_what_is_sound_in_a_file_is_found_sound(tmp_path: Path):
    checks = verdict(tmp_path, honest())
    assert {name for name, check in checks.items() if not check.passed} == {"a_won_bet_pays", "luck_is_apart"}


def test_posts_that_are_wrong_as_often_as_right_tell_nothing(tmp_path: Path):
    file = honest()
    for tick in file["ticks"][::2]:
        post = tick["events"][-2]["data"]
        swap = ("bullish", "bearish") if "bullish" in post["content"] else ("bearish", "bullish")
        post["content"] = post["content"].replace(*swap)
    checks = verdict(tmp_path, file)
    assert not checks["posts_tell_outcomes"].passed
    assert checks["posts_tell_outcomes"].detail.startswith("6 of 12 posts agree")
    assert checks["trades_tell_outcomes"].passed


def test_a_trend_is_a_drift_whoever_made_it(tmp_path: Path):
    rising = [65_000.0 * 1.01**tick for tick in range(1, 13)]
    assert not verdict(tmp_path, with_prices(honest(), "BTC", rising))["no_drift"].passed


def test_few_markets_tell_nothing_of_prices(tmp_path: Path):
    check = verdict(tmp_path, honest(markets=3))["prices_tell_outcomes"]
    assert not check.passed
    assert "under 8 markets tell nothing" in check.detail


def test_a_file_without_prediction_markets_or_without_perpetuals_is_judged(tmp_path: Path):
    assert verdict(tmp_path, generated(markets=0, agents=0))["prices_move"].passed
    assert not verdict(tmp_path, generated(perps=0, agents=1))["prices_move"].passed


def test_the_live_pool_pays_a_won_bet_less_than_its_stake_where_the_price_is_high(tmp_path: Path):
    file = with_shares(generated(markets=1), 0, [(900.0, 100.0)] * 7)
    assert verdict(tmp_path, file)["a_won_bet_pays"].detail.startswith("1 of 2 bets of $100 lose money")


def test_the_audit_knows_both_kinds_of_snapshot(tmp_path: Path):
    own, imported = generate("train", 0), import_babylon(written(tmp_path, generated()))
    assert audit_any(*own) == audit_snapshot(*own)
    assert audit_any(*imported) == audit_imported(*imported)


def test_the_gate_never_holds_an_imported_snapshot(conn: psycopg.Connection, tmp_path: Path):
    snapshot, truth = import_babylon(written(tmp_path, generated()))
    gate = [generate("gate", seed)[0] for seed in SPLITS["gate"][:2]]
    register_snapshots(conn, gate)
    with pytest.raises(psycopg.errors.CheckViolation):
        register_snapshots(conn, [snapshot])
    assert [row.id for row in list_snapshots(conn, split="gate")] == sorted(s.id for s in gate)
    assert snapshot.split not in SPLITS
    assert not any(snapshot.seed in seeds for seeds in SPLITS.values())
    with pytest.raises(MalformedInput, match="is not a snapshot id"):
        parse_id(snapshot.id)
    with pytest.raises(MalformedInput, match="is not in the format"):
        parse_snapshot(snapshot.to_json(), "public.json")
    save_snapshot(tmp_path, snapshot, truth)
    assert np.array_equal(truth.latents()[-1], truth.outcomes)
